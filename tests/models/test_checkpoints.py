"""TransformerNet against a float64 recomputation, and load_style against checkpoints of every kind."""

import os
import pathlib
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from styleforge_lib.models import checkpoints
from styleforge_lib.models.checkpoints import StyleError, list_styles, load_style
from styleforge_lib.models.transformer_net import TransformerNet

# The 62 keys of the published checkpoints of pytorch/examples (fast_neural_style), with their shapes.
CONVS = {
    "conv1": (32, 3, 9, 9),
    "conv2": (64, 32, 3, 3),
    "conv3": (128, 64, 3, 3),
    **{f"res{i}.conv{j}": (128, 128, 3, 3) for i in range(1, 6) for j in (1, 2)},
    "deconv1": (64, 128, 3, 3),
    "deconv2": (32, 64, 3, 3),
    "deconv3": (3, 32, 9, 9),
}
NORMS = {
    "in1": 32,
    "in2": 64,
    "in3": 128,
    **{f"res{i}.in{j}": 128 for i in range(1, 6) for j in (1, 2)},
    "in4": 64,
    "in5": 32,
}
PUBLISHED = {
    **{f"{name}.conv2d.weight": shape for name, shape in CONVS.items()},
    **{f"{name}.conv2d.bias": shape[:1] for name, shape in CONVS.items()},
    **{f"{name}.{part}": (channels,) for name, channels in NORMS.items() for part in ("weight", "bias")},
}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Make a state dict whose norms scale and shift, as a trained one's do."""
    generator = torch.Generator().manual_seed(7)
    state = {}
    for key, shape in PUBLISHED.items():
        state[key] = torch.randn(shape, generator=generator)
        if len(shape) == 4:
            state[key] /= (shape[1] * shape[2] * shape[3]) ** 0.5
        elif ".in" in key or key.startswith("in"):
            state[key] = state[key] * 0.3 + key.endswith("weight")
    return state


# ---- the network ----


