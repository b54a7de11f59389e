"""What the pages show of what is measured, trained and written: text for their blocks, data for their pictures.

Contents: the record (rows), the blocks in the order of the pages that show them, the pictures.

A block is a function under ``@block`` that returns Markdown; `sync_pages.py` puts it between the markers of its name.
The measured figures come from ``records/measurements.csv`` alone, and of one GPU, so that a page does not change with
the machine that writes it.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path

import nbformat
from address import REPOSITORY, ROOT, colab_badge
from bench import SIZES
from matplotlib.figure import Figure
from safetensors import safe_open
from train_style import Recipe

from styleforge_lib.lab import records
from styleforge_lib.lab.figures import KIND_NAMES, draw_shares
from styleforge_lib.lab.peers import COMPILED, EAGER, PRECISIONS
from styleforge_lib.lab.profile import KINDS, OPERATOR
from styleforge_lib.lab.records import Measurement
from styleforge_lib.lab.studio import gallery
from styleforge_lib.models.checkpoints import STYLES_FOLDER, list_styles
from styleforge_lib.ops import operators

GPU = "NVIDIA H200"  # the card whose figures the pages quote: a second card's rows must not mix with them
SHAPE = "1x3x1024x1024"  # of the figures, of the errors, and of where the time goes
PHOTOS = ("astronaut", "chelsea", "coffee")
NO_BREAK = "\N{NO-BREAK SPACE}"
DPI = 130  # sharp at the width of a page on GitHub
BLOCKS: dict[str, Callable[[], str]] = {}


class PageError(ValueError):
    """A page that cannot be written; the message is one line."""


def block(write: Callable[[], str]) -> Callable[[], str]:
    """Let pages show what ``write`` returns between the markers of its name, with hyphens for underscores."""
    BLOCKS[write.__name__.replace("_", "-")] = write
    return write


def table(head: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """Return a Markdown table; ``align`` holds one of "l" and "r" for each column, and what it lacks is "l"."""
    rule = ["---:" if side == "r" else "---" for side in align.ljust(len(head), "l")]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, rule, *rows])


# ---- the record ----


@cache
def committed() -> tuple[Measurement, ...]:
    """Return the committed rows of the pages' GPU."""
    return tuple(row for row in records.read(records.committed_path()) if row.gpu == GPU)


def measured(operator: str, *, among: Sequence[tuple[str, str]] = (), **wanted: str) -> list[Measurement]:
    """Return the rows with these columns that were measured together: the fullest run, of equals the newest.

    ``operator`` may end with a dot: then it stands for all stages of that operator. ``among``: (version, dtype) that
    count, where not all do.
    """

    def asked_for(row: Measurement) -> bool:
        mine = row.operator.startswith(operator) if operator.endswith(".") else row.operator == operator
        counts = not among or (row.version, row.dtype) in among
        return mine and counts and all(getattr(row, column) == value for column, value in wanted.items())

    rows = records.fullest_run(filter(asked_for, committed()))
    if not rows:
        raise PageError(
            f"no record on an {GPU} of {', '.join([operator, *wanted.values()])}: `make bench` there writes it"
        )
    return rows


def peers(shape: str) -> dict[tuple[str, str], Measurement]:
    """Return (version, dtype) -> row of every peer, in the order in which the lessons name them."""
    asked = [(version, dtype) for dtype, _ in PRECISIONS for version in (*EAGER, *COMPILED[dtype])]
    rows = measured(OPERATOR, among=asked, shape=shape, method="cold")
    found = {(row.version, row.dtype): row for row in rows}
    if missing := [pair for pair in asked if pair not in found]:
        raise PageError(f"no record on an {GPU} of {' in '.join(missing[0])} at {shape}: `make bench` writes it")
    return {pair: found[pair] for pair in asked}


