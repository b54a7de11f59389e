"""Instance norm through the copy engine, on the emulator: small chunks, so that small tensors take long ways."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from styleforge_lib.lab import check
from styleforge_lib.ops import instance_norm_hopper as hopper
from styleforge_lib.ops.instance_norm import DTYPES, EPS, FUSED, fused_reference
from styleforge_lib.runtime.kernel import compile_cuda

norm = importlib.import_module("styleforge_lib.ops.instance_norm")  # `ops.instance_norm` is the function

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
both_layouts = pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
ROUNDING = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}  # of results up to 1, half an ulp and more


def shrink(patch):
    """Let blocks have 64 threads that hold five chunks of 1 KB, two of them in registers."""
    for name, value in (("COPY_THREADS", 64), ("CHUNK", 1024), ("SLOTS", 3), ("KEPT", 2)):
        patch.setattr(hopper, name, value)


@pytest.fixture
def small_chunks(monkeypatch):
    shrink(monkeypatch)


def laid(value, last):
    return value if value is None or not last else value.permute(0, 2, 3, 1).contiguous()


def run(x, weight=None, bias=None, residual=None, relu=False, *, last, processors=8, saved=None):
    """Return the kernel's result for NCHW tensors, laid out as NHWC where `last`."""
    x, residual = laid(x, last), laid(residual, last)
    out = torch.full_like(x, torch.nan)
    together = x.shape[3] if last else 1
    assert hopper.takes(x, residual, out, together=together)
    launch = hopper.planned(x, EPS, relu, together=together, processors=processors, arch="sm_90a")
    launch(x, weight, bias, residual, out, saved)
    return out.permute(0, 3, 1, 2) if last else out


def hold(got, x, weight=None, bias=None, residual=None, relu=False):
    wide = [None if value is None else value.double() for value in (x, weight, bias, residual)]
    expected = fused_reference(*wide, relu, EPS)
    tolerance = ROUNDING[x.dtype] * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


def fitting(last, processors):
    """Describe the operator with its hostile cases, each repeated until the kernel takes its shape."""

    def taken(case):
        def make(generator, dtype):
            x, weight, bias, residual, *more = case.make(generator, dtype)
            if last:  # sixteen channels
                x, residual = (None if v is None else v.repeat(1, 16, 1, 1)[:, :16] for v in (x, residual))
                weight, bias = (None if v is None else v.repeat(16)[:16] for v in (weight, bias))
            else:  # rows of a multiple of eight
                x, residual = (None if v is None else v.repeat(1, 1, 1, 8) for v in (x, residual))
            return laid(x, last), weight, bias, laid(residual, last), *more

        return replace(case, make=make, input_offset=0, output_offset=0)

    def turned(function):
        if not last:
            return function

        def of_nhwc(x, weight, bias, residual, *more):
            back = [None if value is None else value.permute(0, 3, 1, 2) for value in (x, residual)]
            return laid(function(back[0], weight, bias, back[1], *more), True)

        return of_nhwc

    def launch(x, weight, bias, residual, relu, eps, out):
        together = x.shape[3] if last else 1
        planned = hopper.planned(x, eps, relu, together=together, processors=processors, arch="sm_90a")
        planned(x, weight, bias, residual, out)

    return replace(
        FUSED,
        cases=tuple(taken(case) for case in FUSED.cases),
        reference=turned(FUSED.reference),
        pytorch=turned(FUSED.pytorch),
        terms=turned(FUSED.terms),
        launch=launch,
    )


@each_dtype
@both_layouts
def test_hostile_numbers_are_right(last, dtype, small_chunks):
    operator = fitting(last, processors=40)
    assert check(operator, operator.launch, dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 2),
    units=st.sampled_from([1, 2, 8, 32, 64]),
    side=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    dtype=st.sampled_from(DTYPES),
    present=st.tuples(*[st.booleans()] * 4),
    processors=st.integers(1, 9),
    last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape(images, units, side, dtype, present, processors, last, seed):
    """Parts of one chunk and of many, that stay in their slots or go there and back."""
    *here, relu = present
    lanes = 16 // dtype.itemsize
    channels = units * lanes if last else 1 + units % 5
    shape = (images, channels, side[0], side[1] if last else side[1] * lanes)
    generator = torch.Generator().manual_seed(seed)
    shapes = (shape, shape[1:2], shape[1:2], shape)
    x, *more = (torch.randn(size, generator=generator).to(dtype) for size in shapes)
    more = [value if wanted else None for value, wanted in zip(more, here, strict=True)]
    x = x + 10
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        got = run(x, *more, relu, last=last, processors=processors)
    hold(got, x, *more, relu)


