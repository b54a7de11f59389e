"""Instance norm: the kernels in each launch shape against the checker, and the function against PyTorch's."""

import importlib
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from styleforge_lib import ops
from styleforge_lib.lab import check, xray
from styleforge_lib.ops.elementwise import C_TYPES
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE, chosen_device, compile_cuda

norm = importlib.import_module("styleforge_lib.ops.instance_norm")  # `ops.instance_norm` is the function

DEVICE = "cuda" if chosen_device() == "gpu" else "cpu"
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a")
each_dtype = pytest.mark.parametrize("dtype", norm.DTYPES, ids=str)
LAST = torch.channels_last


@pytest.fixture
def on_the_kernels_device(monkeypatch):
    """Where there is no GPU, ask for the emulator: a CPU tensor would otherwise go to PyTorch."""
    if DEVICE == "cpu":
        monkeypatch.setenv(DEVICE_VARIABLE, "emulator")


def cut(monkeypatch, way):
    """Cut small planes as large ones are: into pieces that blocks hold and exchange, or that two kernels sweep."""
    if way == "held":
        monkeypatch.setattr(norm, "WHOLE_BYTES", 512)
        monkeypatch.setattr(norm, "PIECE_BYTES", 512)
    if way != "whole":
        monkeypatch.setattr(norm, "WIDE_THREADS", 0)
    if way == "swept":
        monkeypatch.setattr(norm, "RESIDENT", {16: 0, 8: 0})
        monkeypatch.setattr(norm, "SWEEP_THREADS", 32)
    monkeypatch.setattr(norm, "multiprocessors", lambda device: 2000)


def compiled(file, dtype=torch.float32, arch="sm_80"):
    """Compile a file for a dtype."""
    return compile_cuda(f"{file}.cu", arch=arch, defines={"TYPE": C_TYPES[dtype]})


def tensors_of(shape, dtype=torch.float32, seed=0):
    """Draw x, weight, bias and residual."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (shape, shape[1:2], shape[1:2], shape)
    return [torch.randn(size, generator=generator).to(DEVICE, dtype) for size in shapes]


def hold(got, x, weight=None, bias=None, residual=None, relu=False, eps=norm.EPS):
    """Assert that a result is the reference, within the rounding of its dtype."""
    wide = [None if value is None else value.double() for value in (x, weight, bias, residual)]
    expected = norm.fused_reference(*wide, relu, eps)
    assert got.dtype is x.dtype
    assert got.shape == x.shape
    largest = max(1.0, float(expected.abs().max()))
    tolerance = {torch.float32: 4e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}[x.dtype] * largest
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


# ----------------------------------------------------------------------------------------------------------------------
# The kernels


def nhwc(operator):
    """Describe the same operator for tensors that lie as (N, H, W, C), so that guard zones surround them."""

    def nchw(tensor):
        return None if tensor is None else tensor.permute(0, 3, 1, 2)

    def turned(tensor):
        return None if tensor is None else tensor.permute(0, 2, 3, 1).contiguous()

    def turn(function):
        return lambda x, weight, bias, residual, *more: turned(function(nchw(x), weight, bias, nchw(residual), *more))

    def turn_case(case):
        def make(generator, dtype):
            x, weight, bias, residual, *more = case.make(generator, dtype)
            return turned(x), weight, bias, turned(residual), *more

        return replace(case, make=make)

    return replace(
        operator,
        reference=turn(operator.reference),
        pytorch=turn(operator.pytorch),
        terms=turn(operator.terms),
        cases=tuple(turn_case(case) for case in operator.cases),
        launch=lambda x, weight, bias, residual, relu, eps, out: norm.pixels(x, residual, out, eps, relu)(
            x, weight, bias, residual, out
        ),
    )


@each_dtype
def test_the_norm_alone_is_right(dtype):
    assert check("instance_norm", norm.OPERATOR.launch, dtype=dtype)


@each_dtype
def test_everything_fused_is_right(dtype):
    assert check(norm.FUSED, norm.FUSED.launch, dtype=dtype)


@each_dtype
@pytest.mark.parametrize("way", ["held", "swept"])
def test_pieces_of_planes_are_right(way, dtype, monkeypatch, launched):
    cut(monkeypatch, way)
    assert check(norm.FUSED, norm.FUSED.launch, dtype=dtype)
    assert any("statistics" in name for name in launched) is (way == "swept")


@each_dtype
def test_channels_last_is_right(dtype, monkeypatch, launched):
    monkeypatch.setattr(norm, "multiprocessors", lambda device: 108)
    operator = nhwc(norm.FUSED)
    assert check(operator, operator.launch, dtype=dtype)
    assert set(launched) == {"instance_norm_nhwc"}


@each_dtype
def test_a_plane_that_one_wide_block_holds_is_right(dtype, launched, monkeypatch):
    monkeypatch.setattr(norm, "multiprocessors", lambda device: 1)
    side = 181 if dtype is torch.float32 else 255
    x, weight, bias, residual = tensors_of((1, 1, side, side), dtype)
    out = torch.full_like(x, torch.nan)
    norm.launch_fused(x, weight, bias, residual, True, norm.EPS, out)
    hold(out, x, weight, bias, residual, True)
    assert launched == ["instance_norm_held8"]


@pytest.mark.parametrize("way", ["whole", "in two of full size", "held", "swept"])
def test_mean_4000_deviation_half_is_right_to_a_few_units(way, monkeypatch):
    """PyTorch's own error there is 5e-4."""
    cut(monkeypatch, way)
    if way == "whole":
        monkeypatch.setattr(norm, "multiprocessors", lambda device: 2)
    x = (torch.randn(1, 2, 150, 151, generator=torch.Generator().manual_seed(1)) * 0.5 + 4000).to(DEVICE)
    out = torch.empty_like(x)
    norm.launch(x, out)
    hold(out, x)


