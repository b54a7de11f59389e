# ruff: noqa: E501 (kernels keep one case to a line)
"""Batches of blocks in two threads: the bits, faults and prints of one; and which kernels are left to one."""

import threading
import time

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace, batches, schedule
from styleforge_lib.runtime.emulator.translate.multiply_add import Underflow

GAINS = batches._gains
THREADS, BLOCKS = 256, 256
LANES = THREADS * BLOCKS
KERNELS = """
extern "C" __global__ void apart(const float* x, float* y, int turns) {
  int i = blockIdx.x * blockDim.x + threadIdx.x; float s = x[i];
  for (int j = 0; j < turns; j++) s = fmaf(s, 0.75f, x[(i + 37 * j) % (gridDim.x * blockDim.x)]);
  y[i] = s; }
extern "C" __global__ void one_place(const float* x, float* y) { y[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x]; }
extern "C" __global__ void faulty(const float* x, float* y, int first, int second) {
  int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = x[i];
  if (blockIdx.x == first && threadIdx.x < 3) y[i] = x[i + (1 << 24)];
  if (blockIdx.x == second && threadIdx.x < 5) y[i - (1 << 24)] = x[i]; }
extern "C" __global__ void slow_start(const float* x, float* y, int turns) {
  int i = blockIdx.x * blockDim.x + threadIdx.x; float s = x[i];
  if (blockIdx.x < 4) for (int j = 0; j < turns; j++) s = s * 0.5f + 1;
  y[i % 64] = s; if (blockIdx.x >= gridDim.x - 2) y[i + (1 << 24)] = s; }
extern "C" __global__ void in_place(float* x) { int i = blockIdx.x * blockDim.x + threadIdx.x; x[i] = x[LAST - i] + 1; }
extern "C" __global__ void moved(const float* x, float* y) { int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = x[i] + 1; }
extern "C" __global__ void adds(const float* x, float* y) { atomicAdd(y, x[blockIdx.x * blockDim.x + threadIdx.x]); }
extern "C" __global__ void fenced(const float* x, float* y) { int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = x[i]; __threadfence(); }
extern "C" __global__ void volatile_store(const float* x, volatile float* y) { int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = x[i]; }
extern "C" __global__ void prints(const float* x, float* y) { int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = x[i];
  if (threadIdx.x == 0) printf("block %d\\n", blockIdx.x); }
extern "C" __global__ void in_a_block(const float* x, float* y) { __shared__ float s; if (!threadIdx.x) s = 0; __syncthreads();
  atomicAdd(&s, 1.f); __syncthreads(); y[blockIdx.x * blockDim.x + threadIdx.x] = s + x[threadIdx.x]; }
""".replace("LAST", str(LANES - 1))


@pytest.fixture(scope="module")
def program():
    return Program(compile_ptx(KERNELS))


@pytest.fixture(autouse=True)
def _every_kernel_gains(monkeypatch):
    monkeypatch.setattr(batches, "_gains", lambda body: True)


@pytest.fixture
def taken(monkeypatch):
    """Collect the threads that have run batches, and how many blocks these had."""
    found = []
    run = schedule.Batch.run

    def watched(batch, pulse=None):
        found.append((threading.get_ident(), batch.block_numbers.size))
        time.sleep(0.05)  # a busy machine may be late to start a thread, which then finds nothing left to do
        run(batch, pulse)

    monkeypatch.setattr(schedule.Batch, "run", watched)
    return found


def x(lanes=LANES):
    return np.random.default_rng(0).standard_normal(lanes).astype(np.float32)


def launch(program, name, *rest, threads, blocks=BLOCKS, **options):
    y = np.full(blocks * THREADS, 7, np.float32)
    program.launch(name, (blocks,), (THREADS,), (x(blocks * THREADS), y, *rest), threads=threads, **options)
    return y.view(np.uint32)


@pytest.mark.parametrize("blocks", [128, 200, 256, 300, 1111])
@pytest.mark.parametrize("threads", [2, 3])
def test_the_same_bits(program, taken, blocks, threads):
    one = launch(program, "apart", np.int32(9), threads=1, blocks=blocks)
    sizes = [size for _, size in taken]
    assert len({thread for thread, _ in taken}) == 1
    taken.clear()
    assert np.array_equal(launch(program, "apart", np.int32(9), threads=threads, blocks=blocks), one)
    assert sorted(size for _, size in taken) == sorted(sizes)  # cut alike, however many threads there are
    assert len(sizes) >= 2
    assert len({thread for thread, _ in taken}) > 1


def test_the_last_block_wins_where_all_store_to_one_place(program):
    for _ in range(5):
        y = launch(program, "one_place", threads=2)[:THREADS]
        assert np.array_equal(y.view(np.float32), x()[-THREADS:])


def test_what_numpy_tells_one_thread_is_not_told_to_another():
    """A float64 sum that becomes a subnormal is looked at again: NumPy says so by a flag, which each thread has."""
    seen = []
    Underflow.seen = True
    other = threading.Thread(target=lambda: seen.append(Underflow.seen))
    other.start()
    other.join()
    assert seen == [False]


@pytest.mark.parametrize("places", [(3, 200), (200, 3), (130, 250), (-1, 140), (255, -1)])
def test_the_same_fault_and_the_same_memory(program, places):
    found = []
    for threads in (1, 2, 2, 2):
        y = np.full(LANES, 7, np.float32)
        with pytest.raises(EmulatorFault) as caught:
            program.launch("faulty", (BLOCKS,), (THREADS,), (x(), y, *map(np.int32, places)), threads=threads)
        fault = caught.value
        found.append((str(fault), fault.kind, fault.line, fault.block, fault.threads, y.tobytes()))
    assert len(set(found)) == 1


