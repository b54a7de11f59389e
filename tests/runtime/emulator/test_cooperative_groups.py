# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Cooperative groups as NVRTC compiles its header: blocks, tiles, coalesced threads, partitions, and the whole grid."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace

# One text for all of them: NVRTC takes five seconds for the headers.
TEXT = """
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
namespace cg = cooperative_groups;

extern "C" __global__ void block_and_tiles(const int* x, int* out) {
  cg::thread_block block = cg::this_thread_block();
  __shared__ int s[128];
  int r = block.thread_rank(), n = block.size();
  s[r] = x[r];
  block.sync();
  auto tile = cg::tiled_partition<16>(block);
  auto pair = cg::tiled_partition<2>(tile);
  out[r] = s[n - 1 - r] + 1000 * block.group_index().x;
  out[n + r] = tile.shfl_down(x[r], 3) + tile.shfl_xor(x[r], 8) + tile.shfl(x[r], 5) + tile.shfl_up(x[r], 1);
  out[2 * n + r] = cg::reduce(tile, x[r], cg::plus<int>());
  out[3 * n + r] = cg::reduce(tile, x[r], cg::less<int>()) + pair.shfl_xor(x[r], 1);
  out[4 * n + r] = cg::inclusive_scan(tile, x[r]);
  out[5 * n + r] = tile.ballot(x[r] > 50) + 100000 * tile.any(x[r] == 7) + 1000000 * tile.all(x[r] > 0);
  out[6 * n + r] = tile.thread_rank() + 100 * tile.meta_group_rank() + 10000 * tile.meta_group_size();
  out[7 * n + r] = tile.match_any(x[r] & 3);
  auto dynamic = cg::tiled_partition(block, 8);
  out[8 * n + r] = dynamic.thread_rank() + 10 * dynamic.size();
}

extern "C" __global__ void coalesced(const int* x, int* out) {
  int i = threadIdx.x, n = blockDim.x;
  if (x[i] & 1) {
    auto odd = cg::coalesced_threads();
    out[i] = odd.thread_rank() + 100 * odd.size();
    out[n + i] = odd.shfl(x[i], 0);
    out[2 * n + i] = cg::reduce(odd, x[i], cg::plus<int>());
    odd.sync();
    if (odd.thread_rank() == 0) atomicAdd(out + 4 * n, odd.size());
  }
  auto tile = cg::tiled_partition<32>(cg::this_thread_block());
  out[3 * n + i] = cg::labeled_partition(tile, x[i] & 3).size() + 100 * cg::binary_partition(tile, x[i] > 50).thread_rank();
}

extern "C" __global__ void whole_grid(const float* x, float* y, float* z, int n) {
  cg::grid_group grid = cg::this_grid();
  for (int i = grid.thread_rank(); i < n; i += grid.size()) y[i] = x[i] + 1.0f;
  grid.sync();
  for (int i = grid.thread_rank(); i < n; i += grid.size()) z[i] = y[n - 1 - i] * 2.0f;
  auto token = grid.barrier_arrive();
  grid.barrier_wait(static_cast<cg::grid_group::arrival_token&&>(token));
  for (int i = grid.thread_rank(); i < n; i += grid.size()) y[i] = z[(i + 7) % n];
}

extern "C" __global__ void one_leaves(int* x) {
  if (blockIdx.x == 1) return;
  cg::this_grid().sync();
  x[blockIdx.x] = 1;
}
"""


@pytest.fixture(params=["compute_75", "compute_80", "compute_90", "compute_100"])
def arch(request):
    return request.param


def launch(name, arch, grid, block, args, **options):
    Program(compile_ptx(TEXT, arch)).launch(name, grid, block, args, **options)


def test_block_and_tiles(arch):
    x = np.random.default_rng(0).integers(1, 100, 64).astype(np.int32)
    out = np.zeros((9, 64), np.int32)
    launch("block_and_tiles", arch, (1,), (64,), (x, out))
    tiles = x.reshape(4, 16)
    lane = np.arange(16)
    down, up = np.where(lane + 3 < 16, lane + 3, lane).clip(max=15), np.where(lane > 0, lane - 1, lane)
    wanted = tiles[:, down] + tiles[:, lane ^ 8] + tiles[:, 5:6] + tiles[:, up]
    assert np.array_equal(out[0], x[::-1])
    assert np.array_equal(out[1], wanted.reshape(-1))
    assert np.array_equal(out[2], np.repeat(tiles.sum(1), 16))
    assert np.array_equal(out[3], np.repeat(tiles.min(1), 16) + x.reshape(-1, 2)[:, ::-1].reshape(-1))
    assert np.array_equal(out[4], np.cumsum(tiles, 1).reshape(-1))
    ballot = ((tiles > 50) << lane).sum(1) + 100000 * (tiles == 7).any(1) + 1000000
    assert np.array_equal(out[5], np.repeat(ballot, 16))
    assert np.array_equal(out[6], (lane + 100 * np.arange(4)[:, None] + 40000).reshape(-1))
    same = [[sum(1 << k for k in range(16) if t[k] & 3 == v & 3) for v in t] for t in tiles]
    assert np.array_equal(out[7], np.ravel(same))
    assert np.array_equal(out[8], np.arange(64) % 8 + 80)