@each_dtype
@pytest.mark.parametrize("way", ["whole", "held", "swept"])
def test_a_constant_plane_gives_exactly_the_bias(way, dtype, monkeypatch):
    cut(monkeypatch, way)
    x = torch.tensor([0.1, 4000.3, -7e-3], device=DEVICE).to(dtype).view(1, 3, 1, 1).expand(2, 3, 37, 41).contiguous()
    _, weight, bias, _ = tensors_of(x.shape, dtype)
    for value in (x, x.contiguous(memory_format=LAST)):
        out = torch.empty_like(value)
        norm.launch_fused(value, weight, bias, None, False, norm.EPS, out)
        assert torch.equal(out, bias.view(1, 3, 1, 1).expand_as(out))


@each_dtype
def test_a_block_that_is_left_alone_measures_the_whole_plane(dtype):
    """Nothing promises that the blocks of a plane run at the same time; each of them alone writes the same bits."""
    x, weight, bias, residual = (value.cpu() for value in tensors_of((1, 2, 35, 37), dtype))
    size, length, pieces = 35 * 37, 512, 3
    kernel = compiled("instance_norm", dtype).kernel("instance_norm_held16")

    def run(blocks):
        out, slots = torch.full_like(x, torch.nan), torch.zeros(norm.SLOT * 2 * pieces, dtype=torch.int64)
        args = (x, weight, bias, residual, out, None, slots, 2, size, length, pieces, norm.EPS, 1, 7, 3)
        kernel.emulate(2 * pieces, 32, args, blocks=blocks)
        return out.view(2, size)

    together = run(range(2 * pieces))
    hold(together.view(x.shape), x, weight, bias, residual, True)
    for block in range(2 * pieces):
        plane, begin = block // pieces, block % pieces * length
        alone = run([block])
        written = slice(begin, begin + length)
        assert torch.equal(alone[plane, written], together[plane, written])
        assert alone.isnan().sum() == 2 * size - len(alone[plane, written])


def test_a_launch_that_a_graph_repeats_counts_itself():
    """The same arguments, number 0 among them: each time the blocks must not take the last launch's moments."""
    kernel = compiled("instance_norm").kernel("instance_norm_held8")
    slots = torch.zeros(norm.SLOT * 2 * 3, dtype=torch.int64)
    for seed in range(3):
        x = tensors_of((1, 2, 35, 37), seed=seed)[0].cpu() * (1 + seed)
        out = torch.full_like(x, torch.nan)
        args = (x, None, None, None, out, None, slots, 2, 35 * 37, 512, 3, norm.EPS, 0, 0, 100)
        kernel.emulate(6, 32, args)
        hold(out, x)
        assert (slots.view(6, norm.SLOT)[:, 3] == seed + 1).all()