def test_the_fault_of_a_fast_batch_waits_for_the_slow_one_before_it(program, taken):
    """The second half is at fault long before the first has ended; what the first stores is in memory all the same."""
    y = np.zeros(64, np.float32)
    with pytest.raises(EmulatorFault, match=r"block \(254,0,0\)"):
        program.launch("slow_start", (BLOCKS,), (THREADS,), (x(), y, np.int32(400)), threads=2)
    assert len({thread for thread, _ in taken}) == 2
    assert (y != 0).all()


@pytest.mark.parametrize("name", ["in_place", "adds", "fenced", "volatile_store", "prints"])
def test_blocks_that_may_notice_each_other_run_in_one_thread(program, taken, name, capsys):
    y = x()
    program.launch(name, (BLOCKS,), (THREADS,), (y,) if name == "in_place" else (x(), y), threads=2)
    assert len({thread for thread, _ in taken}) == 1
    if name == "prints":
        assert capsys.readouterr().out == "".join(f"block {number}\n" for number in range(BLOCKS))


def test_an_array_that_is_read_and_written_through_two_pointers(program, taken):
    memory = x(2 * LANES)
    program.launch("moved", (BLOCKS,), (THREADS,), (memory[:LANES], memory[LANES // 2 : LANES // 2 + LANES]), threads=2)
    assert len({thread for thread, _ in taken}) == 1
    taken.clear()
    program.launch("moved", (BLOCKS,), (THREADS,), (memory[:LANES], memory[LANES:]), threads=2)
    assert len({thread for thread, _ in taken}) == 2


@pytest.mark.parametrize("same", [True, False])
def test_matrices_in_global_memory_are_read_and_written(taken, same):
    text = """#include <mma.h>
    using namespace nvcuda;
    extern "C" __global__ void k(const float* x, float* y) { int w = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
      wmma::fragment<wmma::accumulator, 16, 16, 16, float> f; wmma::load_matrix_sync(f, x + w * 256, 16, wmma::mem_row_major);
      wmma::store_matrix_sync(y + w * 256, f, 16, wmma::mem_row_major); }"""
    memory = x(2 * LANES // 32 * 256)
    wanted = memory[: LANES // 32 * 256].copy()
    there = memory[: wanted.size] if same else memory[wanted.size :]
    Program(compile_ptx(text)).launch("k", (BLOCKS,), (THREADS,), (memory[: wanted.size], there), threads=2)
    assert np.array_equal(there, wanted)
    assert len({thread for thread, _ in taken}) == (1 if same else 2)


def test_atomics_in_shared_memory_are_a_block_s_own(program, taken):
    assert (
        launch(program, "in_a_block", threads=2).view(np.float32).reshape(BLOCKS, -1) == THREADS + x()[:THREADS]
    ).all()
    assert len({thread for thread, _ in taken}) == 2


def test_a_traced_launch_and_a_small_one_run_in_one_thread(program, taken):
    launch(program, "apart", np.int32(2), threads=2, trace=Trace(races=False))
    launch(program, "apart", np.int32(2), threads=2, blocks=8)
    assert len({thread for thread, _ in taken}) == 1


def test_the_environment_says_how_many(program, taken, monkeypatch):
    monkeypatch.setenv(batches.VARIABLE, "1")
    launch(program, "apart", np.int32(2), threads=None)
    assert len({thread for thread, _ in taken}) == 1
    monkeypatch.setenv(batches.VARIABLE, "2")
    launch(program, "apart", np.int32(2), threads=None)
    assert len({thread for thread, _ in taken}) == 2
    for wrong in ("0", "two", "-1"):
        monkeypatch.setenv(batches.VARIABLE, wrong)
        with pytest.raises(ValueError, match=f"{batches.VARIABLE} must be a positive number; it is {wrong}"):
            launch(program, "apart", np.int32(2), threads=None)
    monkeypatch.delenv(batches.VARIABLE)
    monkeypatch.setattr(batches.os, "cpu_count", lambda: 1)
    assert batches.thread_count(None) == 1


def test_reports_count_what_is_in_memory(program, monkeypatch):
    monkeypatch.setattr(schedule, "_BETWEEN_REPORTS", 0)
    reports = []
    launch(program, "apart", np.int32(9), threads=2, blocks=700, progress=lambda *report: reports.append(report))
    done = [one for one, _ in reports]
    assert {total for _, total in reports} == {700}
    assert done == sorted(done)
    assert {0, 256, 512, 700} <= set(done)


def test_an_interrupt_ends_all_threads(program):
    def stop(done, total):
        raise KeyboardInterrupt

    before = threading.active_count()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="at least 0 of 256 blocks done"):
        launch(program, "apart", np.int32(1_000_000), threads=2, progress=stop)
    assert threading.active_count() == before
    assert time.monotonic() - start < 30


def test_what_another_thread_meets_is_raised(program, monkeypatch):
    run = schedule.Batch.run

    def failing(batch, pulse=None):
        if batch.block_numbers[0]:
            raise NotImplementedError("in the second batch")
        run(batch, pulse)

    monkeypatch.setattr(schedule.Batch, "run", failing)
    with pytest.raises(NotImplementedError, match="in the second batch"):
        launch(program, "apart", np.int32(2), threads=2)


def test_a_kernel_without_matrix_instructions_is_left_to_one_thread(program, taken, monkeypatch):
    """Its array operations are too short for two threads to gain, and it is not cut for them."""
    monkeypatch.setattr(batches, "_gains", GAINS)
    fresh = Program(program.ptx)
    launch(fresh, "apart", np.int32(2), threads=2)
    assert [size for _, size in taken] == [BLOCKS]