def profiled() -> dict[str, list[Measurement]]:
    """Return the profile of the running network, by the name of its precision."""
    precisions = {"float32 (TF32)": ("tf32", "nchw"), "float16 channels_last": ("float16", "nhwc")}
    return {
        title: measured(OPERATOR + ".", shape=SHAPE, method="inside", dtype=dtype, layout=layout)
        for title, (dtype, layout) in precisions.items()
    }


def by_kind(rows: Iterable[Measurement]) -> dict[str, float]:
    """Sum a profile's milliseconds by the kind of stage, which ends an operator's name, in the order of the figures."""
    sums = dict.fromkeys(KINDS, 0.0)
    for row in rows:
        sums[row.operator.rpartition(".")[2]] += row.median_ms
    return sums


def machine_of(rows: Iterable[Measurement]) -> str:
    """Return "NVIDIA H200, driver 580, PyTorch 2.11.0, CUDA 13.0, 2026-11-22 and 2026-11-23", or several of them."""
    days: dict[str, set[str]] = {}
    for r in rows:
        days.setdefault(f"{r.gpu}, driver {r.driver}, PyTorch {r.torch}, CUDA {r.cuda}", set()).add(r.run[:10])
    return "; ".join(f"{machine}, {' and '.join(sorted(found))}" for machine, found in days.items())


# ---- README.md ----


@block
def badges() -> str:
    """Colab, the licence and the versions of Python."""
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    least, above = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', pyproject).groups()
    python, shields = f"3.{least}_to_3.{int(above) - 1}", "https://img.shields.io/badge"
    return "\n".join(
        [
            colab_badge(notebooks()[0].name),
            f"[![Licence: MIT]({shields}/licence-MIT-blue.svg)](LICENSE)",
            f"[![Python {python.replace('_', ' ')}]({shields}/python-{python}-blue.svg)](pyproject.toml)",
        ]
    )


@block
def clone() -> str:
    """Say how the repository is fetched."""
    return f"```sh\ngit clone {REPOSITORY}\ncd {REPOSITORY.rpartition('/')[2]}\n```"


def notebooks() -> list[Path]:
    """Return the notebooks that there are, in their order."""
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not found:
        raise PageError("there is no notebook in notebooks/")
    return found


@block
def lessons() -> str:
    """List the notebooks: title, goals (folded), minutes, badge, as each one's first cell has them."""
    rows = []
    for path in notebooks():
        cell = nbformat.read(path, as_version=4).cells[0].source
        title = re.match(r"# (?P<number>\d\d) · (?P<title>.+)", cell)
        minutes = re.search(r"\*\*Takes\*\* (?:about )?(\d+) minutes", cell)
        goals = re.search(r"\*\*You will\*\*\n((?:- .+\n)+)", cell)
        if not (title and minutes and goals):
            raise PageError(
                f'{path.name}: its first cell must have "# NN · Title", "**You will**" with a list, '
                'and "**Takes** N minutes"'
            )
        items = "".join(f"<li>{goal[2:]}</li>" for goal in goals[1].splitlines())
        folded = f"<details><summary>you will</summary><ul>{items}</ul></details>"
        link = f"[{title['title']}](notebooks/{path.name})"
        rows.append([title["number"], link + folded, f"{minutes[1]}{NO_BREAK}min", colab_badge(path.name)])
    return table(["", "notebook", "takes", "open"], rows, "llr")


@block
def styles() -> str:
    """Name the shipped styles in a sentence."""
    names = [f"`{name}`" for name in list_styles()]
    return f"The styles are {', '.join(names[:-1])} and {names[-1]}."


def three_digits(number: float) -> str:
    """Write 0.394, 2.90, 20.0, 133."""
    return f"{number:#.3g}".rstrip(".")


@block
def kernels() -> str:
    """List the finished kernels: each file of cuda/, with the first sentence of its header."""
    lines = []
    for path in sorted((ROOT / "cuda").glob("*.cu")):
        header = " ".join(re.findall(r"^// ?(.*)$", path.read_text("utf-8").partition("\n//\n")[0], re.M))
        lines.append([f"[{path.stem}](cuda/{path.name})", header.rstrip(".").replace("|", "\\|")])
    names = ", ".join(f"`{operator.name}`" for operator in operators())
    return f"{table(['kernel', 'computes'], lines)}\n\nOperators that `lab.check` and `lab.bench` know: {names}."