@settings(max_examples=30, deadline=None)
@example((3, 29, 33, 35), (0, 0, 0), torch.float16, (False,) * 4, True, "held", 0)  # more than an A100 holds, if let
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    offsets=st.tuples(*[st.integers(0, 8)] * 3),
    dtype=st.sampled_from(norm.DTYPES),
    present=st.tuples(*[st.booleans()] * 4),
    last=st.booleans(),
    way=st.sampled_from(["whole", "held", "swept"]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_at_any_alignment(shape, offsets, dtype, present, last, way, seed):
    """Every array has its own distance from a multiple of 16 bytes, and lies between margins of NaN."""
    *given, relu = present
    x, *more = tensors_of(shape, dtype, seed)
    x = x + 10
    weight, bias, residual = (value if here else None for value, here in zip(more, given, strict=True))
    laid = [value.permute(0, 2, 3, 1) if last and value is not None else value for value in (x, residual)]
    arrays = [torch.full((x.numel() + 16,), torch.nan, dtype=dtype, device=DEVICE) for _ in range(3)]
    inner = [array[offset : offset + x.numel()] for array, offset in zip(arrays, offsets, strict=True)]
    for view, value in zip(inner, laid, strict=False):
        if value is not None:
            view.copy_(value.reshape(-1))
    views = [view.view(laid[0].shape) for view in inner]
    with pytest.MonkeyPatch.context() as patch:
        if way != "whole":
            cut(patch, way)
        if last:  # as many blocks as the emulated A100 holds at once
            patch.setattr(norm, "multiprocessors", lambda device: 108)
        beside, out = None if residual is None else views[1], views[2]
        more = (norm.EPS, relu)
        launch = (norm.pixels if last else norm.planes)(views[0], beside, out, *more)
        launch(views[0], weight, bias, beside, out)
    got = views[2].permute(0, 3, 1, 2) if last else views[2]
    hold(got, x, weight, bias, residual, relu)
    assert arrays[2].isnan().sum() == 16


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("file", "kernels"), [("instance_norm", 4), ("instance_norm_nhwc", 1)])
@each_dtype
def test_it_compiles_for_each_card_without_flushing_denormals_or_spilling(dtype, file, kernels, arch):
    module = compiled(file, dtype, arch)
    assert len(module.kernels) == kernels
    assert not module.warnings
    assert ".ftz" not in module.ptx
    for name in module.kernels:
        resources = module.kernel(name).resources
        # With 64 registers, for four blocks, an address or two waits in local memory, and no vector: that is the price
        # of `prefetch`, with which float32 planes of 1 MB were measured to take 4 % less on an H200.
        assert resources.local <= ((24 if arch == "sm_75" else 8) if "held8" in name else 0), name
        threads, resident = norm.SWEEP_THREADS, norm.SWEEP_RESIDENT
        if "nhwc" in name:
            threads, resident = norm.THREADS, norm.PIXELS_RESIDENT
        elif "held" in name:
            threads, resident = norm.THREADS, norm.RESIDENT[8 if "held8" in name else 16]
        assert resources.occupancy(threads).blocks >= resident, name
    bodies = module.ptx.split(".entry ")[1:]
    assert all("ld.global.nc.v4" in body or "ld.global.v4" in body for body in bodies)


@each_dtype
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_cards_code_runs_in_the_emulator(arch, dtype):
    x, weight, bias, residual = (value.cpu() for value in tensors_of((2, 3, 11, 13), dtype))
    for vectors in norm.RESIDENT:
        out = torch.full_like(x, torch.nan)
        slots = torch.zeros(norm.SLOT * 6 * 2, dtype=torch.int64)
        args = (x, weight, bias, residual, out, None, slots, 3, 143, 96, 2, norm.EPS, 1, 1, 100)
        compiled("instance_norm", dtype, arch).kernel(f"instance_norm_held{vectors}").emulate(12, 64, args)
        hold(out, x, weight, bias, residual, True)
    out, room = torch.full_like(x, torch.nan), torch.full((4 + 8 * 6,), torch.nan)
    views = [value.permute(0, 2, 3, 1).contiguous() for value in (x, residual)]
    result = torch.full_like(views[0], torch.nan)
    args = (views[0], weight, bias, views[1], result, room, 3, 143, 3, 85, 1, norm.EPS, 1, 1)
    compiled("instance_norm_nhwc", dtype, arch).only.emulate((2, 2), norm.THREADS, args, cooperative=True)
    hold(result.permute(0, 3, 1, 2), x, weight, bias, residual, True)


# ----------------------------------------------------------------------------------------------------------------------
# The rule for the launch shape, for the 132 multiprocessors of an H200


