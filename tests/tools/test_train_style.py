"""train_style and contact_sheet on tiny pictures and random loss networks: that they train, resume, stop and save."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from styleforge_lib.models.checkpoints import load_style

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import contact_sheet
import train_style


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny layers on a shared machine: threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loss_network(path, widths, *, separator):
    """Write random VGG-19 weights whose activations neither die nor explode."""
    generator = torch.Generator().manual_seed(1)
    tensors = {"conv0.weight": torch.eye(3)[..., None, None] * 2, "conv0.bias": torch.full((3,), -1.0)}
    before = 3
    for name, width in widths.items():
        scale = (2 / (9 * before)) ** 0.5
        tensors[f"conv{name[0]}{separator}{name[1]}.weight"] = (
            torch.randn(width, before, 3, 3, generator=generator) * scale
        )
        tensors[f"conv{name[0]}{separator}{name[1]}.bias"] = torch.zeros(width)
        before = width
    torch.save(tensors, path)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    draw = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(3):
        small = Image.fromarray(draw.integers(0, 256, (8, 10 + number, 3), dtype=np.uint8))
        small.resize((70 + 5 * number, 60), Image.Resampling.BICUBIC).save(folder / "photos" / f"{number}.png")
    stripes = np.zeros((48, 64, 3), np.uint8)
    stripes[:, ::8] = (200, 40, 10)
    Image.fromarray(stripes).save(folder / "painting.png")
    loss_network(folder / "full.pth", {"11": 4, "12": 4, "21": 8, "22": 8, "31": 8}, separator="_")
    loss_network(folder / "deep.pth", dict.fromkeys(["11", "12", "21", "22", "31", "41"], 4), separator="")
    return folder


def arguments(assets, out, **changes):
    options = {
        "painting": assets / "painting.png",
        "photos": assets / "photos",
        "backbone": assets / "full.pth",
        "deep-backbone": assets / "deep.pth",
        "out": out,
        "iterations": 6,
        "batch": 2,
        "crop": 32,
        "style-size": 48,
        "device": "cpu",
        **changes,
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def prepared(assets, **changes):
    recipe = train_style.Recipe(**{"batch": 2, "crop": 32, "style_size": (48,), "iterations": 6, **changes})
    device = torch.device("cpu")
    loss = train_style.PerceptualLoss(
        recipe,
        contact_sheet.open_photo(str(assets / "painting.png")),
        train_style.load_loss_network(assets / "full.pth", "--backbone", torch.float32),
        train_style.load_loss_network(assets / "deep.pth", "--deep-backbone", torch.float32),
        device,
    )
    return train_style.Training(recipe, train_style.Photos(assets / "photos", recipe.crop, device), loss)


def weights(training):
    return torch.cat([parameter.detach().flatten() for parameter in training.net.parameters()])


def test_the_loss_falls(assets):
    training = prepared(assets, iterations=400, learning_rate=1e-2)
    seen, photos = training.photos.batch(training.recipe, 0)
    with torch.no_grad():
        before = training.loss(training.net(seen), photos)[0]
    for _ in range(25):
        training.step()
    with torch.no_grad():
        after = training.loss(training.net(seen), photos)[0]
    assert after < 0.8 * before


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(assets, tmp_path):
    whole = prepared(assets)
    while whole.progress < 1:
        whole.step()
    first = prepared(assets)
    for _ in range(3):
        first.step()
    first.save(tmp_path / "state.pt")
    second = prepared(assets)
    assert not torch.equal(weights(first), weights(second))
    second.restore(tmp_path / "state.pt")
    assert second.iteration == 3
    while second.progress < 1:
        second.step()
    assert torch.equal(weights(whole), weights(second))
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_another_seed_gives_other_weights(assets):
    one, other = prepared(assets), prepared(assets, seed=1)
    one.step()
    other.step()
    assert not torch.equal(weights(one), weights(other))


def test_the_command_writes_a_style_that_loads(assets, tmp_path, capsys):
    out = tmp_path / "styles" / "my.style"
    train_style.main(arguments(assets, out, **{"preview-photo": assets / "photos" / "0.png", "preview-size": 256}))
    facts = json.loads(capsys.readouterr().out)
    assert facts["iterations_done"] == 6
    assert facts["photos"] == 3
    assert set(facts["losses"]) == {"loss", "content", "style", "tv", "range"}
    path = tmp_path / "styles" / "my.style.safetensors"
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["training"]) == facts
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert {name.endswith("conv2d.weight") for name, dtype in dtypes.items() if dtype == torch.float16} == {True}
    assert {name.endswith("conv2d.weight") for name, dtype in dtypes.items() if dtype == torch.float32} == {False}
    painted = load_style(path)(torch.full((1, 3, 32, 32), 128.0))
    assert painted.isfinite().all()
    with Image.open(tmp_path / "styles" / "my.style.preview.jpg") as preview:
        assert preview.width > 256


def test_the_end_of_the_seconds_is_an_end_of_the_schedule(assets, tmp_path, capsys):
    train_style.main(arguments(assets, tmp_path / "s", iterations=100000, **{"max-seconds": 2}))
    facts = json.loads(capsys.readouterr().out)
    assert 0 < facts["iterations_done"] < 100000
    training = prepared(assets, iterations=100000, max_seconds=2.0)
    training.iteration = 1000
    begin = training.learning_rate
    training.seconds = 2.0
    assert training.progress == 1
    assert training.learning_rate == pytest.approx(0.01 * begin, rel=0.01)


def test_a_loss_that_is_no_number_stops_in_one_line(assets, tmp_path):
    with pytest.raises(SystemExit) as stop:
        train_style.main(arguments(assets, tmp_path / "s", iterations=40, **{"learning-rate": 1e30}))
    assert "--learning-rate" in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not list(tmp_path.glob("s*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"painting": "nowhere.png"}, "--painting"),
        ({"photos": "nowhere"}, "--photos"),
        ({"backbone": "nowhere.pth"}, "--backbone"),
        ({"init": "no_such_style"}, "no_such_style"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(assets, tmp_path, changes, words):
    with pytest.raises(SystemExit) as stop:
        train_style.main(arguments(assets, tmp_path / "s", **changes))
    assert words in str(stop.value)
    assert "\n" not in str(stop.value)


def test_a_state_of_another_recipe_is_refused(assets, tmp_path):
    prepared(assets).save(tmp_path / "s.state.pt")
    with pytest.raises(SystemExit, match="--style-weight"):
        train_style.main([*arguments(assets, tmp_path / "s", **{"style-weight": 1}), "--resume"])


def test_the_contact_sheet_has_a_row_a_style_and_a_column_a_size(tmp_path):
    black = Image.new("RGB", (40, 30))
    sheet = contact_sheet.contact_sheet(
        {"white": lambda image: Image.new("RGB", image.size, "white")}, [black], [30, 60], cell=32
    )
    margin, label = contact_sheet.MARGIN, contact_sheet.LABEL_HEIGHT
    assert sheet.size == (margin + 2 * (32 + margin), margin + 2 * (32 + label + margin))
    assert sheet.getpixel((margin + 4, margin + label + 4)) == (0, 0, 0)
    assert sheet.getpixel((margin + 4, sheet.height - margin - 10)) == (255, 255, 255)
