"""The convolutions on tensor cores: every layer of the network and others, hostile sizes, against float64."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from styleforge_lib.lab import check
from styleforge_lib.ops import convolution
from styleforge_lib.ops.convolution import HopperConvolution, kernel_for, prepare
from styleforge_lib.ops.layer import Layer, Norm, fold, plane_sums, swizzled, to_numbers
from styleforge_lib.ops.operator import Case, Cost, Operator
from styleforge_lib.runtime.kernel import chosen_device

DEVICE = "cuda" if chosen_device() == "gpu" else "cpu"
FUSED = {"affine": True, "relu_in": True, "statistics": True}
LAYERS = {
    "conv2": Layer(c_in=32, c_out=64, stride=2, **FUSED),
    "conv3": Layer(c_in=64, c_out=128, stride=2, **FUSED),
    "first of a block": Layer(c_in=128, c_out=128, affine=True, residual=True, materialise=True, statistics=True),
    "second of a block": Layer(c_in=128, c_out=128, **FUSED),
    "deconv1": Layer(c_in=128, c_out=64, upsample=True, affine=True, residual=True, statistics=True),
    "deconv2": Layer(c_in=64, c_out=32, upsample=True, **FUSED),
    "5x5, bias, ReLU": Layer(c_in=48, c_out=16, kernel=5, bias=True, relu_out=True),
    "stride 3": Layer(c_in=32, c_out=96, stride=3, bias=True, statistics=True),
    "several passes": Layer(c_in=16, c_out=256, bias=True, statistics=True),
    "1x1": Layer(c_in=16, c_out=32, kernel=1, statistics=True),
    "written as well": Layer(c_in=16, c_out=16, affine=True, relu_in=True, materialise=True),
    "conv1": Layer(c_in=3, c_out=32, kernel=9, statistics=True, picture_in=torch.float32),
    "conv1 of uint8, 3x3, ReLU": Layer(c_in=3, c_out=16, relu_out=True, bias=True, picture_in=torch.uint8),
    "deconv3": Layer(c_in=32, c_out=3, kernel=9, affine=True, relu_in=True, bias=True, picture_out=torch.float32),
    "deconv3 to float16, 3x3": Layer(c_in=16, c_out=3, picture_out=torch.float16),
}
SMALL = ((3, 3, 5), (1, 2, 2))


def sizes_of(layer):
    """Pictures of several tiles, ragged; of a part of one; the smallest. Wide layers take the emulator long."""
    if layer.kernel == 9:
        return ((1, 17, 33), (3, 5, 6))
    if layer.stride > 1:  # a plane of one pixel has no deviation to divide by
        return ((1, 19, 35), (3, 3, 5))
    return ((1, 17, 33), *SMALL) if layer.c_in < 64 else ((1, 17, 9), (2, 2, 3))


@pytest.fixture(autouse=True)
def on_the_kernels_device(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")


def values_of(layer, size, generator, dtype, mean=0.0):
    """Draw x, weight, bias, affine, residual; None for what the layer has not."""
    images, height, width = size

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=generator) * scale

    shape = (images, 3, height, width) if layer.picture_in else (images, height, width, layer.c_in)
    x = normal(*shape).add(mean).to(dtype)
    if layer.picture_in:
        x = torch.rand(shape, generator=generator).mul(255).to(layer.picture_in)
    weight = normal(layer.c_out, layer.c_in, layer.kernel, layer.kernel, scale=0.3 / layer.kernel)
    affine = normal(images, layer.c_in, 2) if layer.affine else None
    return (
        x,
        weight if layer.numbers == "tf32" else weight.to(dtype).float(),
        normal(layer.c_out) if layer.bias else None,
        affine,
        torch.randn(x.shape, generator=generator).to(dtype) if layer.residual else None,
    )


def loaded(layer, x, affine, residual):
    """Return what the convolution multiplies, in the dtype of x."""
    v = x
    if affine is not None:
        v = v * affine[:, None, None, :, 0].to(x.dtype) + affine[:, None, None, :, 1].to(x.dtype)
    v = v.relu() if layer.relu_in else v
    return v if residual is None else v + residual


def reference(layer, x, weight, bias, affine, residual):
    """Return all that the layer writes, in the inputs' own dtype: out, then v, then out as the next norm makes it."""
    v = loaded(layer, x.to(weight.dtype) if layer.picture_in else x, affine, residual)
    nchw = v if layer.picture_in else v.permute(0, 3, 1, 2)
    nchw = functional.interpolate(nchw, scale_factor=2) if layer.upsample else nchw
    nchw = functional.pad(nchw, (layer.kernel // 2,) * 4, mode="reflect")
    bias = None if bias is None else bias.to(v.dtype)
    out = functional.conv2d(nchw, weight.to(v.dtype), bias, stride=layer.stride)
    out = out.relu() if layer.relu_out else out
    found = [out if layer.picture_out else out.permute(0, 2, 3, 1).contiguous()]
    if layer.picture_out:
        return (found[0].to(torch.float64 if v.dtype is torch.float64 else layer.picture_out),)
    if layer.materialise:
        found.append(v)
    if layer.statistics:
        normed = torch.instance_norm(out, None, None, None, None, True, 0.0, 1e-3, False)
        found.append(normed.permute(0, 2, 3, 1).contiguous())
    return tuple(found)


def operator_of(layer, sizes=None, arch=None):
    """Describe a layer for `check`."""
    dtype, sizes = layer.dtype, sizes or sizes_of(layer)

    def launch(x, weight, bias, affine, residual, out, *more):
        more = list(more)
        convolve, ways = prepare(layer, weight, bias, Norm(eps=1e-3), arch=arch), {"residual": residual}
        if layer.materialise:
            ways["materialised"] = more.pop(0)
        if layer.statistics:
            ways["sums"] = plane_sums(len(x), x.device)
            ways["affine_out"] = torch.full((len(x), layer.c_out, 2), torch.nan, device=x.device)
        convolve(x, out, affine=affine, **ways)
        if layer.statistics:
            assert not ways["sums"].any(), "the sums are to be left as they were found"
            scale, shift = ways["affine_out"][:, None, None].unbind(-1)
            more[0].copy_(out.float() * scale + shift)

    def case(size):
        return Case("drawn", lambda generator, _: values_of(layer, size, generator, dtype))

    def rounded(x, weight, bias, affine, residual):
        if layer.picture_in:
            x, weight = (to_numbers(v.float(), layer.numbers) for v in (x, weight))
            return reference(layer, x, weight, bias, affine, residual)
        if layer.numbers == "tf32":  # what the tensor core makes of float32: its inputs lose bits, its sums do not
            values = loaded(layer, x, affine, residual)
            written = (values,) if layer.materialise else ()
            plain = replace(layer, affine=False, relu_in=False, residual=False, materialise=False)
            out, *more = reference(plain, *(to_numbers(v, "tf32") for v in (values, weight)), bias, None, None)
            return (out, *written, *more)
        return reference(layer, x, weight, bias, affine, residual)

    names = ["out", *(["materialised"] if layer.materialise else []), *(["normed"] if layer.statistics else [])]
    sizes = [size for size in sizes if layer.upsample or min(size[1:]) > layer.kernel // 2]
    return Operator(
        name="convolution",
        inputs=("x", "weight", "bias", "affine", "residual"),
        outputs=tuple(names),
        reference=lambda *values: reference(layer, *values),
        pytorch=rounded,
        launch=launch,
        cases=tuple(case(size) for size in sizes),
        cost=lambda *values: Cost(0, 0),
        dtypes=(dtype,),
        pooled=(-4, -3, -2, -1),
    )


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_float16(layer):
    operator = operator_of(layer)
    assert check(operator, operator.launch, dtype=torch.float16)


@pytest.mark.parametrize("numbers", ["bfloat16", "tf32"])
@pytest.mark.parametrize("name", ["conv1", "conv2", "first of a block", "deconv2", "5x5, bias, ReLU", "deconv3"])
def test_other_numbers(name, numbers):
    layer = replace(LAYERS[name], numbers=numbers)
    operator = operator_of(layer, sizes_of(layer)[1:2])
    assert check(operator, operator.launch, dtype=layer.dtype)


@pytest.mark.skipif(DEVICE == "cuda", reason="the emulator runs the code of any architecture, a card its own")
@pytest.mark.parametrize("name", ["conv1", "conv2", "first of a block", "deconv2", "deconv3"])
@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_90a"])
def test_other_architectures(name, arch):
    operator = operator_of(LAYERS[name], sizes_of(LAYERS[name])[1:2], arch)
    assert check(operator, operator.launch, dtype=torch.float16)


def launched(layer, values):
    """Launch a layer, and return its output and its scale and shift."""
    x, weight, bias, affine, residual = (None if v is None else v.to(DEVICE) for v in values)
    out = torch.full(layer.out_shape(x.shape), torch.nan, dtype=layer.dtype, device=DEVICE)
    made = torch.full((len(x), layer.c_out, 2), torch.nan, device=DEVICE)
    given = {"affine": affine, "residual": residual, "sums": plane_sums(len(x), x.device), "affine_out": made}
    prepare(layer, weight, bias)(x, out, **given)
    return out.cpu(), made.cpu()


@pytest.mark.parametrize(("numbers", "size"), [("float16", 1.0), ("tf32", 1 / 8), ("float32", 1 / 8)])
@pytest.mark.parametrize("upsample", [False, True])
def test_a_mean_of_4000_leaves_the_variance_right(upsample, numbers, size):
    """The moments are those of the numbers that are written, and only distances from a mean are squared."""
    layer = Layer(c_in=16, c_out=32, upsample=upsample, statistics=True, bias=True, numbers=numbers)
    generator = torch.Generator().manual_seed(0)
    x, weight, _, _, _ = values_of(layer, (2, 19, 21), generator, torch.float16)
    weight = (weight * size).half().float()
    bias = torch.full((32,), 4000.0)
    out, merged = launched(layer, (x.to(layer.dtype), weight, bias, None, None))
    out = out.double()
    deviation = (out.var((1, 2), unbiased=False) + 1e-5).sqrt()
    assert 0.4 * size < deviation.min() < deviation.max() < 4 * size
    torch.testing.assert_close(merged[..., 0].double(), 1 / deviation, rtol=2e-6, atol=0)
    off = merged[..., 1].double() + out.mean((1, 2)) * merged[..., 0]  # at the mean, 0 is wanted
    assert off.abs().max() < (4000 / deviation).max() * torch.finfo(torch.float32).eps  # shift is one float32


@pytest.mark.parametrize("numbers", ["float16", "float32"])
def test_constant_planes_have_no_variance(numbers):
    layer = Layer(c_in=16, c_out=16, statistics=True, numbers=numbers)
    x = torch.full((1, 9, 11, 16), 3.0, dtype=layer.dtype)
    weight = torch.ones(16, 16, 3, 3)
    out, merged = launched(layer, (x, weight, None, None, None))
    assert (out == 432).all()
    torch.testing.assert_close(merged[0, :, 0], torch.full((16,), 1e-5**-0.5))


@pytest.mark.parametrize("numbers", ["float16", "float32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_own_image_alone(value, numbers):
    layer = Layer(c_in=16, c_out=16, statistics=True, affine=True, relu_in=True, numbers=numbers)
    values = values_of(layer, (2, 9, 12), torch.Generator().manual_seed(1), layer.dtype)
    values[0][1, 4, 6, 3] = value
    values[3][:, 3] = torch.tensor([1.0, 0.0])
    out, merged = launched(layer, values)
    assert out[0].isfinite().all()
    assert merged[0].isfinite().all()
    near = torch.zeros(9, 12, dtype=torch.bool)
    near[3:6, 5:8] = True
    assert not out[1][near].isfinite().any()
    assert out[1][~near].isfinite().all()
    assert merged[1].isnan().all()


def test_a_large_batch_of_small_pictures():
    layer = Layer(c_in=16, c_out=16, statistics=True)
    operator = operator_of(layer, ((40, 2, 3),))
    assert check(operator, operator.launch, dtype=torch.float16)


@pytest.mark.parametrize("size", [(1, 5), (5, 1)])
def test_a_reflection_wider_than_the_picture_is_refused(size):
    layer = Layer(c_in=16, c_out=16)
    with pytest.raises(ValueError, match=f"x is {size[0]}x{size[1]}, and reflection padding of 1 needs at least 2x2"):
        layer.out_shape((1, *size, 16))


def test_a_layer_that_no_kernel_takes_is_refused():
    for layer in (Layer(c_in=12, c_out=16), Layer(c_in=16, c_out=20), Layer(c_in=16, c_out=16, kernel=2)):
        with pytest.raises(ValueError, match="no kernel takes this layer on sm_80"):
            kernel_for(layer, "sm_80")
    with pytest.raises(ValueError, match="no kernel takes this layer on sm_75"):
        kernel_for(Layer(c_in=16, c_out=16, numbers="bfloat16"), "sm_75")


def test_every_layer_of_the_network_fits_every_architecture():
    for name in ("conv1", "conv2", "conv3", "first of a block", "second of a block", "deconv1", "deconv2", "deconv3"):
        for arch in ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_120a"):
            kernel_for(LAYERS[name], arch)
            if arch != "sm_75":
                kernel_for(replace(LAYERS[name], numbers="bfloat16"), arch)
                kernel_for(replace(LAYERS[name], numbers="tf32"), arch)


def test_the_first_kernel_that_takes_a_layer_computes_it():
    assert kernel_for(LAYERS["conv3"], "sm_90a") is HopperConvolution
    assert [kernel.__name__ for kernel in convolution.KERNELS if kernel.takes(LAYERS["conv3"], "sm_90a")] == [
        "HopperConvolution",
        "TensorCoreConvolution",
    ]
    assert kernel_for(LAYERS["conv3"], "sm_80").__name__ == "TensorCoreConvolution"


def test_hopper_has_the_face_of_the_others():
    if DEVICE == "cuda" and convolution.architecture(torch.device("cuda:0")) != "sm_90a":
        pytest.skip("needs a Hopper card, or none at all")
    operator = operator_of(LAYERS["deconv1"], SMALL[:1], "sm_90a")
    assert check(operator, operator.launch, dtype=torch.float16)


def test_folded_phases_are_the_upsampled_convolution():
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    padded = functional.pad(functional.interpolate(x, scale_factor=2), (1,) * 4, mode="reflect")
    expected = functional.conv2d(padded, weight)
    clamped, folded = functional.pad(x, (1,) * 4, mode="replicate"), fold(weight)
    for phase in range(4):
        a, b = divmod(phase, 2)
        got = functional.conv2d(clamped, folded[phase])[:, :, a : a + 4, b : b + 7]
        torch.testing.assert_close(got, expected[:, :, a::2, b::2])


@pytest.mark.parametrize("count", [2, 4, 6, 8, 16])
def test_swizzled_rows_meet_no_bank_twice(count):
    """Eight rows that ldmatrix reads together lie in eight different sixteens of 128 bytes."""
    place = torch.arange(count)[None, :, None].expand(64, count, 1).contiguous()
    found = swizzled(place)[..., 0]
    for row in range(0, 64, 8):
        for group in range(count if count != 6 else 0):
            at = [int((found[r] == group).nonzero()) + r * count for r in range(row, row + 8)]
            assert len({position % 8 for position in at}) == 8
    assert (found.sort(1).values == torch.arange(count)).all()