@pytest.mark.parametrize(
    ("side", "itemsize", "vectors", "pieces"),
    [
        (1024, 4, 16, 64),
        (512, 4, 8, 32),
        (256, 4, 8, 8),
        (128, 4, 16, 1),
        (256, 2, 8, 4),
        (128, 2, 8, 1),
        (16, 2, 8, 1),
    ],
)
def test_a_block_holds_32_kb_or_of_large_planes_and_small_ones_64(side, itemsize, vectors, pieces):
    got, threads, length, cut = norm.pieces_to_hold(side * side, itemsize, alone=False)
    assert (got, cut) == (vectors, pieces)
    assert length * itemsize <= threads * vectors * norm.VECTOR_BYTES
    assert threads == norm.THREADS or pieces == 1


@pytest.mark.parametrize(
    ("side", "itemsize", "threads", "pieces"),
    [(256, 2, 1024, 1), (181, 4, 1024, 1), (182, 4, 256, 5), (128, 4, 256, 1)],
)
def test_a_plane_of_128_kb_that_has_a_multiprocessor_is_not_cut(side, itemsize, threads, pieces):
    _, *got = norm.pieces_to_hold(side * side, itemsize, alone=True)
    assert (got[0], got[2]) == (threads, pieces)


@pytest.mark.parametrize(("planes", "threads"), [(98, 256), (99, 1024), (132, 1024), (133, 256)])
def test_wide_blocks_are_for_as_many_planes_as_fill_the_card(planes, threads, monkeypatch):
    asked, pieces = [], norm.pieces_to_hold

    def watched(*given):
        asked.append(pieces(*given)[1])
        return pieces(*given)

    monkeypatch.setattr(norm, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(norm, "pieces_to_hold", watched)
    x = torch.empty(1, planes, 256, 256, dtype=torch.float16, device=DEVICE)
    norm.planes(x, None, x, norm.EPS, False)
    assert asked == [threads]


@each_dtype
@pytest.mark.parametrize("vectors", [8, 16])
def test_a_residual_comes_in_whole_vectors(vectors, dtype):
    """The compiler had taken them apart, and each number was a load of its own: eight times the sectors in float16."""
    size = norm.THREADS * vectors * norm.VECTOR_BYTES // dtype.itemsize
    x, _, _, residual = (value.cpu() for value in tensors_of((1, 1, 1, size), dtype))
    kernel = compiled("instance_norm", dtype, "sm_80").kernel(f"instance_norm_held{vectors}")
    args = (x, None, None, residual, torch.empty_like(x), None, None, 1, size, size, 1, norm.EPS, 1, 1, 1)
    found = xray(kernel, 1, norm.THREADS, args)
    assert found.total.sectors <= found.total.ideal_sectors  # fewer: all lanes look at one number


@settings(max_examples=200)
@given(
    outer=st.integers(1, 5000),
    channels=st.integers(1, 2000),
    size=st.integers(1, 2**29),
    wide=st.booleans(),
    processors=st.integers(1, 200),
    alone=st.booleans(),
)
def test_pieces_cover_every_plane(outer, channels, size, wide, processors, alone):
    itemsize = 4 if wide else 2
    vectors, threads, length, pieces = norm.pieces_to_hold(size, itemsize, alone)
    assert (pieces - 1) * length < size <= pieces * length
    assert length * (4 if wide else 2) <= threads * vectors * norm.VECTOR_BYTES
    assert threads & (threads - 1) == 0
    assert 32 <= threads <= (norm.WIDE_THREADS if vectors == 8 and pieces == 1 else norm.THREADS)
    length, pieces = norm.pieces_to_sweep(outer, size, 4 if wide else 2, 2 * processors)
    assert (pieces - 1) * length < size <= pieces * length
    lanes = (4 if wide else 8) if channels % 8 == 0 else 1
    units = channels // lanes
    tiles, tile, rows, steps, pieces = norm.pieces_of_pixels(outer, units, size, lanes, 2 * processors)
    assert (tiles - 1) * tile < units <= tiles * tile
    assert tile * lanes <= norm.THREADS >= tile * rows > norm.THREADS - tile
    assert (pieces - 1) * rows * steps < size <= pieces * rows * steps
    assert pieces == 1 or outer * tiles * pieces <= 2 * processors


def test_the_cost_is_each_tensor_once():
    x, weight, bias, residual = tensors_of((2, 5, 10, 10), torch.float16)
    assert norm.OPERATOR.cost(x) == ops.Cost(bytes=4000, flops=6000)
    assert norm.FUSED.cost(x, weight, bias, residual, True, 1e-5) == ops.Cost(bytes=6020, flops=10000)


# ----------------------------------------------------------------------------------------------------------------------
# The function: the kernel where it applies, else PyTorch


@each_dtype
@pytest.mark.parametrize("shape", [(2, 8, 9, 7), (2, 3, 50), (1, 2, 3, 4, 5)], ids=str)
def test_the_kernel_runs_on_its_device(shape, dtype, on_the_kernels_device, launched):
    x, weight, bias, residual = tensors_of(shape, dtype)
    hold(ops.instance_norm(x), x)
    hold(ops.instance_norm(x, weight, bias, 1e-3, True, residual), x, weight, bias, residual, True, 1e-3)
    hold(ops.instance_norm(x, bias=bias), x, bias=bias)
    assert launched == ["instance_norm_held8"] * 3


def test_channels_last_stays_channels_last(on_the_kernels_device, launched):
    x, weight, bias, residual = tensors_of((2, 8, 9, 7))
    x, residual = (value.to(memory_format=LAST) for value in (x, residual))
    out = ops.instance_norm(x, weight, bias, relu=True, residual=residual)
    assert out.is_contiguous(memory_format=LAST)
    assert launched == ["instance_norm_nhwc"]
    hold(out, x, weight, bias, residual, True)


def test_a_cpu_tensor_goes_to_pytorch(monkeypatch, launched):
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    x, weight, bias, residual = (value.cpu() for value in tensors_of((2, 3, 5, 7)))
    assert torch.equal(ops.instance_norm(x), functional.instance_norm(x))
    hold(ops.instance_norm(x, weight, bias, 0.1, True, residual), x, weight, bias, residual, True, 0.1)
    assert not launched


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda x: x.double(), id="float64"),
        pytest.param(lambda x: x[..., ::2], id="strided"),
        pytest.param(lambda x: x.transpose(0, 1), id="transposed"),
        pytest.param(lambda x: x.to(memory_format=LAST).requires_grad_(), id="gradients of channels_last"),
    ],
)
def test_what_the_kernel_does_not_take_goes_to_pytorch(prepare, on_the_kernels_device, launched):
    x = prepare(torch.randn(3, 4, 6, 8, device=DEVICE))
    assert torch.equal(ops.instance_norm(x), functional.instance_norm(x))
    assert not launched


