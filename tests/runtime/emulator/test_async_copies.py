# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""cp.async: when the bytes arrive, groups by thread, zero fill, and a tensor-core matrix product fed by it."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace

RNG = np.random.default_rng(0)
HELPERS = r"""
__device__ __forceinline__ unsigned at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
#define COPY(to, from) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(at(to)), "l"(from) : "memory")
#define COPY4(to, from) asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(at(to)), "l"(from) : "memory")
#define COMMIT asm volatile("cp.async.commit_group;" ::: "memory")
#define WAIT(n) asm volatile("cp.async.wait_group %0;" :: "n"(n) : "memory")
#define WAIT_ALL asm volatile("cp.async.wait_all;" ::: "memory")
"""
LINES = HELPERS.count("\n")


def run(text, *args, grid=1, block=32, arch="compute_80", trace=None):
    program = Program(compile_ptx(HELPERS + text, arch))
    program.launch("k", (grid,), (block,), args, trace=trace)


def line_of(text, mark):
    return LINES + next(number for number, line in enumerate(text.split("\n"), 1) if f"// {mark}" in line)


@pytest.mark.parametrize("arch", ["compute_80", "compute_90"])
@pytest.mark.parametrize(("cache", "width"), [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16), ("ca", 4.5), ("cg", 16.5)])
def test_every_width(arch, cache, width):
    hint = ".L2::128B" if width % 1 else ""
    width = int(width)
    text = f"""extern "C" __global__ void k(const char* x, char* y) {{ __shared__ __align__(16) char s[64 * {width}]; int i = threadIdx.x;
      asm volatile("cp.async.{cache}.shared.global{hint} [%0], [%1], {width};" :: "r"(at(s + i * {width})), "l"(x + (blockIdx.x * 64 + i) * {width}) : "memory");
      WAIT_ALL; __syncthreads(); for (int b = 0; b < {width}; b++) y[(blockIdx.x * 64 + i) * {width} + b] = s[(i ^ 63) * {width} + b]; }}"""
    x = RNG.integers(0, 256, (3, 64, width)).astype(np.uint8)
    y = np.zeros_like(x)
    trace = Trace()
    run(text, x, y, grid=3, block=64, arch=arch, trace=trace)
    assert np.array_equal(y, x[:, ::-1])
    assert not trace.races
    assert not trace.faults


