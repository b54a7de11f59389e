"""The pages: what is generated is up to date, links lead somewhere, commands run, and no figure is typed by hand.

Contents: the generated blocks, the tool that writes them, links, commands, Python, figures and words, the model card.
"""

import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import canonical_notebooks
import install
import page_blocks
import sync_pages
import train_style

from styleforge_lib import cli, compile_cuda, lab
from styleforge_lib.models.checkpoints import list_styles
from styleforge_lib.runtime.emulator import EmulatorFault

ROOT = sync_pages.ROOT
GENERATED = re.compile(r"<!-- begin:(\S+) -->.*?<!-- end:\1 -->", re.DOTALL)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [pytest.param(ROOT / page, id=page) for page in sync_pages.PAGES]
each_page = pytest.mark.parametrize("page", PAGES)


def text_of(page):
    return (ROOT / page).read_text("utf-8")


def fenced(page, language):
    return [content for found, content in FENCE.findall(text_of(page)) if found == language]


# ---- the generated blocks ------------------------------------------------------------------------------------------


def test_the_pages_are_up_to_date():
    assert sync_pages.sync_pages(check=True) == [], "run `make pages`"


def test_the_pictures_show_the_newest_data():
    assert sync_pages.sync_pictures(check=True, again=False) == [], "run `make pages`"


def test_every_block_has_one_place_at_least():
    used = {name for page in sync_pages.PAGES for name in GENERATED.findall(text_of(page))}
    assert used == set(page_blocks.BLOCKS)


def test_every_picture_is_shown_and_small():
    shown = {
        ((ROOT / page).parent / link).resolve().relative_to(ROOT).as_posix()
        for page in sync_pages.PAGES
        for link in re.findall(r"!\[.*?\]\(((?!https)[^)]*?\.(?:png|jpg))\)", text_of(page))
    }
    pictures = [path for path in (ROOT / "docs").iterdir() if path.suffix != ".md"]
    assert shown == {path.relative_to(ROOT).as_posix() for path in pictures} == set(page_blocks.PICTURES)
    assert sum(path.stat().st_size for path in pictures) < 700_000


# ---- the tool ------------------------------------------------------------------------------------------------------


def test_rewriting_keeps_what_is_written_by_hand():
    text = "before\n<!-- begin:styles -->\nold\n<!-- end:styles -->\nafter\n"
    once = sync_pages.rewritten("page", text)
    assert once.startswith("before\n<!-- begin:styles -->\n")
    assert once.endswith("<!-- end:styles -->\nafter\n")
    assert "`starry_night`" in once
    assert "old" not in once
    assert sync_pages.rewritten("page", once) == once


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- begin:price -->\n<!-- end:price -->", "page: no block is called 'price'; there are badges, "),
        ("<!-- begin:styles -->\n", "page: <!-- begin:styles --> has no partner"),
        ("<!-- end:styles -->\n", "page: <!-- end:styles --> has no partner"),
        ("<!-- begin:styles -->\n<!-- end:clone -->\n", "has no partner"),
        (
            "<!-- begin:styles -->\n<!-- begin:clone -->\n<!-- end:clone -->\n<!-- end:styles -->\n",
            "page: <!-- begin:clone --> stands inside the block 'styles'",
        ),
    ],
)
def test_a_wrong_marker_is_one_clear_error(text, words):
    with pytest.raises(page_blocks.PageError, match=re.escape(words)):
        sync_pages.rewritten("page", text)


def test_a_missing_record_is_one_clear_line(monkeypatch, capsys):
    rows = [row for row in page_blocks.committed() if row.version != "compile max-autotune"]
    monkeypatch.setattr(page_blocks, "committed", lambda: rows)
    assert sync_pages.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("sync_pages: no record on an NVIDIA H200 of compile max-autotune in float16 at 1x3x")
    assert said.count("\n") == 1
    monkeypatch.setattr(page_blocks, "committed", list)
    assert sync_pages.main(["--check"]) == 1
    assert "`make bench` there writes it" in capsys.readouterr().err