def test_gradients_of_float64_are_pytorchs(on_the_kernels_device, launched):
    tensors = [value.double().requires_grad_() for value in tensors_of((2, 3, 4, 5))]

    def fused(x, weight, bias, residual):
        return ops.instance_norm(x, weight, bias, residual=residual)

    assert torch.autograd.gradcheck(fused, tensors)
    assert not launched


def test_transformations_see_the_operation(on_the_kernels_device, launched):
    x, tangent = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        moved = torch.autograd.forward_ad.unpack_dual(ops.instance_norm(dual)).tangent
        assert moved is not None
    assert torch.allclose(torch.func.jvp(ops.instance_norm, (x,), (tangent,))[1], moved)
    mapped = torch.func.vmap(ops.instance_norm)(torch.stack([x, tangent]))
    assert torch.allclose(mapped[0], functional.instance_norm(x), atol=1e-6)
    traced = torch.jit.trace(ops.instance_norm, (x,), check_trace=False)
    assert torch.allclose(traced(tangent), functional.instance_norm(tangent), atol=1e-6)
    assert not launched


# ----------------------------------------------------------------------------------------------------------------------
# Refusals


def test_tensors_that_do_not_belong_together(on_the_kernels_device):
    x, weight, _, residual = tensors_of((2, 3, 5, 7))
    with pytest.raises(ValueError, match=r"instance_norm: weight has shape \(2,\), and x has 3 channels"):
        ops.instance_norm(x, weight[:2])
    with pytest.raises(TypeError, match="instance_norm: bias must be a torch tensor, not float"):
        ops.instance_norm(x, weight, 1.0)
    with pytest.raises(ValueError, match=r"instance_norm: residual has shape \(2, 3, 5, 1\)"):
        ops.instance_norm(x, residual=residual[..., :1])
    with pytest.raises(ValueError, match=r"instance_norm: x must be \(N, C, ...\)"):
        ops.instance_norm(weight)
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        ops.instance_norm(x[:, :, :1, :1].contiguous())
