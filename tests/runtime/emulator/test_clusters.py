# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Clusters: ranks, shared memory of other blocks, barriers, remote arrivals and multicast."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace

RNG = np.random.default_rng(0)
HEAD = r"""
typedef unsigned long long u64;
__device__ __forceinline__ unsigned at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ unsigned rank() { unsigned r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
__device__ __forceinline__ unsigned there(const void* p, unsigned r) { unsigned a; asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(a) : "r"(at(p)), "r"(r)); return a; }
__device__ __forceinline__ int load(unsigned a) { int v; asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(v) : "r"(a) : "memory"); return v; }
#define ARRIVE asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#define WAIT asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#define INIT(b, n) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(at(b)), "r"(n) : "memory")
#define ARRIVE_EXPECT(b, n) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(at(b)), "r"(n) : "memory")
#define AWAIT(b, parity) asm volatile("{.reg .pred p;\nA: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n @p bra B;\n bra A;\nB:\n}" :: "r"(at(b)), "r"(parity) : "memory")
"""


def kernel(body, dims="2, 1, 1"):
    return f'{HEAD}extern "C" __global__ void __cluster_dims__({dims}) k(const int* x, int* y) {{\n  int t = threadIdx.x, i = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + t;\n{body}\n}}'


def line_of(text, mark):
    return next(number for number, line in enumerate(text.split("\n"), 1) if f"// {mark}" in line)


def launch(text, x, y, *, grid=4, block=64, trace=None, blocks=None):
    grid = grid if isinstance(grid, tuple) else (grid,)
    Program(compile_ptx(text, "compute_90a")).launch("k", grid, (block,), (x, y), trace=trace, blocks=blocks)


def clean(trace):
    assert not trace.races, trace.races[0].sentence
    assert not trace.faults, trace.faults[0].sentence