def recomputed(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Compute the forward pass from its description, in float64 and with no module or padding of torch's."""
    state = {key: value.double() for key, value in state.items()}

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.conv2d.weight"]
        reach = weight.shape[-1] // 2
        rows, columns = (np.pad(np.arange(n), reach, mode="reflect") for n in x.shape[2:])
        return F.conv2d(x[:, :, rows][:, :, :, columns], weight, state[f"{name}.conv2d.bias"], stride)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean((2, 3), keepdim=True)
        scale, shift = (state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5) ** 0.5 * scale + shift

    def twice(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = x.double()
    x = norm("in1", conv("conv1", x)).clamp_min(0)
    x = norm("in2", conv("conv2", x, 2)).clamp_min(0)
    x = norm("in3", conv("conv3", x, 2)).clamp_min(0)
    for i in range(1, 6):
        inner = norm(f"res{i}.in1", conv(f"res{i}.conv1", x)).clamp_min(0)
        x = x + norm(f"res{i}.in2", conv(f"res{i}.conv2", inner))
    x = norm("in4", conv("deconv1", twice(x))).clamp_min(0)
    x = norm("in5", conv("deconv2", twice(x))).clamp_min(0)
    return conv("deconv3", x)


@pytest.fixture(scope="module")
def ragged(weights) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pictures of 37x53 and what float64 makes of them."""
    x = torch.rand(2, 3, 37, 53, generator=torch.Generator().manual_seed(1)) * 255
    return x, recomputed(weights, x)


def test_parameters_are_those_of_pytorch_examples():
    state = TransformerNet().state_dict()
    assert len(PUBLISHED) == 62
    assert {key: tuple(value.shape) for key, value in state.items()} == PUBLISHED


def test_network_equals_recomputation_in_float64(weights, ragged):
    x, expected = ragged
    net = TransformerNet().double()
    net.load_state_dict(weights)
    with torch.inference_mode():
        y = net(x.double())
    assert y.shape == (2, 3, 40, 56)  # rounded up to 4
    # Sixteen layers of sums of at most 1152 terms: 1e-16 each, so 1e-11 leaves room, and any wrong term is far above.
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-11 * expected.abs().max().item())


def test_network_in_float32_is_as_near_as_float32_can_be(weights, ragged):
    x, expected = ragged
    net = TransformerNet()
    net.load_state_dict(weights)
    with torch.inference_mode():
        y = net(x).double()
    # 6e-8 a rounding, grown by sixteen layers: 1e-5 of the largest value; one wrong edge pixel is 1e-2 of it.
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


# ---- checkpoints that load ----


def save(state: object, path: pathlib.Path, **options) -> pathlib.Path:
    torch.save(state, path, **options)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "other suffix"])
def test_every_form_of_file_loads_the_same_weights(form, weights, tmp_path):
    if form == "zip":
        path = save(weights, tmp_path / "style.pth")
    elif form == "legacy":
        path = save(weights, tmp_path / "style.pth", _use_new_zipfile_serialization=False)
    else:
        path = tmp_path / ("style.safetensors" if form == "safetensors" else "style.model")
        safetensors.torch.save_file(weights, path)
    net = load_style(path)
    assert isinstance(net, TransformerNet)
    assert not net.training
    state = net.state_dict()
    assert set(state) == set(weights)
    for key, value in weights.items():
        assert torch.equal(state[key], value), key


def test_deprecated_running_statistics_are_dropped(weights, tmp_path):
    old = dict(weights)
    for name, channels in NORMS.items():
        old[f"{name}.running_mean"] = torch.full((channels,), float("nan"))  # not read, so not judged
        old[f"{name}.running_var"] = torch.ones(channels)
    assert len(old) == 62 + 30
    assert set(load_style(save(old, tmp_path / "old.pth")).state_dict()) == set(PUBLISHED)


def test_other_float_types_and_layouts_become_contiguous_float32(weights, tmp_path):
    state = {key: value.half() if value.ndim == 4 else value.double() for key, value in weights.items()}
    state["conv2.conv2d.weight"] = state["conv2.conv2d.weight"].to(torch.bfloat16).permute(1, 0, 2, 3)
    state["conv2.conv2d.weight"] = state["conv2.conv2d.weight"].contiguous().permute(1, 0, 2, 3)
    net = load_style(save(state, tmp_path / "mixed.pth"))
    for key, value in net.state_dict().items():
        assert value.dtype == torch.float32
        assert value.is_contiguous()
        assert torch.equal(value, state[key].float()), key


def test_loading_leaves_the_random_seed_alone(weights, tmp_path):
    path = save(weights, tmp_path / "style.pth")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_style(path)
    assert torch.equal(torch.rand(4), expected)


def test_a_shipped_name_is_found_and_goes_before_a_file(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "STYLES_FOLDER", tmp_path)
    for name in ("great_wave", "starry_night"):
        safetensors.torch.save_file(weights, tmp_path / f"{name}.safetensors")
    assert list_styles() == ["great_wave", "starry_night"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "great_wave").write_text("no checkpoint")
    assert torch.equal(load_style("great_wave").state_dict()["in1.bias"], weights["in1.bias"])
    with pytest.raises(StyleError, match="no checkpoint"):
        load_style(tmp_path / "great_wave")
    with pytest.raises(StyleError, match=r"no style 'great_wafe': did you mean 'great_wave'\? .*starry_night"):
        load_style("great_wafe")
    with pytest.raises(StyleError, match="no style 'zzz': the shipped styles are great_wave, starry_night"):
        load_style("zzz")


@pytest.mark.parametrize("name", list_styles())
def test_shipped_style_loads_and_is_small(name):
    net = load_style(name)
    assert not net.training
    assert (checkpoints.STYLES_FOLDER / f"{name}.safetensors").stat().st_size < 3_600_000


@pytest.mark.parametrize(("file", "keys"), [("candy.pth", 92), ("mosaic_fp16.pth", 62)])
@pytest.mark.skipif("STYLEFORGE_ASSETS" not in os.environ, reason="STYLEFORGE_ASSETS names no folder of checkpoints")
def test_real_checkpoint_of_pytorch_examples(file, keys):
    path = pathlib.Path(os.environ["STYLEFORGE_ASSETS"]) / "checkpoints" / file
    state = torch.load(path, weights_only=True)
    assert len(state) == keys
    net = load_style(path)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key].float()), key
    x = torch.rand(1, 3, 40, 44, generator=torch.Generator().manual_seed(2)) * 255
    expected = recomputed(net.state_dict(), x)
    with torch.inference_mode():
        torch.testing.assert_close(net(x).double(), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


# ---- checkpoints that do not ----


def refusal(path: str | os.PathLike) -> str:
    """Return the message with which load_style refuses, which must be one line."""
    with pytest.raises(StyleError) as caught:
        load_style(path)
    message = str(caught.value)
    assert message.isprintable(), message  # so no line break either
    return message


class Malicious:
    """Unpickled by a careless loader, it creates a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "text pickle"])