def test_coalesced_threads_and_partitions(arch):
    x = np.random.default_rng(1).integers(0, 100, 64).astype(np.int32)
    out = np.zeros(4 * 64 + 1, np.int32)
    launch("coalesced", arch, (1,), (64,), (x, out))
    for start in (0, 32):
        warp = x[start : start + 32]
        odd = np.flatnonzero(warp & 1)
        assert np.array_equal(out[start + odd], np.arange(odd.size) + 100 * odd.size)
        assert (out[64 + start + odd] == warp[odd[0]]).all()
        assert (out[128 + start + odd] == warp[odd].sum()).all()
        sizes = np.array([(warp & 3 == v & 3).sum() for v in warp])
        ranks = np.array([((warp > 50) == (v > 50))[:k].sum() for k, v in enumerate(warp)])
        assert np.array_equal(out[192 + start : 224 + start], sizes + 100 * ranks)
    assert out[-1] == (x & 1).sum()


@pytest.mark.parametrize(("grid", "block"), [((1,), (32,)), ((3, 2), (96,)), ((130,), (8, 8, 2))])
def test_the_whole_grid_waits(arch, grid, block):
    x = np.random.default_rng(2).standard_normal(3000).astype(np.float32)
    y, z = np.zeros_like(x), np.zeros_like(x)
    trace = Trace(races=True) if grid == (3, 2) else None
    launch("whole_grid", arch, grid, block, (x, y, z, np.int32(3000)), cooperative=True, trace=trace)
    assert np.array_equal(z, 2 * (x[::-1] + 1))
    assert np.array_equal(y, np.roll(z, -7))
    assert trace is None or not trace.races


def test_a_grid_that_cannot_wait_says_so(arch):
    arrays = [np.zeros(64, np.float32) for _ in range(3)]
    with pytest.raises(EmulatorFault, match=r"this_grid\(\).sync\(\) needs a cooperative launch, cooperative=True"):
        launch("whole_grid", arch, (2,), (32,), (*arrays, np.int32(64)))
    with pytest.raises(ValueError, match="a cooperative launch runs all of its blocks"):
        launch("whole_grid", arch, (4,), (32,), (*arrays, np.int32(64)), cooperative=True, blocks=[0, 1])


def test_a_grid_of_which_one_block_left_is_a_deadlock():
    with pytest.raises(EmulatorFault, match="deadlock"):
        launch("one_leaves", "compute_80", (3,), (32,), (np.zeros(3, np.int32),), cooperative=True)


def test_groups_of_one_warp_with_masks_of_their_own():
    """Masks that differ within a warp: each instruction looks at its own group alone; a whole group waits for itself."""
    text = """extern "C" __global__ void k(const int* x, unsigned* out) {
      int i = threadIdx.x, n = blockDim.x, all;
      unsigned mask = i % 32 < 12 ? 0xfff : i % 32 < 20 ? 0xff000 : 0xfff00000, leader;
      out[i] = __reduce_add_sync(mask, x[i]);
      out[n + i] = __reduce_max_sync(mask, x[i]) + 1000 * __any_sync(mask, x[i] == 5) + 2000 * __all_sync(mask, x[i] > 3);
      out[2 * n + i] = __ballot_sync(mask, x[i] & 1);
      out[3 * n + i] = __match_any_sync(mask, x[i] & 3);
      out[4 * n + i] = __match_all_sync(mask, i / 4 * 0, &all) + all;
      asm volatile("{ .reg .pred p; elect.sync %0|p, %1; @p add.u32 %0, %0, 100; }" : "=r"(leader) : "r"(mask));
      out[5 * n + i] = leader;
      __shared__ int s[64];
      if (i % 32 >= 20) { for (int j = 0; j < 5; j++) s[i] = j; }
      s[i] = x[i];
      __syncwarp(mask);
      out[6 * n + i] = s[i % 32 < 12 ? i / 32 * 32 : i % 32 < 20 ? i / 32 * 32 + 12 : i / 32 * 32 + 31];
    }"""
    x = np.random.default_rng(3).integers(0, 40, 64).astype(np.int32)
    out = np.zeros((7, 64), np.uint32)
    Program(compile_ptx(text, "compute_90")).launch("k", (1,), (64,), (x, out))
    for start in (0, 32):
        for first, last, reader in ((0, 12, 0), (12, 20, 12), (20, 32, 31)):
            lanes = np.arange(first, last)
            group, mask = x[start + lanes], sum(1 << k for k in range(first, last))
            got = out[:, start + first : start + last]
            assert (got[0] == group.sum()).all()
            assert (got[1] == group.max() + 1000 * (group == 5).any() + 2000 * (group > 3).all()).all()
            assert (got[2] == ((group & 1) << lanes).sum()).all()
            assert got[3].tolist() == [((group & 3 == v & 3) << lanes).sum() for v in group]
            assert (got[4] == mask + 1).all()
            assert got[5].tolist() == [first + 100] + [first] * (last - first - 1)
            assert (got[6] == x[start + reader]).all()
