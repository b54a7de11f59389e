"""Instance norm of planes that stream by, on the emulator: small chunks, so that small tensors take long ways."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_instance_norm_hopper import each_dtype, fills_a_multiprocessor, hold

from styleforge_lib.lab import check
from styleforge_lib.ops import instance_norm_stream_hopper as stream
from styleforge_lib.ops.instance_norm import EPS, FUSED
from styleforge_lib.runtime.kernel import compile_cuda


def shrink(patch):
    """Let blocks have 64 threads that hold seven chunks of 1 KB: pieces of up to two, and those behind them."""
    for name, value in (("STREAM_THREADS", 64), ("STREAM_CHUNK", 1024), ("STREAM_SLOTS", 7)):
        patch.setattr(stream, name, value)


@pytest.fixture
def small_chunks(monkeypatch):
    shrink(monkeypatch)


def run(x, weight=None, bias=None, residual=None, relu=False, *, processors=8, saved=None):
    out = torch.full_like(x, torch.nan)
    assert stream.takes(x, residual, out)
    stream.planned(x, EPS, relu, processors=processors, arch="sm_90a")(x, weight, bias, residual, out, saved)
    return out


@each_dtype
def test_hostile_numbers_are_right(dtype, small_chunks, monkeypatch):
    """The operator's cases, with rows of a multiple of eight, on blocks that have two planes each, or three."""
    monkeypatch.setattr(stream, "STREAM_CHUNK", 4096)

    def taken(case):
        def make(generator, dtype):
            x, weight, bias, residual, *more = case.make(generator, dtype)
            x, residual = (None if v is None else v.repeat(1, 1, 1, 8) for v in (x, residual))
            return x, weight, bias, residual, *more

        return replace(case, make=make, input_offset=0, output_offset=0)

    def launch(x, weight, bias, residual, relu, eps, out):
        planes, size = x.shape[0] * x.shape[1], math.prod(x.shape[2:])
        blocks = stream.cluster_of(size * x.element_size()) * max(1, planes // 2)
        stream.planned(x, eps, relu, processors=blocks, arch="sm_90a")(x, weight, bias, residual, out)

    cases = tuple(taken(case) for case in FUSED.cases if case.name != "larger")
    assert check(replace(FUSED, cases=cases, launch=launch), launch, dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(
    planes=st.tuples(st.integers(1, 3), st.integers(1, 7)),
    vectors=st.integers(1, 900),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    present=st.tuples(*[st.booleans()] * 4),
    processors=st.integers(1, 20),
)
def test_every_shape_is_right(planes, vectors, dtype, present, processors):
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        generator = torch.Generator().manual_seed(vectors)
        shape = (*planes, vectors, 16 // dtype.itemsize)
        x, residual = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        weight, bias = (torch.randn(shape[1], generator=generator).to(dtype) for _ in range(2))
        given = [value if there else None for value, there in zip((weight, bias, residual), present[:3], strict=True)]
        hold(run(x, *given, relu=present[3], processors=processors), x, *given, relu=present[3])


def test_the_number_of_blocks_changes_no_bit(small_chunks):
    x = torch.randn(3, 5, 40, 32, generator=torch.Generator().manual_seed(0)) + 3
    results, saved = [], []
    for processors in (1, 4, 8, 40, 500):
        saved.append(torch.zeros(15, 3))
        results.append(run(x, processors=processors, saved=saved[-1]))
    assert all(torch.equal(results[0], other) for other in results)
    assert all(torch.equal(saved[0], other) for other in saved)
    torch.testing.assert_close(saved[0][:, 0], x.mean((2, 3)).flatten())
    torch.testing.assert_close(saved[0][:, 2], (x.var((2, 3), correction=0) + EPS).rsqrt().flatten())


@pytest.mark.parametrize("first", [4000.0, -1e6, float("inf"), float("nan")])
def test_a_first_number_that_is_far_off(first, small_chunks):
    """Distances from there would lose the variance: the piece is measured again, from its mean."""
    x = torch.randn(1, 3, 40, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    x[0, 1, 0, :4] = first
    if math.isfinite(first):
        hold(run(x), x)
    else:
        got = run(x)
        assert got[0, 1].isnan().all()
        hold(got[:, ::2], x[:, ::2])


def test_full_size_blocks():
    """As compiled for a card: several planes of several chunks."""
    x = torch.randn(1, 3, 128, 300, generator=torch.Generator().manual_seed(0)).half() + 3
    hold(run(x, relu=True, processors=4), x, relu=True)


@pytest.mark.parametrize("cluster", stream.CLUSTERS)
def test_it_compiles_without_flushing_denormals_or_spilling(cluster):
    module = compile_cuda("instance_norm_stream_hopper.cu", arch="sm_90a", defines=stream.macros(cluster))
    fills_a_multiprocessor(module, stream.STREAM_THREADS, stream.shared_bytes())


def test_what_it_takes():
    def taken(shape, dtype=torch.float16, offset=0):
        x = torch.empty(math.prod(shape) + 8, dtype=dtype)[offset:][: math.prod(shape)].view(shape)
        return stream.takes(x, None, x)

    assert taken((1, 128, 256, 256))
    assert taken((1, 64, 512, 512))
    assert taken((1, 128, 256, 256), torch.float32)
    assert not taken((1, 2, 512, 512), torch.float32)  # 1 MB: a cluster holds 512 KB, and the two pieces behind
    assert not taken((1, 3, 5, 5))
    assert not taken((1, 64, 256, 256), offset=1)
    assert [stream.cluster_of(kb << 10) for kb in (1, 64, 65, 128, 256, 512, 513)] == [1, 1, 2, 2, 4, 8, None]