def test_a_malicious_pickle_is_not_executed(form, weights, tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "style.pth"
    content = {**weights, "in1.bias": Malicious(trace)}
    if form == "zip":
        save(content, path)
    elif form == "legacy":
        save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Malicious(trace), protocol=0 if form == "text pickle" else 4))
    message = refusal(path)
    assert not trace.exists()
    if form in ("zip", "legacy"):
        assert "was not executed" in message
    if form == "pickle":
        pickle.loads(path.read_bytes())  # the bait works: a loader that executes would have been caught
        assert trace.exists()


def test_a_whole_pickled_network_is_refused(tmp_path):
    assert "state_dict()" in refusal(save(TransformerNet(), tmp_path / "net.pth"))


BIAS = "in1.bias"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(BIAS), ["'in1.bias' is missing"]),
        (lambda s: [s.pop(key) for key in list(s)[:5]], ["and 2 more are missing"]),
        (lambda s: s.update({"conv4.weight": torch.ones(1)}), ["'conv4.weight' is unknown"]),
        (lambda s: s.update({"in9.running_mean": torch.ones(1)}), ["'in9.running_mean' is unknown"]),
        (lambda s: s.update({"two\nlines": torch.ones(1)}), ["is unknown"]),
        (lambda s: s.update({BIAS: torch.ones(31)}), [BIAS, "(31,)", "(32,)"]),
        (lambda s: s.update({BIAS: torch.ones(())}), [BIAS, "()", "(32,)"]),
        (lambda s: s.update({BIAS: torch.ones(32, dtype=torch.int64)}), [BIAS, "int64"]),
        (lambda s: s.update({BIAS: torch.ones(32, dtype=torch.bool)}), [BIAS, "bool"]),
        (lambda s: s.update({BIAS: torch.ones(32, dtype=torch.complex64)}), [BIAS, "complex64"]),
        (lambda s: s[BIAS].__setitem__(31, float("nan")), [BIAS, "NaN"]),
        (lambda s: s[BIAS].__setitem__(0, -float("inf")), [BIAS, "infinity"]),
        (lambda s: s.update({BIAS: torch.full((32,), 1e300, dtype=torch.float64)}), [BIAS, "infinity"]),
        (lambda s: s.update({BIAS: torch.ones(32).to_sparse()}), [BIAS, "dense"]),
        (lambda s: s.update({BIAS: torch.ones(32, device="meta")}), [BIAS, "dense"]),
        (lambda s: s.update({"epoch": 3}), ["'epoch' holds a int"]),
        (lambda s: s.update({4: torch.ones(1)}), ["key 4"]),
        (lambda s: s.clear(), ["and 59 more are missing"]),
    ],
)
def test_a_state_dict_that_does_not_fit_names_the_key(change, words, weights, tmp_path):
    state = {key: value.clone() for key, value in weights.items()}
    change(state)
    message = refusal(save(state, tmp_path / "style.pth"))
    for word in [*words, "style.pth"]:
        assert word in message


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), None, {"state_dict": {}, "epoch": 1}])
def test_a_pickle_that_is_no_state_dict(content, tmp_path):
    assert "state dict" in refusal(save(content, tmp_path / "style.pth"))


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_truncated_at_any_place(form, weights, tmp_path):
    path = tmp_path / "style.pth"
    if form == "safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        save(weights, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for length in (1, 3, 8, 9, 100, 5000, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "style.pth" in refusal(path), length


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n" + bytes(64), b"PK\x03\x04" + bytes(64), b"\xff" * 8 + b"{}", b"\x80\x02.", b"hello"],
)
def test_a_file_that_is_no_checkpoint(content, tmp_path):
    path = tmp_path / "style.pth"
    path.write_bytes(content)
    assert "style.pth" in refusal(path)


def test_paths_that_name_no_file(tmp_path):
    (tmp_path / "empty.pth").touch()
    assert "is empty" in refusal(tmp_path / "empty.pth")
    assert "is a folder" in refusal(tmp_path)
    assert "no such checkpoint file" in refusal(tmp_path / "missing.pth")
    assert "no such checkpoint file" in refusal("missing.safetensors")
    assert "no such checkpoint file" in refusal("./missing")
    assert "no style" in refusal("two\nlines")
    assert "cannot be opened" in refusal("long" * 2000)
    refusal("")
    refusal("nul\0byte")
    if os.path.exists("/dev/zero"):
        assert "regular file" in refusal("/dev/zero")
    for wrong in (3, None, b"bytes"):
        with pytest.raises(TypeError, match="name_or_path"):
            load_style(wrong)
