"""The Hopper convolutions on the emulator, against float64: every layer, every way of loading, ragged sizes."""

import pytest
import torch
import torch.nn.functional as F

from styleforge_lib.ops import conv2d_hopper
from styleforge_lib.ops.conv2d_hopper import LAYERS, Load
from styleforge_lib.ops.elementwise import compiled
from styleforge_lib.ops.layer import Norm, close_planes, plane_sums

PLAIN, NORM, ADD = Load(), Load(norm=True, relu=True), Load(norm=True, residual=True)
EPS = 1e-5


def reference(v, weight, stride, upsample):
    y = v.double().permute(0, 3, 1, 2)
    if upsample:
        y = F.interpolate(y, scale_factor=2, mode="nearest")
    y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), weight.double(), stride=stride)
    return y.permute(0, 2, 3, 1)


def of_norm(x, weight, bias):
    """Scale and shift of an instance norm over NHWC planes, float64 [N, C]."""
    x = x.double()
    scale = weight.double() / (x.var((1, 2), unbiased=False) + EPS).sqrt()
    return scale, bias.double() - x.mean((1, 2)) * scale


def run(layer, load, images, height, width, dtype=torch.float16, mean=0.0, spread=1.0, overlap=False, keeps=True):
    channels_in, channels_out, stride, upsample = layer
    torch.manual_seed(height * width)
    x = (torch.randn(images, height, width, channels_in) * spread + mean).to(dtype)
    residual = torch.randn(x.shape).to(dtype) if load.residual else None
    weight = (torch.randn(channels_out, channels_in, 3, 3) / (9 * channels_in) ** 0.5).to(dtype)
    scale, shift = of_norm(x, torch.rand(channels_in) + 0.5, torch.randn(channels_in))
    weight_out, bias_out = torch.rand(channels_out) + 0.5, torch.randn(channels_out)
    size = (2 * height, 2 * width) if upsample else (-(-height // stride), -(-width // stride))
    out = torch.full((images, *size, channels_out), torch.nan, dtype=dtype)
    kept = torch.full_like(x, torch.nan) if stride == 1 and keeps else None
    sums = plane_sums(images, x.device)
    affine_out = torch.full((images, channels_out, 2), torch.nan)
    conv2d_hopper.launch(
        x,
        conv2d_hopper.pack(weight, stride=stride, upsample=upsample),
        out,
        layer=layer,
        load=load,
        affine=torch.stack([scale, shift], -1).float().contiguous() if load.norm else None,
        residual=residual,
        kept=kept,
        sums=sums,
        arch="sm_90a",
        overlap=overlap,
    )
    close_planes(sums, Norm(weight_out, bias_out, EPS), affine_out, out, "sm_90a", overlap)
    v = x.double()
    if load.norm:
        v = v * scale[:, None, None] + shift[:, None, None]
    if load.residual:
        v = v + residual.double()
    v = (v.relu() if load.relu else v).to(dtype)
    assert not sums.any(), "left zero, for the next launch"
    if kept is not None:
        assert torch.allclose(kept.double(), v.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    expected = reference(v, weight, stride, upsample)
    affine = torch.stack(of_norm(out, weight_out, bias_out), -1)  # of what was written
    return out, expected, affine_out, affine


PAIRS = [(layer, load) for layer in LAYERS for load in (PLAIN, NORM, ADD) if layer[2] == 1 or not load.residual]


@pytest.mark.parametrize(("layer", "load"), PAIRS, ids=str)
def test_against_float64(layer, load):
    out, expected, affine_out, affine = run(layer, load, 1, 19, 11)
    # Rounding v, the folded weights and out to 16 bits: three errors of at most 2^-11, averaged over the sum.
    assert (out.double() - expected).norm() <= 5e-4 * expected.norm()
    assert (out.double() - expected).abs().max() <= 2e-3 * expected.abs().max()
    assert torch.allclose(affine_out.double(), affine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("size", [(1, 2, 2), (2, 3, 5)], ids=str)
def test_small_and_several(layer, size):
    out, expected, _, _ = run(layer, PLAIN, *size)
    assert (out.double() - expected).abs().max() <= 2e-3 * expected.abs().max()


def test_phases_together_and_apart_are_the_same(monkeypatch):
    """One block makes both phases of a tile from the pixels that it has loaded, or each has a block of its own."""
    made = []
    for processors in (0, 1000):
        monkeypatch.setattr(conv2d_hopper, "multiprocessors", lambda device, processors=processors: processors)
        made.append(run(LAYERS[1], ADD, 2, 19, 11, keeps=False))
        out, expected, affine_out, affine = made[-1]
        assert (out.double() - expected).norm() <= 5e-4 * expected.norm()
        assert torch.allclose(affine_out.double(), affine, rtol=1e-5, atol=1e-5)
    together, apart = made
    assert torch.equal(together[0], apart[0])
    assert torch.equal(together[2], apart[2])


@pytest.mark.parametrize("layer", LAYERS[:2], ids=str)
def test_what_is_not_kept_changes_nothing(layer):
    kept, plain = (run(layer, ADD, 1, 3, 9, keeps=keeps) for keeps in (True, False))
    assert torch.equal(kept[0], plain[0])
    assert torch.equal(kept[2], plain[2])


def test_bfloat16():
    out, expected, affine_out, affine = run(LAYERS[0], NORM, 1, 5, 9, dtype=torch.bfloat16)
    assert (out.double() - expected).norm() <= 4e-3 * expected.norm()
    assert torch.allclose(affine_out.double(), affine, rtol=1e-5, atol=1e-5)


def test_a_mean_far_from_zero():
    """The statistics are those of the numbers written, from float32 sums of tiles around one of their own."""
    out, expected, affine_out, affine = run(LAYERS[0], PLAIN, 1, 18, 9, mean=500.0, spread=0.5)
    assert (out.double() - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert torch.allclose(affine_out[..., 0].double(), affine[..., 0], rtol=1e-4)


def test_constant_planes_have_no_variance():
    """Their sums are not float16 numbers: the statistics must be those of what is written."""
    x, weight = torch.full((1, 5, 9, 128), 1.1).half(), torch.ones(128, 128, 3, 3).half()
    out, sums, affine = torch.full_like(x, torch.nan), plane_sums(1, x.device), torch.full((1, 128, 2), torch.nan)
    conv2d_hopper.launch(x, conv2d_hopper.pack(weight), out, layer=LAYERS[0], load=PLAIN, sums=sums, arch="sm_90a")
    close_planes(sums, Norm(eps=EPS), affine, out, "sm_90a")
    assert out[0, 0, 0, 0] == out.max() == out.min()
    assert torch.allclose(affine[..., 0], torch.tensor(EPS**-0.5))
    assert (out[:, 0, 0] * affine[..., 0] + affine[..., 1]).abs().max() < 0.05  # of numbers near 4e5: one float32


def test_a_nan_stays_one():
    out, _, affine_out, _ = run(LAYERS[0], PLAIN, 2, 5, 5, mean=torch.inf)
    assert out.isnan().all()
    assert affine_out.isnan().all()


# ---- launches that overlap the kernel before -------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "load"), [(LAYERS[0], ADD), (LAYERS[2], NORM)], ids=str)
def test_an_overlapping_launch_computes_the_same(layer, load):
    expected, got = (run(layer, load, 2, 3, 5, overlap=overlap) for overlap in (False, True))
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[2], expected[2])


@pytest.mark.parametrize(
    ("layer", "load", "early"),
    [(layer, ADD if layer[2] == 1 else NORM, True) for layer in LAYERS] + [(LAYERS[0], NORM, False)],
    ids=str,
)
def test_before_the_wait_an_overlapping_launch_fetches_weights_alone(layer, load, early):
    kernel, plain = (conv2d_hopper._kernel(layer, load, torch.float16, "sm_90a", way, early) for way in (True, False))
    ptx, program = kernel.module.ptx, kernel.module.program
    assert {name for _, name in program.before_the_wait(kernel.entry)} <= {
        "cp.async.bulk.shared_cluster.global.mbarrier_complete_tx_bytes"
    }
    assert program.end_without_wait(kernel.entry) is None
    assert "ld.global.nc" not in ptx, "others write its inputs while it runs"
    assert ptx.count("griddepcontrol.launch_dependents") == ptx.count("griddepcontrol.wait") == 1
    assert (ptx.index("griddepcontrol.launch_dependents") < ptx.index("griddepcontrol.wait")) == early
    assert "griddepcontrol" not in plain.module.ptx


def test_before_the_wait_close_planes_reads_weight_and_bias_alone():
    kernel = compiled("close_planes", torch.device("cpu"), "sm_90a", OVERLAP=1).only
    lines = kernel.module.text.splitlines()
    early = kernel.module.program.before_the_wait(kernel.entry)
    assert len(early) == 2
    assert all("weight[channel]" in lines[line - 1] and name.startswith("ld.") for line, name in early)
    assert kernel.module.program.end_without_wait(kernel.entry) is None
    assert "ld.global.nc" not in kernel.module.ptx
