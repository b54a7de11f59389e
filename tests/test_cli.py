"""The command line: what is painted, what is refused, in how many lines, and with which exit code."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from styleforge_lib.cli import main
from styleforge_lib.models import checkpoints
from styleforge_lib.models.transformer_net import TransformerNet
from styleforge_lib.painter import stylize
from styleforge_lib.pictures import load_picture


@pytest.fixture(scope="module")
def style(tmp_path_factory) -> str:
    """Save an untrained style."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("style") / "style.pth"
    torch.save(TransformerNet().state_dict(), path)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    """Make a folder of three pictures, a broken one, and two things that are none."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.gif"):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    return folder


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Run the command line; return the exit code, standard output and standard error."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def refusal(capsys, *arguments: object) -> str:
    """Return the one line with which the command refuses."""
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


# ---- one picture ----


def test_one_picture(capsys, photos, style, tmp_path):
    target = tmp_path / "out.png"
    code, out, err = run(capsys, "paint", photos / "a.png", "--style", style, "-o", target, "--device", "cpu")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    assert "30x20" in out
    assert np.array_equal(load_picture(target), stylize(photos / "a.png", style, device="cpu"))


def test_size_and_format(capsys, photos, style, tmp_path):
    code, _, _ = run(capsys, "paint", photos / "a.png", "-s", style, "-o", tmp_path / "out.jpg", "--size", 15)
    assert code == 0
    with Image.open(tmp_path / "out.jpg") as painting:
        assert (painting.format, painting.size) == ("JPEG", (15, 10))


def test_into_a_folder_that_is_there(capsys, photos, style, tmp_path):
    code, out, _ = run(capsys, "paint", photos / "c.gif", "-s", style, "-o", tmp_path)
    assert code == 0
    assert "painted 1 of 1" in out
    assert load_picture(tmp_path / "c.png").size == (30, 20)


def test_a_shipped_style_by_name(capsys, photos, style, tmp_path, monkeypatch):
    import safetensors.torch

    monkeypatch.setattr(checkpoints, "STYLES_FOLDER", tmp_path)
    assert "no styles are installed" in refusal(capsys, "styles")
    weights = checkpoints.load_style(style).state_dict()
    for name in ("great_wave", "starry_night"):
        safetensors.torch.save_file(weights, tmp_path / f"{name}.safetensors")
    assert run(capsys, "styles") == (0, "great_wave\nstarry_night\n", "")
    code, _, _ = run(capsys, "paint", photos / "a.png", "-s", "great_wave", "-o", tmp_path / "o.png")
    assert code == 0
    message = refusal(capsys, "paint", photos / "a.png", "-s", "great_vawe", "-o", tmp_path / "o.png")
    assert "did you mean 'great_wave'?" in message


# ---- several pictures ----


def test_a_folder_goes_on_after_a_broken_picture(capsys, photos, style, tmp_path):
    target = tmp_path / "new" / "painted"
    code, out, err = run(capsys, "paint", photos, "-s", style, "-o", target)
    assert code == 2  # something was refused
    assert sorted(path.name for path in target.iterdir()) == ["a.png", "b.jpg", "c.png"]
    for path in target.iterdir():
        assert load_picture(path).size == (30, 20)
    assert out.count("\n") == 1
    assert "painted 3 of 4 pictures" in out
    assert "broken.jpg" in out
    assert "notes.txt" in out
    assert "deeper" in out
    assert ".hidden" not in out
    assert "4/4" in err  # the progress bar
    assert err.count("error: ") == 1
    assert "broken.jpg" in err


def test_several_files_each_once(capsys, photos, style, tmp_path):
    target = tmp_path / "painted"
    code, out, _ = run(
        capsys, "paint", photos / "a.png", photos / "b.jpg", photos / "a.png", "-s", style, "-o", f"{target}/"
    )
    assert code == 0
    assert "painted 2 of 2" in out
    assert len(list(target.iterdir())) == 2


def test_nothing_is_overwritten_that_was_given_or_painted(capsys, photos, style, tmp_path):
    before = {path: path.read_bytes() for path in photos.iterdir() if path.is_file()}
    source = photos / "a.png"
    assert "would be overwritten" in refusal(capsys, "paint", source, "-s", style, "-o", source)
    code, out, err = run(capsys, "paint", source, photos / "b.jpg", "-s", style, "-o", photos)
    assert code == 2
    assert "painted 0 of 2" in out
    assert err.count("would be overwritten") == 2
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (9, 9)).save(other / "c.png")  # as is the painting of c.gif
    code, out, err = run(capsys, "paint", photos / "c.gif", other / "c.png", "-s", style, "-o", tmp_path / "painted")
    assert code == 2
    assert "would overwrite the painting of" in err
    assert load_picture(tmp_path / "painted" / "c.png").size == (30, 20)
    assert {path: path.read_bytes() for path in photos.iterdir() if path.is_file()} == before


# ---- refusals ----


def test_every_wrong_argument_is_one_line(capsys, photos, style, tmp_path):
    picture, target = photos / "a.png", tmp_path / "out.png"
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    paint = ("paint", picture, "-s", style, "-o")
    for words, arguments in {
        "COMMAND": (),
        "invalid choice": ("draw",),
        "PICTURE": ("paint",),
        "--style": ("paint", picture, "-o", target),
        "--output": ("paint", picture, "-s", style),
        "'0' is not a number": (*paint, target, "--size", "0"),
        "'-3' is not a number": (*paint, target, "--size=-3"),
        "'big' is not a number": (*paint, target, "--size", "big"),
        "takes about": (*paint, target, "--size", 10**7),
        "device 'cuda:99'": (*paint, target, "--device", "cuda:99"),
        "names no format": (*paint, tmp_path / "out"),
        "there is no folder": (*paint, tmp_path / "missing" / "out.png"),
        "no style 'nonsense'": ("paint", picture, "-s", "nonsense", "-o", target),
        "neither safetensors nor": ("paint", picture, "-s", picture, "-o", target),
        "does not exist": ("paint", photos / "missing.png", "-s", style, "-o", target),
        "broken.jpg": ("paint", photos / "broken.jpg", "-s", style, "-o", target),
        "is no picture": ("paint", photos / "notes.txt", "-s", style, "-o", target),
        "holds no pictures": ("paint", tmp_path / "empty", "-s", style, "-o", target),
        "a folder for several pictures": ("paint", photos, "-s", style, "-o", target),
        "and '": ("paint", photos, "-s", style, "-o", tmp_path / "file"),
        "\\n": ("paint", "two\nlines.png", "-s", style, "-o", target),
        "unrecognized": ("paint", picture, "-s", style, "-o", target, "--sise=3"),
    }.items():
        assert words in refusal(capsys, *arguments), arguments
    assert not target.exists()


def test_interruption_is_one_line(capsys, photos, style, tmp_path, monkeypatch):
    monkeypatch.setattr("styleforge_lib.painter._paint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    code, out, err = run(capsys, "paint", photos / "a.png", "-s", style, "-o", tmp_path / "out.png")
    assert (code, out, err) == (130, "", "error: interrupted\n")
    assert not (tmp_path / "out.png").exists()


# ---- as a program ----


def test_help_explains_with_examples(capsys):
    for arguments in (["--help"], ["paint", "--help"]):
        code, out, err = run(capsys, *arguments)
        assert (code, err) == (0, "")
        assert "python -m styleforge_lib paint photo.jpg --style great_wave -o out.png" in out
        assert max(map(len, out.splitlines())) <= 110


def test_the_program_runs_and_help_does_not_wait_for_torch():
    code = "import sys, styleforge_lib.cli as cli; assert 'torch' not in sys.modules; cli.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout
    done = subprocess.run([sys.executable, "-m", "styleforge_lib", "draw"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