def test_rows_of_two_runs_or_another_gpu_do_not_mix(monkeypatch):
    rows = list(page_blocks.committed())
    later = next(row for row in rows if row.operator == "transformer_net" and row.shape == page_blocks.SHAPE)
    monkeypatch.setattr(page_blocks, "committed", lambda: [*rows, replace(later, median_ms=1e-6, run="2999")])
    assert page_blocks.peers(page_blocks.SHAPE)[later.version, later.dtype].median_ms > 0.1
    monkeypatch.undo()
    assert {row.gpu for row in page_blocks.committed()} == {page_blocks.GPU}


def test_a_faster_row_is_out_of_date_in_page_and_picture(monkeypatch, capsys):
    fast = [replace(row, median_ms=row.median_ms / 2) for row in page_blocks.committed()]
    monkeypatch.setattr(page_blocks, "committed", lambda: fast)
    assert sync_pages.main(["--check"]) == 1
    out = capsys.readouterr().out
    assert "README.md: out of date; run `make pages`" in out
    assert "docs/peers.png: out of date" in out
    assert "paintings" not in out


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
def test_a_fingerprint_leaves_the_pixels_alone(suffix, tmp_path):
    before, after = tmp_path / f"before.{suffix}", tmp_path / f"after.{suffix}"
    lab.photo("chelsea").save(before)
    after.write_bytes(sync_pages.stamped(before.read_bytes(), "0123"))
    assert sync_pages.fingerprint_in(after) == "0123"
    assert Image.open(before).tobytes() == Image.open(after).tobytes()
    assert not sync_pages.fingerprint_in(before)
    assert sync_pages.fingerprint_in(tmp_path / "none.png") is None


def test_three_digits():
    assert [page_blocks.three_digits(x) for x in (0.3936, 2.9, 20.0, 132.75)] == ["0.394", "2.90", "20.0", "133"]


# ---- links ---------------------------------------------------------------------------------------------------------