def test_as_many_channels_as_it_takes(small_chunks):
    """Their scales and shifts take more room than the sums of so few threads."""
    x = torch.randn(1, 8 * hopper.MOST_UNITS, 3, 5, generator=torch.Generator().manual_seed(0)).half()
    hold(run(x, last=True), x)


@both_layouts
def test_a_part_whose_first_numbers_are_far_off_is_measured_again(last, small_chunks):
    """Measured from -9000, nothing would be left of a deviation of 0.5."""
    x = torch.randn(1, 16, 40, 48, generator=torch.Generator().manual_seed(0)) * 0.5 + 4000
    x[:, :, 0, :8] = -9000
    hold(run(x, last=last), x)


@each_dtype
@both_layouts
def test_a_constant_plane_gives_exactly_the_bias(last, dtype, small_chunks):
    x = torch.tensor([0.1, 4000.3, -7e-3, 60000.0] * 4).to(dtype).view(1, 16, 1, 1).expand(2, 16, 33, 40).contiguous()
    weight, bias = torch.randn(2, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    got = run(x, weight, bias, last=last, processors=5)
    assert torch.equal(got, bias.view(1, 16, 1, 1).expand_as(got))


def emulated(x, *, last, pieces):
    """Return (launch(words, number, blocks=None) -> out, numbers of a part) for one kernel, its blocks to be chosen."""
    laid_x = laid(x, last)
    together = x.shape[1] if last else 1
    parts = x.shape[0] * x.shape[1] // together
    size = x.numel() // parts
    length = -(-size // (pieces * together * 8)) * together * 8
    kernel = compile_cuda("instance_norm_hopper.cu", arch="sm_90a", defines=hopper.macros(x.dtype)).only

    def launch(words, number, blocks=None, patience=3):
        out = torch.full_like(laid_x, torch.nan)
        room = torch.full((4 * parts * together * (1 + pieces),), torch.nan)
        numbers = (x.shape[1], together, size, length, pieces, EPS, 0, number, patience)
        args = (laid_x, None, None, None, out, None, room, words, *numbers)
        kernel.emulate(parts * pieces, 64, args, shared_bytes=hopper.shared_bytes(), blocks=blocks)
        return out

    return launch, parts, size, length


@each_dtype
@both_layouts
def test_a_block_that_is_left_alone_works_out_the_others_numbers(last, dtype, small_chunks):
    """Nothing promises that blocks run at the same time; each of them alone writes the same bits."""
    pieces = 3
    x = (torch.randn(2, 16, 24, 33, generator=torch.Generator().manual_seed(1)) + 3).to(dtype)
    launch, parts, size, length = emulated(x, last=last, pieces=pieces)

    def run_of(blocks):
        return launch(torch.zeros(2 * parts * pieces, dtype=torch.int64), 7, blocks).view(parts, size)

    together = run_of(range(parts * pieces))
    hold(together.view(2, 24, 33, 16).permute(0, 3, 1, 2) if last else together.view(x.shape), x)
    for block in range(min(6, parts * pieces)):
        part, begin = block // pieces, block % pieces * length
        alone = run_of([block])
        written = slice(begin, begin + length)
        assert torch.equal(alone[part, written], together[part, written])
        assert alone.isnan().sum() == x.numel() - len(alone[part, written])


@both_layouts
def test_a_launch_that_a_graph_repeats_counts_itself(last, small_chunks):
    """The same arguments, number 0 among them: each time the blocks must wait for the others anew."""
    words = None
    for seed in range(3):
        x = torch.randn(1, 16, 24, 33, generator=torch.Generator().manual_seed(seed)) * (1 + seed)
        launch, parts, _, _ = emulated(x, last=last, pieces=3)
        words = torch.zeros(2 * parts * 3, dtype=torch.int64) if words is None else words
        got = launch(words, 0, patience=100)
        hold(got.permute(0, 3, 1, 2) if last else got, x)
        assert (words.view(parts, 2, 3)[:, : 2 if last else 1] == seed + 1).all()


@both_layouts
def test_the_same_bits_every_time(last, small_chunks):
    x = torch.randn(1, 16, 50, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(x, last=last), run(x, last=last))


def test_what_the_backward_pass_needs(small_chunks):
    x = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(0)) * 3 + 4000
    saved = torch.full((6, 3), torch.nan)
    run(x, last=False, processors=18, saved=saved)
    wide = x.double().view(6, -1)
    expected = 1 / (wide.var(1, unbiased=False) + EPS).sqrt()
    torch.testing.assert_close(saved[:, 0].double() + saved[:, 1], wide.mean(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(saved[:, 2].double(), expected, rtol=3e-7, atol=0)


@each_dtype
@pytest.mark.parametrize("planes", [1, 2, 4])
def test_the_pieces_of_a_plane_are_a_cluster(planes, dtype, small_chunks):
    x, residual = (torch.randn(2, 1, planes, 48, 96, generator=torch.Generator().manual_seed(4)) + 10).to(dtype)
    alone = run(x, None, None, residual, True, last=False, processors=8)
    hold(alone, x, None, None, residual, True)
    assert hopper.pieces(planes, 48 * 96, 16 // dtype.itemsize, dtype.itemsize, 8)[1] in hopper.CLUSTERS


def test_full_size_blocks():
    """As compiled for a card: a part that is longer than what a block holds."""
    x = torch.randn(1, 64, 96, 128, generator=torch.Generator().manual_seed(0)).half() + 3
    for last in (False, True):
        hold(run(x, relu=True, last=last, processors=2), x, relu=True)


def fills_a_multiprocessor(module, threads, shared_bytes):
    """Assert that the kernel flushes and spills nothing, and that one block of it has room."""
    assert not module.warnings
    assert ".ftz" not in module.ptx
    resources = module.only.resources
    assert resources.local == 0
    assert resources.occupancy(threads, shared_bytes).blocks == 1


@pytest.mark.parametrize(("arch", "cluster"), [("sm_90", 1), ("sm_90a", 1), ("sm_90a", 2), ("sm_100", 1)])
@each_dtype
def test_it_compiles_without_flushing_denormals_or_spilling(dtype, arch, cluster):
    module = compile_cuda("instance_norm_hopper.cu", arch=arch, defines=hopper.macros(dtype, cluster))
    fills_a_multiprocessor(module, hopper.COPY_THREADS, hopper.shared_bytes())


def test_what_it_takes():
    def taken(shape, together, dtype=torch.float16, offset=0):
        x = torch.empty(math.prod(shape) + 8, dtype=dtype)[offset:][: math.prod(shape)].view(shape)
        return hopper.takes(x, None, x, together=together)

    assert taken((1, 5, 5, 64), 64)
    assert taken((1, 5, 5, 512), 512)
    assert taken((1, 5, 5, 256), 256, torch.float32)
    assert not taken((1, 5, 5, 1024), 1024)
    assert not taken((1, 5, 5, 24), 24)
    assert not taken((1, 5, 5, 4), 4)
    assert not taken((1, 5, 5, 64), 64, offset=1)
    assert taken((1, 3, 4, 6), 1)
    assert not taken((1, 3, 5, 5), 1)


@settings(max_examples=200)
@given(
    parts=st.integers(1, 300),
    steps=st.integers(1, 2**22),
    step=st.sampled_from([4, 8, 64, 512]),
    itemsize=st.sampled_from([2, 4]),
    blocks=st.integers(1, 200),
)
def test_pieces_cover_every_part(parts, steps, step, itemsize, blocks):
    size = steps * step
    length, pieces = hopper.pieces(parts, size, step, itemsize, blocks)
    assert length % step == 0
    assert (pieces - 1) * length < size <= pieces * length
    assert pieces == 1 or (parts * pieces <= blocks and size * itemsize > hopper.CHUNK)


def test_planes_that_fill_a_block():
    """Of an H200: a block has room for 256 KB."""
    assert hopper.held(64, 512 * 512, 2, 132)
    assert hopper.held(128, 256 * 256, 4, 132)
    assert not hopper.held(64, 512 * 512, 4, 132)  # twice as much as they hold
    assert not hopper.held(128, 256 * 256, 2, 132)  # half as much
    assert not hopper.held(1024, 512 * 256, 2, 132)  # more than one round of blocks
    assert not hopper.held(70, 512 * 256, 2, 132)  # too few blocks


def test_the_rule_asks_for_the_copy_engine_where_there_is_one(monkeypatch):
    monkeypatch.setattr(hopper, "available", lambda device: True)
    asked = []
    monkeypatch.setattr(hopper, "planned", lambda x, eps, relu, **how: asked.append(how))
    for shape, last in (
        ((1, 8, 6, 5), True),
        ((1, 2, 1000, 1000), False),
        ((1, 2, 2000, 2000), False),
        ((2, 8, 6, 6), False),
        ((1, 6, 6, 5), True),
    ):
        x = torch.empty(shape)
        x = x.to(memory_format=torch.channels_last) if last else x
        norm.planned(x, None, None, None, False, EPS, torch.empty_like(x))
    assert asked == [
        {"together": 8, "processors": norm.EMULATED_MULTIPROCESSORS},
        {"together": 1, "processors": norm.EMULATED_MULTIPROCESSORS},
    ]
