# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Boxes of tensors: every number of axes, what lies outside, swizzles, and maps that are wrong."""

import numpy as np
import pytest
import torch

from styleforge_lib.runtime import compile_cuda, tensor_map
from styleforge_lib.runtime.emulator import EmulatorFault, Trace

HEAD = r"""
typedef unsigned long long u64;
struct __align__(64) TensorMap { char bytes[128]; };
__device__ __forceinline__ unsigned at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
#define INIT(b, n) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(at(b)), "r"(n) : "memory")
#define EXPECT(b, n) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(at(b)), "r"(n) : "memory")
#define WAIT(b, parity) asm volatile("{.reg .pred p;\nA: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n @!p bra A;\n}" :: "r"(at(b)), "r"(parity) : "memory")
#define PROXY asm volatile("fence.proxy.async.shared::cta;" ::: "memory")
#define FINISH asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;" ::: "memory")
"""


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")


def box_kernel(axes, corner="x0 + 8 * (int)blockIdx.x, x1, x2, x3, x4"):
    """One box a block, as raw bytes; the corner's coordinates come as arguments, innermost first."""
    names = ", ".join(f"%{3 + i}" for i in range(axes))
    values = ", ".join(f'"r"({value})' for value in corner.split(", ")[:axes])
    return f"""{HEAD}extern "C" __global__ void k(const __grid_constant__ TensorMap map, unsigned* y, int size, int x0, int x1, int x2, int x3, int x4) {{
  extern __shared__ __align__(1024) unsigned s[];
  __shared__ u64 b;
  if (!threadIdx.x) {{
    INIT(&b, 1); EXPECT(&b, size);
    asm volatile("prefetch.tensormap [%0];" :: "l"(&map) : "memory");
    asm volatile("cp.async.bulk.tensor.{axes}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {{{names}}}], [%2];" :: "r"(at(s)), "l"(&map), "r"(at(&b)), {values} : "memory"); // LOAD
  }}
  __syncthreads();
  WAIT(&b, 0);
  for (int i = threadIdx.x; i < size / 4; i += blockDim.x) y[blockIdx.x * (size / 4) + i] = s[i];
}}"""


def boxes(x, box, corner, *, grid=1, swizzle=0, fill="zeros", trace=None):
    """Return `grid` boxes, of which each begins eight elements behind the last; corner is in the order of x's axes."""
    count = int(np.prod(box))
    out = torch.zeros((grid, count), dtype=x.dtype)
    size = count * x.itemsize
    kernel = compile_cuda(box_kernel(x.dim()), arch="sm_90a").only
    numbers = [*reversed(corner), *[0] * (5 - len(corner))]
    args = (tensor_map(x, box, swizzle=swizzle, fill=fill), out.view(torch.uint32), size, *numbers)
    kernel.emulate(grid, 64, args, shared_bytes=size, trace=trace)
    return out.reshape(grid, *box)


def cut(x, box, corner, fill=0.0):
    """Return the box by PyTorch's own indexing, from a tensor with wide margins."""
    margins = [300] * (2 * x.dim())
    wide = torch.nn.functional.pad(x.double(), margins, value=fill)
    where = tuple(slice(300 + start, 300 + start + size) for start, size in zip(corner, box, strict=True))
    return wide[where].to(x.dtype)