@block
def peers_words() -> str:
    """Say what PyTorch reaches, and what the arithmetic would allow."""
    rows = peers(SHAPE)
    first, best = rows["eager", "tf32"], min(rows.values(), key=lambda row: row.median_ms)
    product = measured("ceiling", version="matmul", dtype="float16")[-1]
    floor = first.flops / product.flops * product.median_ms
    return (
        f"PyTorch as it comes paints 1024×1024 pixels in {three_digits(first.median_ms)} ms on an {best.gpu}; its "
        f"best, `{best.version}` in {precision(best)}, takes {three_digits(best.median_ms)} ms. At the speed that "
        f"this GPU reaches in one large float16 matrix product, the arithmetic alone would take "
        f"{three_digits(floor)} ms: that is the room."
    )


@block
def peers_table() -> str:
    """Show the whole network at four sizes, in every way of PyTorch: the best of each size in bold."""
    sizes = [f"{height}x{width}" for height, width in SIZES]
    columns = {size: peers(f"1x3x{size}") for size in sizes}
    best = {size: min(row.median_ms for row in column.values()) for size, column in columns.items()}
    lines = []
    for pair, row in columns[SHAPE.removeprefix("1x3x")].items():
        times = [(column[pair].median_ms, best[size]) for size, column in columns.items()]
        cells = [f"**{three_digits(ms)}**" if ms == least else three_digits(ms) for ms, least in times]
        lines.append([row.version, precision(row), *cells, f"{row.psnr_db:.0f}"])
    head = ["version", "precision", *(size.replace("x", "×") for size in sizes), "PSNR"]
    return (
        f"{table(head, lines, 'll' + 'r' * (len(sizes) + 1))}\n\n"
        "Milliseconds for one picture (height×width), the best in bold; PSNR in dB against float64, at 1024×1024. "
        "tf32 is PyTorch's default for float32 tensors: convolutions multiply in TF32. "
        f"Measured on {machine_of(row for column in columns.values() for row in column.values())}: medians of many "
        "calls, the L2 cache flushed before each; cudnn.benchmark is on in every version but plain eager. "
        "`make bench` appends the rows to [records/measurements.csv](records/measurements.csv), and `make pages` "
        "writes this table and the figure from them."
    )


def precision(row: Measurement) -> str:
    """Return "tf32", or "float16 channels_last"."""
    return row.dtype + (" channels_last" if row.layout == "nhwc" else "")


@block
def shares_table() -> str:
    """Say which share of the network's time each kind of stage takes, in two precisions."""
    profiles, lines, remarks = profiled(), [], []
    for title, rows in profiles.items():
        sums = by_kind(rows)
        whole, alone = sum(sums.values()), peers(SHAPE)["eager + benchmark", rows[0].dtype].median_ms
        lines.append([title, three_digits(whole), *(f"{100 * ms / whole:.0f} %" for ms in sums.values())])
        if not 0.9 < whole / alone < 1.1:
            remarks.append(
                f"In {title} the profiled stages add up to {three_digits(whole)} ms, and the network without a "
                f"profiler took {three_digits(alone)} ms; the shares are of the former."
            )
    head = ["1024×1024", "ms in all", *(KIND_NAMES[kind] for kind in KINDS)]
    where = machine_of(row for rows in profiles.values() for row in rows)
    said = [f"Each stage's kernels, timed inside the running network by torch.profiler on {where}.", *remarks]
    return f"{table(head, lines, 'l' + 'r' * (len(KINDS) + 1))}\n\n{' '.join(said)}"


# ---- CONTRIBUTING.md ----