def test_ranks():
    text = kernel(
        """  unsigned v[9]; asm volatile("mov.u32 %0, %%cluster_ctaid.x; mov.u32 %1, %%cluster_ctaid.y; mov.u32 %2, %%cluster_nctaid.x; mov.u32 %3, %%cluster_nctaid.y; mov.u32 %4, %%cluster_ctarank; mov.u32 %5, %%cluster_nctarank; mov.u32 %6, %%clusterid.x; mov.u32 %7, %%clusterid.y; mov.u32 %8, %%nclusterid.x;"
    : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]), "=r"(v[4]), "=r"(v[5]), "=r"(v[6]), "=r"(v[7]), "=r"(v[8]));
  if (!t) for (int k = 0; k < 9; k++) y[i / 32 * 9 + k] = v[k];""",
        "3, 2, 1",
    )
    y = np.zeros((4, 6, 9), np.int32)
    launch(text, np.zeros(1, np.int32), y, grid=(6, 4), block=32)
    for by in range(4):
        for bx in range(6):
            assert y[by, bx].tolist() == [bx % 3, by % 2, 3, 2, by % 2 * 3 + bx % 3, 6, bx // 3, by // 2, 2]


SWAP = kernel("""  __shared__ int s[64];
  s[t] = x[i]; // FILL
  ARRIVE WAIT // FIRST
  y[i] = load(there(&s[63 - t], rank() ^ 1)); // TAKE
  ARRIVE WAIT // LAST""")


def swap(text, trace=None, **about):
    x = RNG.integers(-99, 99, (4, 64)).astype(np.int32)
    y = np.zeros_like(x)
    launch(text, x, y, trace=trace, **about)
    return y, x[[1, 0, 3, 2], ::-1]


@pytest.mark.parametrize("traced", [False, True])
def test_blocks_read_each_other(traced):
    trace = Trace() if traced else None
    got, wanted = swap(SWAP, trace)
    assert np.array_equal(got, wanted)
    if traced:
        clean(trace)


def test_a_sample_of_blocks_brings_its_cluster():
    got, wanted = swap(SWAP, blocks=[2])
    assert np.array_equal(got[2:], wanted[2:])
    assert not got[:2].any()


def test_missing_barriers():
    trace = Trace()
    wrong = SWAP.replace("ARRIVE WAIT // FIRST", "")
    swap(wrong, trace)
    assert ("read after write", line_of(wrong, "FILL")) in {(r.kind, r.other_line) for r in trace.races}
    late = SWAP.replace("  ARRIVE WAIT // LAST", "").replace(
        "  y[i] =", "  if (!rank()) return;\n  __syncthreads();\n  y[i] ="
    )
    with pytest.raises(EmulatorFault, match="have left the kernel"):
        swap(late)


def test_waiting_without_arriving():
    with pytest.raises(EmulatorFault, match=r"barrier\.cluster\.arrive must come before"):
        swap(SWAP.replace("ARRIVE WAIT // FIRST", "WAIT"))


def test_a_block_that_leaves_is_not_waited_for():
    got, _ = swap(
        SWAP.replace("  s[t] = x[i]; // FILL", "  s[t] = x[i]; if (rank()) { ARRIVE WAIT y[i] = 5; return; }")
        .replace("y[i] = load", "y[i] = 0 * load")
        .replace("rank() ^ 1", "0u")
    )
    assert (got[1::2] == 5).all()


def test_generic_addresses_and_cooperative_groups():
    text = r"""#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void __cluster_dims__(4, 1, 1) k(const int* x, int* y) {
  auto cluster = cg::this_cluster();
  __shared__ int s[32];
  int t = threadIdx.x, i = blockIdx.x * 32 + t;
  s[t] = 0;
  cluster.sync();
  for (int r = 0; r < 4; r++) atomicAdd(&cluster.map_shared_rank(s, r)[t], x[i]);
  cluster.sync();
  y[i] = s[t] + 1000 * cluster.block_rank();
}"""
    x, y, trace = RNG.integers(-99, 99, (8, 32)).astype(np.int32), np.zeros((8, 32), np.int32), Trace()
    launch(text, x, y, grid=8, block=32, trace=trace)
    sums = x.reshape(2, 4, 32).sum(1)
    assert np.array_equal(y, np.repeat(sums, 4, axis=0) + 1000 * (np.arange(8) % 4)[:, None])
    clean(trace)


def test_a_pointer_that_is_known_when_the_kernel_runs():
    """It is a generic address on its way, which the headers turn into one of the cluster's shared memory."""
    text = r"""#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void __cluster_dims__(4, 1, 1) k(int* y, int n) {
  auto cluster = cg::this_cluster();
  __shared__ int told[2];
  int t = threadIdx.x, i = blockIdx.x * 8 + t, *mine = told + n % 2;
  if (t == 0) *mine = 100 + blockIdx.x;
  cluster.sync();
  int* other = cluster.map_shared_rank(mine, t % 4);
  asm("{ .reg .pred p; isspacep.shared::cluster p, %1; selp.s32 %0, 1, 0, p; }" : "=r"(y[3 * i + 2]) : "l"(other));
  y[3 * i] = *other; y[3 * i + 1] = cluster.query_shared_rank(other); y[3 * i + 2] += 2 * __isGlobal(other);
  cluster.sync();
}"""
    y, trace = np.zeros((8, 8, 3), np.int32), Trace()
    launch(text, y, np.int32(1), grid=8, block=8, trace=trace)
    block, thread = np.arange(8)[:, None], np.arange(8)[None, :]
    assert np.array_equal(y[:, :, 0], 100 + block // 4 * 4 + thread % 4)
    assert (y[:, :, 1] == thread % 4).all()
    assert (y[:, :, 2] == 1).all()
    clean(trace)


CAST = kernel("""  __shared__ __align__(128) int s[128]; __shared__ u64 b;
  if (!t) INIT(&b, 1);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  ARRIVE WAIT
  if (!t) {
    ARRIVE_EXPECT(&b, 512);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], 256, [%2], %3;" // CAST
      :: "r"(at(s + 64 * rank())), "l"(x + 64 * blockIdx.x), "r"(at(&b)), "h"((short)3) : "memory");
  }
  AWAIT(&b, 0); // AWAIT
  y[2 * i] = s[t]; y[2 * i + 1] = s[64 + t]; // USE
  ARRIVE WAIT""")


@pytest.mark.parametrize("traced", [False, True])
def test_multicast(traced):
    """Each block brings one half, to both."""
    x, y, trace = (
        RNG.integers(-99, 99, (4, 64)).astype(np.int32),
        np.zeros((4, 64, 2), np.int32),
        Trace() if traced else None,
    )
    launch(CAST, x, y, trace=trace)
    for block in range(4):
        assert np.array_equal(y[block].T, x[block & ~1 : (block & ~1) + 2])
    if traced:
        clean(trace)


def test_multicast_without_the_wait():
    wrong = CAST.replace("AWAIT(&b, 0); // AWAIT", "")
    trace, x, y = Trace(), np.ones((4, 64), np.int32), np.zeros((4, 64, 2), np.int32)
    launch(wrong, x, y, trace=trace)
    assert not (y == 1).all()
    assert ("bulk copy without its wait", line_of(wrong, "USE"), line_of(wrong, "CAST")) in {
        (r.kind, r.line, r.other_line) for r in trace.races
    }


def test_arrivals_from_another_block():
    """The second block fills the first one's shared memory, and arrives at its mbarrier."""
    text = kernel("""  __shared__ int s[64]; __shared__ u64 b;
  if (!t) INIT(&b, 64);
  ARRIVE WAIT
  if (rank()) {
    asm volatile("st.shared::cluster.s32 [%0], %1;" :: "r"(there(&s[t], 0)), "r"(x[i]) : "memory");
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" :: "r"(there(&b, 0)) : "memory");
  } else { AWAIT(&b, 0); y[i] = s[63 - t]; }
  ARRIVE WAIT""")
    x, y, trace = RNG.integers(-99, 99, (4, 64)).astype(np.int32), np.zeros((4, 64), np.int32), Trace()
    launch(text, x, y, trace=trace)
    assert np.array_equal(y[::2], x[1::2, ::-1])
    clean(trace)


def test_addresses_tell_their_rank():
    """Of a generic address as of one in the cluster's window; a barrier's wait may do without its words."""
    text = kernel("""  __shared__ int s[64]; s[t] = x[i]; unsigned r0, r1, r2; u64 g; int v;
  asm volatile("barrier.cluster.arrive.relaxed; barrier.cluster.wait;" ::: "memory");
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(g) : "l"(&s[t]), "r"(rank() ^ 1));
  asm volatile("getctarank.u64 %0, %1;" : "=r"(r0) : "l"(g));
  asm volatile("getctarank.shared::cluster.u32 %0, %1;" : "=r"(r1) : "r"(there(&s[t], 1)));
  asm volatile("getctarank.shared::cluster.u32 %0, %1;" : "=r"(r2) : "r"(at(&s[t])));
  asm volatile("ld.s32 %0, [%1];" : "=r"(v) : "l"(g) : "memory");
  asm volatile("red.shared::cluster.add.s32 [%0], 0;" :: "r"(there(&s[t], 0)) : "memory");
  y[2 * i] = v; y[2 * i + 1] = r0 * 100 + r1 * 10 + r2;
  ARRIVE WAIT""")
    x, y = RNG.integers(-99, 99, (4, 64)).astype(np.int32), np.zeros((4, 64, 2), np.int32)
    launch(text, x, y)
    assert np.array_equal(y[:, :, 0], x[[1, 0, 3, 2]])
    assert np.array_equal(y[:, :, 1], np.repeat([[110], [11], [110], [11]], 64, axis=1))


def test_wrong_ranks_and_grids():
    with pytest.raises(EmulatorFault, match="rank 2 in a cluster of 2"):
        swap(SWAP.replace("rank() ^ 1", "rank() + 1"))
    with pytest.raises(ValueError, match="no multiple of the kernel's cluster"):
        launch(SWAP, np.zeros(64, np.int32), np.zeros(64, np.int32), grid=3)