def anchors(path):
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text("utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            _holds_on_the_web(target)
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert path.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(path), link


def _holds_on_the_web(link):
    """Hold what can be held without a network: links to the project's own files, and to no stranger."""
    own = re.match(
        r"https://(?:colab\.research\.google\.com/)?github(?:\.com)?/styleforge/styleforge/blob/main/(.+)", link
    )
    if own:
        assert (ROOT / own[1]).exists(), link
    else:
        hosts = ("img.shields.io", "colab.research.google.com", "arxiv.org", "github.com", "creativecommons.org")
        assert re.match(r"https://([^/]+)", link)[1] in hosts, link


# ---- commands ------------------------------------------------------------------------------------------------------

TARGETS = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))
EXTRAS = set(tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"])
SOURCES = "".join(
    path.read_text("utf-8") for path in chain(ROOT.glob("styleforge_lib/**/*.py"), ROOT.glob("tests/**/*.py"))
)


def commands(page):
    """Return every command of a page: the lines of its shell fences, and what stands in backticks like one."""
    text = text_of(page)
    lines = [line for script in fenced(page, "sh") for line in script.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`((?:make|python|pip|jupyter|jupytext) [^`]+)`", FENCE.sub("", text))
    return [words for line in [*lines, *inline] if (words := shlex.split(line, comments=True))]


def check_command(words):
    """Fail unless the command exists, with its options."""
    while re.match(r"[A-Z_]+=", words[0]):  # variables before a command, or alone
        name = words.pop(0).partition("=")[0]
        if not words:
            return
        assert f'"{name}"' in SOURCES, f"nothing reads {name}"
    command, *arguments = words
    if command == "make":
        assert arguments[0] in TARGETS
    elif command in ("python", "python3"):
        check_python(arguments)
    elif command == "pip":
        check_pip(arguments)
    elif command == "git":
        assert arguments == ["clone", page_blocks.REPOSITORY]
    elif command == "conda":
        assert arguments in (["env", "create", "-f", "environment.yml"], ["activate", "styleforge"])
    elif command in ("jupyter", "jupytext"):
        assert shutil.which(command, path=Path(sys.executable).parent), f"{command} is not installed"
        notebooks = [word for word in arguments if word.startswith("notebooks/")]
        assert all((ROOT / notebook).exists() for notebook in notebooks)
    else:
        assert command in ("cd", "cp", "."), f"this test knows no command {command}"


def check_python(arguments):
    """Check a call of a module or of a tool: that it is there, and knows the options."""
    if arguments[0] == "-m":
        assert arguments[1] in ("venv", "pytest", "styleforge_lib")
        return  # those of styleforge_lib are run below
    source = text_of(arguments[0])
    for option in (word for word in arguments[1:] if word.startswith("-")):
        assert f'"{option}"' in source, f"{arguments[0]} has no {option}"


def check_pip(arguments):
    """Check the extras, and that the index is one that tools/install.py uses."""
    assert arguments[0] == "install"
    for word in arguments[1:]:
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(extras[1].split(",")) <= EXTRAS
        elif word.startswith("https:"):
            known = {part for cuda in (None, (12, 4)) for step in install.plan(cuda, ["lab"])[0] for part in step}
            assert word in known, word
        else:
            assert word in ("torch", "-e", "--index-url"), word


@each_page
def test_commands_exist(page):
    found = commands(page)
    assert found
    for words in found:
        check_command(words)


def test_make_lab_and_make_test_are_what_a_newcomer_sees_first():
    assert [words for words in commands("README.md") if words[0] == "make"][:2] == [["make", "lab"], ["make", "test"]]


def test_the_command_line_of_the_readme_paints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holiday").mkdir()
    for name in ("photo.jpg", "holiday/one.jpg", "holiday/two.jpg"):
        lab.photo("chelsea").resize((60, 40)).save(name)
    calls = [words[3:] for words in commands("README.md") if words[:3] == ["python", "-m", "styleforge_lib"]]
    paints = [words for words in calls if "--help" not in words]
    assert len(paints) == 2
    for words in paints:
        small = ["64" if before == "--size" else word for before, word in zip(["", *words], words, strict=False)]
        assert cli.main(small) == 0
    assert (tmp_path / "out.png").exists()
    assert len(list((tmp_path / "painted").iterdir())) == 2


# ---- Python --------------------------------------------------------------------------------------------------------


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lab.photo("chelsea").save("photo.jpg")
    kernel, painting, faster = fenced("README.md", "python")
    scope = {}
    exec(kernel, scope)
    assert scope["x"].min() == 0
    assert "registers" in capsys.readouterr().out
    looking = re.search(r"`(lab\.xray\(.*?\))`", text_of("README.md"))[1]
    assert "x-ray of relu" in str(eval(looking, {**scope, "lab": lab}))
    exec(painting.replace("size=1024", "size=64"), scope)
    assert Image.open("painting.png").size == (64, 43)
    assert isinstance(scope["net"], torch.nn.Module)
    exec(faster, scope)
    assert "deconv3" in capsys.readouterr().out


def test_without_the_guard_the_emulator_says_what_the_readme_quotes(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    text = re.search(r'compile_cuda\("""(.*?)"""\)', fenced("README.md", "python")[0], re.DOTALL)[1]
    assert "if (i < n) " in text
    x = torch.randn(1000)
    with pytest.raises(EmulatorFault) as fault:
        compile_cuda(text.replace("if (i < n) ", ""))(4, 256, (x, 1000))
    assert [str(fault.value)] == [line.strip() for line in fenced("README.md", "text")]


# ---- figures and words ---------------------------------------------------------------------------------------------

FIGURE = re.compile(
    r"(?<![\w.])\d[\d.,]*\s?"
    r"(?:(?:ms|us|µs|ns|s|min|h|kB|MB|GB|TB|KiB|MiB|GiB|dB|fps|FPS|[KMGT]?FLOPs?|[kMGT]B/s|[GT]FLOP/s|W|GHz)\b"
    r"|%|x\b|×(?!\s?\d)|(?:times|percent|seconds?|minutes?|hours?)\b)"
)
# What looks like a measured figure and is none, with the reason.
NO_MEASUREMENT = {
    "2 MB": "the limit of tools/canonical_notebooks.py, held below",
}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/xray.md"])
def test_no_figure_is_typed_by_hand(page):
    by_hand = FENCE.sub("", GENERATED.sub("", text_of(page)))
    assert [figure for figure in FIGURE.findall(by_hand) if figure not in NO_MEASUREMENT] == []
    assert canonical_notebooks.LARGEST == 2_000_000


@pytest.mark.parametrize(
    "text",
    ["2.6 ms", "in 3 s.", "53 %", "3x faster", "2.5× as fast", "84 dB", "4.2 TB/s", "1,000 MB", "4 times", "8 us"],
)
def test_the_hunt_for_figures_finds(text):
    assert FIGURE.search(text)


@pytest.mark.parametrize(
    "text", ["1024×1024", "float16", "9x9", "CUDA 13", "2016", "port=8899", "4 styles", "1 session"]
)
def test_the_hunt_for_figures_leaves(text):
    assert not FIGURE.search(text)


def test_what_the_readme_says_of_the_shares_is_so():
    """'About half of the time goes elsewhere', and 'half precision makes the network slower'."""
    shares = page_blocks.by_kind(page_blocks.profiled()["float32 (TF32)"])
    assert 0.4 < shares["conv"] / sum(shares.values()) < 0.6
    rows = page_blocks.peers(page_blocks.SHAPE)
    assert rows["eager", "float16"].median_ms > 1.1 * rows["eager", "tf32"].median_ms


@each_page
def test_the_pages_speak_of_this_project_alone(page):
    """No path of somebody's machine, no tracker's letters, and no document that is not here."""
    text = re.sub(r"https://\S+", "", page.read_text("utf-8"))
    assert re.findall(r"(?<![\w.}\])])/(?:work|home|root|tmp|opt|mnt|usr)\b\S*", text) == []
    assert re.findall(r"(?i)\bissue [A-Z0-9#]+\b", text) == []
    for name in re.findall(r"[\w/]+\.md\b", text):
        assert any((folder / name).exists() for folder in (ROOT, page.parent)), name


# ---- the model card ------------------------------------------------------------------------------------------------

CARD = "styleforge_lib/styles/README.md"


def test_the_card_names_the_painting_of_every_style():
    named = re.findall(r"^\| `(\w+)` \| (.+?), (.+), (?:about )?(1\d{3}) \|$", text_of(CARD), re.MULTILINE)
    assert [style for style, *_ in named] == list_styles()


def test_the_card_counts_the_photos_that_the_files_count():
    counted = [int(count) for count in re.findall(r"^\| (\d+) \| .+ \| .+ \|$", text_of(CARD), re.MULTILINE)]
    said = re.search(r"^(\d+) photographs", text_of(CARD), re.MULTILINE)
    assert {sum(counted), int(said[1])} == {page_blocks.training_of(style)["photos"] for style in list_styles()}


def test_the_cards_commands_are_the_recipes_in_the_files():
    usual = asdict(train_style.Recipe())
    data, *lines = [shlex.split(line) for script in fenced(CARD, "sh") for line in script.splitlines()]
    data = shlex.split(data[0].partition("=")[2])
    for style, line in zip(list_styles(), lines, strict=True):
        cut = line.index("$DATA")
        options = vars(train_style.parse([*line[2:cut], *data, *line[cut + 1 :]]))
        facts = page_blocks.training_of(style)
        assert (options["out"].name, options["painting"].name) == (style, facts["painting"])
        assert options["init"] == facts["init"]
        asked = {**facts["recipe"], "iterations": facts["iterations_done"], "max_seconds": None}
        asked.setdefault("style_ramp", 0.0)
        assert {name: options[name] for name in usual} == asked