@block
def targets() -> str:
    """List the targets of the Makefile with their own descriptions."""
    found = re.findall(r"^([a-z]+):.*?## (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    return table(["command", "does"], [[f"`make {target}`", does] for target, does in found])


@block
def record_columns() -> str:
    """Name the columns of a record."""
    return ", ".join(f"`{field.name}`" for field in fields(Measurement)) + "."


# ---- styleforge_lib/styles/README.md ----


@cache
def training_of(style: str) -> dict:
    """Return what `tools/train_style.py` wrote into a style's file."""
    path = STYLES_FOLDER / f"{style}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if "training" not in metadata:
        raise PageError(f"{path.name}: its metadata says nothing of its training; tools/train_style.py writes it")
    return json.loads(metadata["training"])


@block
def training_facts() -> str:
    """Show how each style was trained: one column a style."""
    trained = [training_of(style) for style in list_styles()]
    rows: dict[str, Callable[[dict], str]] = {
        "painting's file": lambda facts: f"`{facts['painting']}`",
        "its SHA-256 begins with": lambda facts: f"`{facts['painting_sha256'][:12]}`",
        "photos": lambda facts: str(facts["photos"]),
        "started from": lambda facts: f"`{facts['init']}`" if facts["init"] else "random weights",
        "iterations": lambda facts: f"{facts['iterations_done']:,}",
        "seconds": lambda facts: f"{facts['seconds']:.0f}",
        "weight of the style loss": lambda facts: f"{facts['recipe']['style_weight']:g}",
        "weight of total variation": lambda facts: f"{facts['recipe']['tv_weight']:g}",
        "content loss at the end": lambda facts: f"{facts['losses']['content']:.2f}",
        "style loss at the end": lambda facts: f"{facts['losses']['style']:.2f}",
        "total variation loss at the end": lambda facts: f"{facts['losses']['tv']:.2f}",
        "GPU": lambda facts: facts["device"],
        "PyTorch": lambda facts: facts["torch"],
    }
    digests = [f"`{digest_of(STYLES_FOLDER / f'{style}.safetensors')[:12]}`" for style in list_styles()]
    lines = [[name, *map(write, trained)] for name, write in rows.items()]
    head = ["", *(f"[{style}]({style}.safetensors)" for style in list_styles())]
    return table(head, [*lines, ["these weights' SHA-256 begins with", *digests]], "l" + "r" * len(trained))


@block
def training_commands() -> str:
    """Give the command that trains each style again, from what its file says."""
    usual = asdict(Recipe())
    lines = []
    for style in list_styles():
        facts = training_of(style)
        # A file that says nothing of the ramp is older than the ramp, which was then none.
        recipe = {"style_ramp": 0.0, **facts["recipe"], "iterations": facts["iterations_done"], "max_seconds": None}
        words = [f"--painting {facts['painting']}", "$DATA", f"--out out/{style}"]
        words += [f"--init {facts['init']}"] if facts["init"] else []
        for name, default in usual.items():
            value = recipe[name]
            if (tuple(value) if isinstance(value, list) else value) != default:
                shown = value if isinstance(value, list) else [value]
                words.append(" ".join([f"--{name.replace('_', '-')}", *(f"{number:.10g}" for number in shown)]))
        lines.append(f"python tools/train_style.py {' '.join(words)}")
    return "\n".join(["```sh", *lines, "```"])


def digest_of(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- the pictures ----


def _shares_figure() -> tuple[object, Callable[[], bytes]]:
    sums = {title: by_kind(rows) for title, rows in profiled().items()}
    return sums, lambda: png(draw_shares(sums))


def _paintings() -> tuple[object, Callable[[], bytes]]:
    weights = {name: digest_of(STYLES_FOLDER / f"{name}.safetensors") for name in list_styles()}
    return [PHOTOS, weights], lambda: gallery(PHOTOS, size=480).data


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


# Each gives its data, of which the fingerprint is taken, and what draws it.
PICTURES: dict[str, Callable[[], tuple[object, Callable[[], bytes]]]] = {
    "docs/shares.png": _shares_figure,
    "docs/paintings.jpg": _paintings,
}