@pytest.mark.parametrize(("cache", "width"), [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)])
def test_zero_fill(cache, width):
    """The source's size is a register; a copy of no bytes may point anywhere, and nothing behind the size is read."""
    text = f"""extern "C" __global__ void k(const char* x, const int* sizes, uint4* y) {{ __shared__ uint4 s[32]; int i = threadIdx.x; s[i] = make_uint4(7, 7, 7, 7);
      const char* from = sizes[i] ? x + i * {width} : (const char*)16;
      asm volatile("cp.async.{cache}.shared.global [%0], [%1], {width}, %2;" :: "r"(at(&s[i])), "l"(from), "r"(sizes[i]) : "memory");
      WAIT_ALL; y[i] = s[i]; }}"""
    sizes = RNG.integers(0, width + 1, 32).astype(np.int32)
    sizes[:3], sizes[-1] = [0, width, width - 1], 3
    x = RNG.integers(0, 256, 32 * width - width + 3).astype(np.uint8)  # ends with the last thread's bytes
    y = np.zeros((32, 16), np.uint8)
    run(text, x, sizes, y.view(np.uint32))
    for i, size in enumerate(sizes):
        assert y[i, :size].tolist() == x[i * width : i * width + size].tolist()
        assert (y[i, size:width] == 0).all()
        assert y[i, width:].view(np.uint32).tolist() == [7] * ((16 - width) // 4)


def test_bytes_are_those_of_the_issue_and_arrive_with_the_wait():
    text = """extern "C" __global__ void k(float* x, float* y) { __shared__ float s[32]; int i = threadIdx.x; s[i] = -1;
      COPY4(&s[i], &x[i]); COMMIT; x[i] = 100; y[i] = s[i]; WAIT(0); y[32 + i] = s[i]; }"""
    x, y = np.arange(32, dtype=np.float32), np.zeros(64, np.float32)
    run(text, x, y)
    assert (y[:32] == -1).all()
    assert np.array_equal(y[32:], np.arange(32))


def test_without_a_wait_there_is_poison():
    text = """extern "C" __global__ void k(float* x, float* y) { __shared__ float s[32]; int i = threadIdx.x;
      COPY4(&s[i], &x[i]); COMMIT; __syncthreads(); y[i] = s[i]; }"""
    y = np.zeros(32, np.float32)
    run(text, np.ones(32, np.float32), y)
    assert np.isnan(y).all()


def test_groups_are_waited_for_in_order():
    """wait_group N leaves the newest N groups on their way; an uncommitted copy waits for its commit."""
    text = """extern "C" __global__ void k(const int* x, int* y) { __shared__ int s[4][32]; int i = threadIdx.x; for (int g = 0; g < 4; g++) s[g][i] = -1;
      for (int g = 0; g < 3; g++) { COPY4(&s[g][i], &x[g * 32 + i]); COMMIT; } COPY4(&s[3][i], &x[96 + i]);
      #define SHOW(row) for (int g = 0; g < 4; g++) y[(row * 4 + g) * 32 + i] = s[g][i];
      WAIT(2); SHOW(0) WAIT(1); SHOW(1) WAIT(0); SHOW(2) WAIT_ALL; SHOW(3) }"""
    x = np.arange(128, dtype=np.int32).reshape(4, 32)
    y = np.zeros((4, 4, 32), np.int32)
    run(text, x, y)
    for row in range(4):
        assert np.array_equal(y[row, : row + 1], x[: row + 1])
        assert (y[row, row + 1 :] == -1).all()


def test_each_thread_has_groups_of_its_own():
    """Threads commit as often as their number says, and wait for all but the newest two."""
    text = """extern "C" __global__ void k(const int* x, int* y) { __shared__ int s[8][40]; int i = threadIdx.x; for (int g = 0; g < 8; g++) s[g][i] = -1;
      for (int g = 0; g < (i + blockIdx.x) % 8; g++) { COPY4(&s[g][i], &x[g * 40 + i]); COMMIT; }
      if (i != 5) WAIT(2); for (int g = 0; g < 8; g++) y[(blockIdx.x * 8 + g) * 40 + i] = s[g][i]; }"""
    x = np.arange(320, dtype=np.int32).reshape(8, 40)
    y = np.zeros((3, 8, 40), np.int32)
    run(text, x, y, grid=3, block=40)
    block, group, i = np.indices(y.shape)
    arrived = (group < (i + block) % 8 - 2) & (i != 5)
    assert np.array_equal(y, np.where(arrived, x, -1))


def test_pipeline_of_the_toolkit():
    text = """#include <cuda_pipeline.h>
      extern "C" __global__ void k(const float4* x, float4* y) { __shared__ float4 s[2][32]; int i = threadIdx.x; float4 sum = {};
      __pipeline_memcpy_async(&s[0][i], &x[i], 16); __pipeline_commit();
      for (int k = 0; k < 5; k++) { if (k < 4) __pipeline_memcpy_async(&s[(k + 1) & 1][i], &x[(k + 1) * 32 + i], 16); __pipeline_commit();
        __pipeline_wait_prior(1); __syncthreads(); float4 v = s[k & 1][31 - i]; sum.x += v.x; sum.w += v.w; __syncthreads(); }
      y[i] = sum; }"""
    x = RNG.integers(-99, 99, (5, 32, 4)).astype(np.float32)
    y = np.zeros((32, 4), np.float32)
    trace = Trace()
    run(text, x, y, trace=trace)
    assert np.array_equal(y[:, [0, 3]], x.sum(0)[::-1][:, [0, 3]])
    assert not trace.races, trace.races[0].sentence
    assert not trace.faults


# --- a tiled matrix product: C (m x n) = A (m x k) B (k x n), float16, tiles of 32 x 32 x 16, two stages ----------------

PRODUCT = r"""
#include <cuda_fp16.h>
extern "C" __global__ void k(const half* a, const half* b, float* c, int n, int k) {
  __shared__ __align__(16) half sa[2][32][24], sb[2][16][40];
  int i = threadIdx.x, lane = i % 32, wm = i / 64, wn = i / 32 % 2, row = blockIdx.y * 32, column = blockIdx.x * 32;
  float d[2][4] = {};
  auto load = [&](int s, int k0) {
    if (i < 64) { COPY(&sa[s][i / 2][i % 2 * 8], a + (row + i / 2) * k + k0 + i % 2 * 8); // COPY A
    } else { int j = i - 64; COPY(&sb[s][j / 4][j % 4 * 8], b + (k0 + j / 4) * n + column + j % 4 * 8); }
    COMMIT; };
  load(0, 0);
  for (int k0 = 0, s = 0; k0 < k; k0 += 16, s ^= 1) {
    if (k0 + 16 < k) load(s ^ 1, k0 + 16); else COMMIT;
    WAIT(1);
    __syncthreads();
    unsigned A[4], B[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" // READ A
      : "=r"(A[0]), "=r"(A[1]), "=r"(A[2]), "=r"(A[3]) : "r"(at(&sa[s][wm * 16 + lane % 16][lane / 16 * 8])) : "memory");
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" // READ B
      : "=r"(B[0]), "=r"(B[1]), "=r"(B[2]), "=r"(B[3]) : "r"(at(&sb[s][lane % 16][wn * 16 + lane / 16 * 8])) : "memory");
    for (int t = 0; t < 2; t++)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3]) : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(B[2 * t]), "r"(B[2 * t + 1]));
    __syncthreads(); // BEHIND
  }
  for (int t = 0; t < 2; t++) for (int r = 0; r < 4; r++)
    c[(row + wm * 16 + lane / 4 + r / 2 * 8) * n + column + wn * 16 + t * 8 + lane % 4 * 2 + r % 2] = d[t][r];
}"""


def product(text, m=96, n=64, depth=80, trace=None, arch="compute_80"):
    a = (RNG.integers(-64, 65, (m, depth)) / 16).astype(np.float16)
    b = (RNG.integers(-64, 65, (depth, n)) / 16).astype(np.float16)
    c = np.full((m, n), np.nan, np.float32)
    program = Program(compile_ptx(HELPERS + text, arch))
    program.launch("k", (n // 32, m // 32), (128,), (a, b, c, np.int32(n), np.int32(depth)), trace=trace)
    return c, a.astype(np.float64) @ b.astype(np.float64)


@pytest.mark.parametrize("arch", ["compute_80", "compute_90"])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("n", [32, 64])
def test_tiled_product(arch, traced, n):
    """With 32 columns all blocks hold the same tile of B."""
    trace = Trace() if traced else None
    got, wanted = product(PRODUCT, n=n, arch=arch, trace=trace)
    assert np.array_equal(got, wanted)
    if traced:
        assert not trace.races, trace.races[0].sentence
        assert not trace.faults
        reads = trace.lines()[line_of(PRODUCT, "READ A")]
        assert reads.ways == reads.ideal_ways > 0


def test_forgotten_wait_is_named_and_wrong():
    trace = Trace()
    wrong = PRODUCT.replace("    WAIT(1);\n", "\n")
    got, wanted = product(wrong, trace=trace)
    assert not np.array_equal(got, wanted)
    races = {(race.line, race.other_line): race for race in trace.races}
    found = races[line_of(wrong, "READ A"), line_of(wrong, "COPY A")]
    assert {race.kind for race in trace.races} == {"cp.async without its wait"}
    assert f"at line {found.line}" in found.sentence
    assert f"line {found.other_line}" in found.sentence


def test_a_wait_that_is_one_group_short_is_named():
    trace = Trace()
    wrong = PRODUCT.replace("WAIT(1)", "WAIT(2)")
    got, wanted = product(wrong, trace=trace)
    assert not np.array_equal(got, wanted)
    assert {race.kind for race in trace.races} == {"cp.async without its wait"}


@pytest.mark.parametrize(("wrong", "mark", "kind"), [
    (PRODUCT.replace("    __syncthreads();\n", "\n", 1), "READ A", "read after write"),
    (PRODUCT.replace("    __syncthreads(); // BEHIND", ""), "COPY A", "write after read"),
    (PRODUCT.replace("    WAIT(1);\n    __syncthreads();\n", "    __syncthreads();\n    WAIT(1);\n"), "READ A", "read after write"),
])  # fmt: skip
def test_missing_barrier_is_named(wrong, mark, kind):
    """In front of the reads, behind them (the next copy overwrites what others still read), and before the wait."""
    assert wrong != PRODUCT
    trace = Trace()
    product(wrong, trace=trace)
    other = {"READ A": "COPY A", "COPY A": "READ A"}[mark]
    assert (kind, line_of(wrong, mark), line_of(wrong, other)) in {(r.kind, r.line, r.other_line) for r in trace.races}


@pytest.mark.parametrize(("wrong", "mark", "says"), [
    (PRODUCT.replace("[32][24]", "[32][20]"), "COPY A", "multiple of 16"),
    (PRODUCT.replace("[lane / 16 * 8])", "[lane / 16 * 8 + lane % 2])", 1), "READ A", "multiple of 16"),
    (PRODUCT.replace("k0 + 16 < k", "k0 < k"), "COPY A", "out"),
])  # fmt: skip
def test_misaligned_and_outside(wrong, mark, says):
    assert wrong != PRODUCT
    with pytest.raises(EmulatorFault) as caught:
        product(wrong, m=32)
    assert caught.value.line == line_of(wrong, mark)
    assert says in caught.value.sentence or caught.value.kind.startswith(says)


def test_reading_the_own_copy_before_the_wait():
    text = """extern "C" __global__ void k(float* x, float* y) { __shared__ float s[64]; int i = threadIdx.x;
      COPY4(&s[i], &x[i]); // ISSUE
      y[i] = s[i]; // EARLY
      WAIT_ALL; y[i] += s[i]; }"""
    trace = Trace()
    run(text, np.ones(64, np.float32), np.zeros(64, np.float32), block=64, trace=trace)
    (race,) = trace.races
    assert (race.kind, race.line, race.other_line) == (
        "cp.async without its wait",
        line_of(text, "EARLY"),
        line_of(text, "ISSUE"),
    )
    trace = Trace()
    run(
        text.replace("y[i] = s[i]; // EARLY", ""),
        np.ones(64, np.float32),
        np.zeros(64, np.float32),
        block=64,
        trace=trace,
    )
    assert not trace.races
    assert not trace.faults


@pytest.mark.parametrize(("instruction", "says"), [
    ("cp.async.bulk.shared::cluster.local.mbarrier::complete_tx::bytes [r], [rd], 16, [r];", "cp.async.bulk.shared::cluster.global"),
    ("cp.async.mbarrier.arrive.noinc.shared.b32 [r];", "cp.async.mbarrier.arrive"),
    ("cp.async.cg.shared.global [r], [rd], 8;", "of 16"),
    ("cp.async.ca.shared.global [r], [rd], 4, p;", "source size of 0"),
])  # fmt: skip
def test_refused_by_name(instruction, says):
    text = f".version 8.6\n.target sm_90\n.address_size 64\n.visible .entry k()\n{{\n.reg .b32 r; .reg .b64 rd; .reg .b16 h; .reg .pred p;\n{instruction}\nret;\n}}\n"
    with pytest.raises(NotImplementedError, match=r"the emulator does not know `cp\.async") as caught:
        Program(text).launch("k", (1,), (32,), ())
    assert says in str(caught.value)