@pytest.mark.parametrize(("shape", "box", "corner"), [
    ((70,), (16,), (56,)), ((70,), (16,), (-8,)), ((12, 16), (4, 8), (3, 8)), ((12, 16), (4, 8), (-2, 8)), ((5, 16), (8, 16), (-1, -8)),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_boxes_inside_and_outside(shape, box, corner, dtype):
    x = torch.arange(1, 1 + int(np.prod(shape))).reshape(shape).to(dtype)
    got = boxes(x, box, corner, grid=2)
    for block in range(2):
        assert torch.equal(got[block], cut(x, box, (*corner[:-1], corner[-1] + 8 * block)))


@pytest.mark.parametrize("axes", [3, 4, 5])
def test_more_axes(axes):
    shape, box = (3, 2, 3, 4, 16)[-axes:], (2, 1, 2, 3, 8)[-axes:]
    corner = (-1, 1, 2, 2, 12)[-axes:]
    x = torch.arange(1.0, 1 + int(np.prod(shape))).reshape(shape)
    got = boxes(x, box, corner)[0]
    wanted = torch.zeros(box)
    for place in np.ndindex(*box):
        source = tuple(start + step for start, step in zip(corner, place, strict=True))
        if all(0 <= one < size for one, size in zip(source, shape, strict=True)):
            wanted[place] = x[source]
    assert torch.equal(got, wanted)


def test_channels_last_is_a_permuted_view():
    x = torch.randn(2, 16, 5, 6).to(memory_format=torch.channels_last)
    got = boxes(x.permute(0, 2, 3, 1), (1, 3, 4, 8), (1, 1, 2, 8))[0, 0]
    assert torch.equal(got, x[1, 8:16, 1:4, 2:6].permute(1, 2, 0))


def test_fill_with_nan():
    got = boxes(torch.ones(4, 8), (4, 8), (2, 0), fill="nan")[0]
    assert torch.isnan(got[2:]).all()
    assert (got[:2] == 1).all()


@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_swizzle(swizzle):
    """A row is as long as the swizzle; piece p of row r lies where piece p ^ (bits of its address) of the row would."""
    columns, rows = swizzle // 2, 32
    x = torch.arange(rows * columns, dtype=torch.float16).reshape(rows, columns)
    got = boxes(x, (rows, columns), (0, 0), swizzle=swizzle)[0].numpy()
    pieces = x.numpy().reshape(rows, -1, 8)
    wanted = np.zeros_like(pieces)
    for row in range(rows):
        for piece in range(pieces.shape[1]):
            wanted[row, piece ^ (row * swizzle // 128 % pieces.shape[1])] = pieces[row, piece]
    assert np.array_equal(got, wanted.reshape(rows, columns))


STORE = (
    HEAD
    + """extern "C" __global__ void k(const __grid_constant__ TensorMap map, int row, int column) {
  __shared__ __align__(128) float s[4][8];
  s[threadIdx.x / 8][threadIdx.x % 8] = threadIdx.x + 1;
  PROXY; // FENCE
  __syncthreads();
  if (!threadIdx.x) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" :: "l"(&map), "r"(at(s)), "r"(column), "r"(row) : "memory"); // STORE
    FINISH;
  }
}"""
)


@pytest.mark.parametrize("corner", [(0, 0), (3, 8), (8, 12), (10, 16)])
def test_store_leaves_out_what_lies_outside(corner):
    x, trace = torch.zeros(10, 16), Trace()
    compile_cuda(STORE, arch="sm_90a").only.emulate(1, 32, (tensor_map(x, (4, 8)), *corner), trace=trace)
    wanted = torch.zeros(10, 16)
    for place in range(32):
        row, column = corner[0] + place // 8, corner[1] + place % 8
        if 0 <= row < 10 and 0 <= column < 16:
            wanted[row, column] = place + 1
    assert torch.equal(x, wanted)
    assert not trace.races


def test_store_needs_its_fence():
    trace = Trace()
    text = STORE.replace("PROXY; // FENCE", "")
    compile_cuda(text, arch="sm_90a").only.emulate(1, 32, (tensor_map(torch.zeros(4, 8), (4, 8)), 0, 0), trace=trace)
    assert [race.kind for race in trace.races] == ["missing proxy fence"]


def test_what_is_counted():
    trace = Trace()
    boxes(torch.ones(64, 64), (16, 16), (0, 0), grid=3, trace=trace)
    assert not trace.races
    line = next(line for line in trace.lines().values() if ("global", "load") in line.accesses)
    assert line.accesses["global", "load"].bytes == 3 * 1024
    assert line.accesses["shared", "store"].units == 3 * 8


def test_a_map_that_is_none_and_one_of_other_axes():
    kernel = compile_cuda(box_kernel(2), arch="sm_90a").only
    out = torch.zeros(256, dtype=torch.uint32)
    with pytest.raises(EmulatorFault, match="no tensor map"):
        kernel.emulate(1, 32, (bytes(128), out, 1024, 0, 0, 0, 0, 0), shared_bytes=1024)
    with pytest.raises(EmulatorFault, match="the map has 1 axes, and the instruction 2"):
        kernel.emulate(1, 32, (tensor_map(torch.ones(64), (16,)), out, 64, 0, 0, 0, 0, 0), shared_bytes=1024)


def test_a_box_that_is_larger_than_its_place_and_one_that_lies_askew():
    kernel = compile_cuda(box_kernel(2), arch="sm_90a").only
    args = (tensor_map(torch.ones(64, 64), (16, 16)), torch.zeros(256, dtype=torch.uint32), 1024, 0, 0, 0, 0, 0)
    with pytest.raises(EmulatorFault) as caught:
        kernel.emulate(1, 32, args, shared_bytes=512)
    assert caught.value.kind == "out of bounds"
    askew = compile_cuda(box_kernel(2).replace('"r"(at(s))', '"r"(at(s) + 64)'), arch="sm_90a").only
    with pytest.raises(EmulatorFault, match="multiple of 128"):
        askew.emulate(1, 32, args, shared_bytes=2048)


@pytest.mark.parametrize("corner", [(-1, 0), (0, -4), (-8, -8)])
def test_a_box_that_is_stored_may_not_begin_before_its_tensor(corner):
    """CUDA C++ Programming Guide: parts of the tile may be out of bounds, but no corner may have a negative index."""
    x = torch.zeros(10, 16)
    with pytest.raises(EmulatorFault, match=r"begins at \{.*-.*\}: .* not begin before it") as caught:
        compile_cuda(STORE, arch="sm_90a").only.emulate(1, 32, (tensor_map(x, (4, 8)), *corner))
    assert caught.value.kind == "out of bounds"
    assert not x.any()


def test_a_box_may_begin_at_multiples_of_sixteen_bytes_alone():
    """As an H200 has it: along the innermost axis, inside or outside, loading or storing."""
    for corner in ((0, 3), (0, -2), (0, 62)):
        with pytest.raises(
            EmulatorFault, match=r"begins -?[0-9]+ elements of 4 bytes .* multiples of 16 bytes"
        ) as caught:
            boxes(torch.ones(8, 64), (4, 8), corner)
        assert caught.value.kind == "misaligned"
        with pytest.raises(EmulatorFault, match="multiples of 16 bytes"):
            compile_cuda(STORE, arch="sm_90a").only.emulate(1, 32, (tensor_map(torch.zeros(8, 64), (4, 8)), *corner))


@pytest.mark.parametrize(("tensor", "box", "options", "says"), [
    (torch.ones(4, 8).T, (8, 4), {}, "stride 1"), (torch.ones(4, 7), (4, 4), {}, "stride of 28 bytes"), (torch.ones(9)[1:], (4,), {}, "address"),
    (torch.ones(4, 8), (4,), {}, "axes"), (torch.ones(4, 8), (0, 8), {}, "1 to 256"), (torch.ones(4, 512), (4, 512), {}, "1 to 256"),
    (torch.ones(4, 8), (4, 2), {}, "8 bytes"), (torch.ones(4, 8), (4, 8), {"swizzle": 100}, "0, 32, 64 or 128"),
    (torch.ones(4, 8), (4, 8), {"swizzle": 128}, "as many"), (torch.ones(4, 8), (4, 8), {"fill": "ones"}, "must be one of"),
    (torch.ones(4, 8, dtype=torch.int32), (4, 8), {"fill": "nan"}, "floating"), (torch.ones(0, 8), (4, 8), {}, "empty"),
    (torch.ones(1, 1, 1, 1, 1, 8), (1, 1, 1, 1, 1, 8), {}, "1 to 5"),
])  # fmt: skip
def test_maps_that_the_copy_engine_does_not_take(tensor, box, options, says):
    with pytest.raises(ValueError, match=says):
        tensor_map(tensor, box, **options)
    with pytest.raises(TypeError, match="torch tensor"):
        tensor_map([1.0], (1,))
    with pytest.raises(ValueError, match="on the CPU"):
        tensor_map(torch.ones(4, 8), (4, 8)).tobytes()
