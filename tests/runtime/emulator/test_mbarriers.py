# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""mbarrier and bulk copies: phases, bytes, pipelines, and what is said about every step that is forgotten."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace

RNG = np.random.default_rng(0)
HEAD = r"""
typedef unsigned long long u64;
__device__ __forceinline__ unsigned at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
#define INIT(b, n) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(at(b)), "r"(n) : "memory")
#define INVAL(b) asm volatile("mbarrier.inval.shared::cta.b64 [%0];" :: "r"(at(b)) : "memory")
#define ARRIVE(b) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(at(b)) : "memory")
#define ARRIVE_N(b, n) asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" :: "r"(at(b)), "r"(n) : "memory")
#define ARRIVE_EXPECT(b, n) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(at(b)), "r"(n) : "memory")
#define EXPECT(b, n) asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" :: "r"(at(b)), "r"(n) : "memory")
#define WAIT(b, parity) asm volatile("{.reg .pred p;\nA: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%0], %1, 1000;\n @p bra B;\n bra A;\nB:\n}" :: "r"(at(b)), "r"(parity) : "memory")
#define BRING(to, from, n, b) asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" :: "r"(at(to)), "l"(from), "r"(n), "r"(at(b)) : "memory")
#define STORE(to, from, n) asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" :: "l"(to), "r"(at(from)), "r"(n) : "memory")
#define COMMIT asm volatile("cp.async.bulk.commit_group;" ::: "memory")
#define READ_OUT asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory")
#define WRITTEN asm volatile("cp.async.bulk.wait_group 0;" ::: "memory")
#define PROXY asm volatile("fence.proxy.async.shared::cta;" ::: "memory")
__device__ __forceinline__ int tested(u64* b, int parity) { int found; asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}" : "=r"(found) : "r"(at(b)), "r"(parity) : "memory"); return found; }
"""


def kernel(body, arguments="const int* x, int* y"):
    return f'{HEAD}extern "C" __global__ void k({arguments}) {{\n  int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;\n{body}\n}}'


def line_of(text, mark):
    return next(number for number, line in enumerate(text.split("\n"), 1) if f"// {mark}" in line)


def launch(text, *args, grid=1, block=128, trace=None):
    Program(compile_ptx(text, "compute_90a")).launch("k", (grid,), (block,), args, trace=trace)


def fault_of(text, *args, **about):
    with pytest.raises(EmulatorFault) as caught:
        launch(text, *args, **about)
    return caught.value


def clean(trace):
    assert not trace.races, trace.races[0].sentence
    assert not trace.faults, trace.faults[0].sentence


# --- phases ------------------------------------------------------------------------------------------------------------

PING = kernel("""  __shared__ u64 full, empty; __shared__ int box[64];
  if (!t) { INIT(&full, 64); INIT(&empty, 2); }
  __syncthreads(); // BARRIER
  for (int r = 0; r < 5; r++) {
    if (t < 64) {
      if (r) WAIT(&empty, (r - 1) & 1); // EMPTY
      box[t] = x[i + r]; // FILL
      ARRIVE(&full); // FULL
    } else {
      WAIT(&full, r & 1); // WAIT
      y[r * gridDim.x * 128 + i] = box[127 - t]; // TAKE
      __syncwarp();
      if (t % 32 == 0) ARRIVE(&empty);
    }
  }""")


def ping(text, trace=None, grid=3):
    x, y = RNG.integers(-999, 999, grid * 128 + 5).astype(np.int32), np.zeros((5, grid, 128), np.int32)
    launch(text, x, y, grid=grid, trace=trace)
    wanted = np.zeros_like(y)
    for r in range(5):
        for block in range(grid):
            wanted[r, block, 64:] = x[block * 128 + r : block * 128 + r + 64][::-1]
    return y, wanted


@pytest.mark.parametrize("traced", [False, True])
def test_values_are_handed_over_phase_by_phase(traced):
    trace = Trace() if traced else None
    got, wanted = ping(PING, trace)
    assert np.array_equal(got, wanted)
    if traced:
        clean(trace)


def test_a_missing_wait_is_a_race():
    wrong = PING.replace("WAIT(&full, r & 1); // WAIT", "")
    trace = Trace()
    with pytest.raises(EmulatorFault):
        ping(wrong, trace)
    assert ("read after write", line_of(wrong, "TAKE"), line_of(wrong, "FILL")) in {
        (r.kind, r.line, r.other_line) for r in trace.races
    } or trace.faults


def test_a_barrier_that_is_initialised_too_late_is_a_race():
    wrong = PING.replace("__syncthreads(); // BARRIER", "__syncwarp();")
    trace = Trace()
    ping(wrong, trace, grid=1)
    initialised = line_of(PING, "BARRIER") - 1
    assert ("write after write", initialised) in {(race.kind, race.other_line) for race in trace.races}


@pytest.mark.parametrize(("old", "new", "mark", "missing"), [
    ("ARRIVE(&full); // FULL", "if (t) ARRIVE(&full);", "WAIT", "phase 0 never completes: 1 of 64 arrivals missing"),
    ("WAIT(&full, r & 1); // WAIT", "WAIT(&full, (r & 1) ^ 1); // WAIT", "WAIT", "waits at line"),
    ("if (t % 32 == 0) ARRIVE(&empty);", "if (t % 64 == 0) ARRIVE(&empty);", "EMPTY", "phase 0 never completes: 1 of 2 arrivals missing"),
    ("INIT(&full, 64)", "INIT(&full, 65)", "WAIT", "1 of 65 arrivals missing"),
])  # fmt: skip
def test_deadlock_says_what_is_missing(old, new, mark, missing):
    assert old in PING
    wrong = PING.replace(old, new)
    fault = fault_of(wrong, np.zeros(133, np.int32), np.zeros(640, np.int32))
    if "^ 1" in new:
        assert fault.kind in ("deadlock", "mbarrier")
        return
    assert fault.kind == "deadlock"
    assert fault.line == line_of(wrong, mark) or mark == "WAIT"
    assert missing in fault.sentence


def test_waiting_costs_no_turns():
    """A loop around try_wait executes its instruction once, however long it takes."""
    trace = Trace()
    ping(PING, trace, grid=1)
    waits = trace.lines()[line_of(PING, "WAIT")]
    assert waits.instructions <= 2 * 5 * 8  # two warps, five rounds, the few instructions of the loop


def test_states_and_counts():
    text = kernel("""  __shared__ u64 b, c;
  if (!t) { INIT(&b, 5); INIT(&c, 2); }
  __syncthreads();
  if (!t) {
    u64 state, first; unsigned left;
    for (int r = 0; r < 5; r++) {
      asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(at(&b)) : "memory");
      if (!r) first = state;
      asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(left) : "l"(state));
      y[r] = left;
    }
    asm volatile("{.reg .pred p; mbarrier.try_wait.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}" : "=r"(y[5]) : "r"(at(&b)), "l"(first) : "memory");
    asm volatile("mbarrier.arrive_drop.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(at(&c)) : "memory");
    y[6] = tested(&c, 0); ARRIVE(&c); y[7] = tested(&c, 0); ARRIVE(&c); y[8] = tested(&c, 1); y[9] = tested(&c, 0);
    INVAL(&c); INIT(&c, 3); ARRIVE_N(&c, 3); y[10] = tested(&c, 0);
  }""")
    y = np.zeros(11, np.int32)
    launch(text, np.zeros(1, np.int32), y, block=32)
    assert y.tolist() == [5, 4, 3, 2, 1, 1, 0, 1, 1, 0, 1]


def test_more_arrivals_than_one_phase_has():
    """64 threads arrive at a barrier of 16 at once: four phases."""
    text = kernel(
        """  __shared__ u64 b; if (!t) INIT(&b, 16); __syncthreads(); ARRIVE(&b); __syncthreads(); y[t] = tested(&b, 1) + 2 * tested(&b, 0);"""
    )
    y = np.zeros(64, np.int32)
    launch(text, np.zeros(1, np.int32), y, block=64)
    assert (y == 1).all()


@pytest.mark.parametrize(("body", "says"), [
    ("__syncthreads(); ARRIVE(&b);", "has not been initialised"),
    ("if (!t) INIT(&b, 1); __syncthreads(); if (!t) { INVAL(&b); WAIT(&b, 0); }", "has not been initialised"),
    ("if (!t) INIT(&b, 0);", "must be 1 to 1048575"),
    ("if (!t) { INIT(&b, 2); INIT(&b, 2); }", "was initialised at line"),
    ("if (!t) { INIT(&b, 2); ARRIVE_EXPECT(&b, 16); ARRIVE_N(&b, 2); }", "one arrival too many"),
    ("if (!t) { INIT(&b, 2); EXPECT(&b, 1048575); EXPECT(&b, 1); }", "overflows"),
    ("if (!t) { INIT((char*)&d[0] + 4, 1); }", "multiple of 8"),
    ("if (!t) { asm volatile(\"mbarrier.init.b64 [%0], 1;\" :: \"l\"(y) : \"memory\"); }", "lies in shared memory"),
])  # fmt: skip
def test_misuse_is_named(body, says):
    text = kernel(f"  __shared__ u64 b, d[2];\n{body} // HERE")
    fault = fault_of(text, np.zeros(1, np.int32), np.zeros(1, np.int32), block=32)
    assert says in fault.sentence
    assert fault.line == line_of(text, "HERE")


# --- bulk copies into shared memory --------------------------------------------------------------------------------------

RING = kernel("""  __shared__ __align__(128) int stage[3][128]; __shared__ u64 full[3], empty[3];
  if (!t) for (int k = 0; k < 3; k++) { INIT(&full[k], 1); INIT(&empty[k], 3); }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  if (t >= 96) {
    if (t == 96) for (int k = 0; k < 8; k++) {
      int slot = k % 3;
      if (k >= 3) WAIT(&empty[slot], (k / 3 - 1) & 1); // EMPTY
      ARRIVE_EXPECT(&full[slot], 512); // ANNOUNCE
      BRING(stage[slot], x + (blockIdx.x * 8 + k) * 128, 512, &full[slot]); // BRING
    }
  } else {
    int sum = 0;
    for (int k = 0; k < 8; k++) {
      int slot = k % 3;
      WAIT(&full[slot], k / 3 & 1); // FULL
      sum = sum * 3 + stage[slot][t + 32]; // USE
      __syncwarp();
      if (t % 32 == 0) ARRIVE(&empty[slot]); // GIVE
    }
    y[i] = sum;
  }""")


def ring(text, trace=None, grid=3):
    x, y = RNG.integers(-999, 999, (grid, 8, 128)).astype(np.int32), np.zeros((grid, 128), np.int32)
    launch(text, x, y, grid=grid, trace=trace)
    wanted = np.zeros_like(y)
    for k in range(8):
        wanted[:, :96] = wanted[:, :96] * 3 + x[:, k, 32:]
    return y, wanted


@pytest.mark.parametrize("traced", [False, True])
def test_a_ring_of_stages(traced):
    trace = Trace() if traced else None
    got, wanted = ring(RING, trace)
    assert np.array_equal(got, wanted)
    if traced:
        clean(trace)
        lines = trace.lines()
        assert lines[line_of(RING, "BRING")].accesses["global", "load"].bytes == 3 * 8 * 512
        assert lines[line_of(RING, "BRING")].accesses["global", "load"].units == 3 * 8 * 16
        assert lines[line_of(RING, "BRING")].accesses["shared", "store"].units == 3 * 8 * 4


@pytest.mark.parametrize(("old", "new", "kind"), [
    ("WAIT(&full[slot], k / 3 & 1); // FULL", "// FULL", ("bulk copy without its wait", "USE", "BRING")),
    ("if (k >= 3) WAIT(&empty[slot], (k / 3 - 1) & 1); // EMPTY", "// EMPTY", None),
    ("k / 3 & 1); // FULL", "k / 3 & 1 ^ 1); // FULL", ("bulk copy without its wait", "USE", "BRING")),
], ids=["no wait", "no wait for the stage", "wrong parity"])  # fmt: skip
def test_a_forgotten_wait_is_wrong_and_named(old, new, kind):
    assert old in RING
    wrong = RING.replace(old, new)
    trace, stopped = Trace(), False
    try:
        got, wanted = ring(wrong, trace)
    except EmulatorFault as fault:
        stopped = fault.kind in ("mbarrier", "deadlock")
    assert stopped or not np.array_equal(got, wanted)
    if kind and not any(
        fault.kind == "unwritten read" and fault.line == line_of(wrong, "USE") for fault in trace.faults
    ):
        what, line, other = kind
        assert (what, line_of(wrong, line), line_of(wrong, other)) in {
            (r.kind, r.line, r.other_line) for r in trace.races
        }


def test_one_thread_waits_and_the_others_do_not():
    """Another thread's wait is no wait; with a barrier behind it, it is."""
    text = kernel("""  __shared__ __align__(16) int s[128]; __shared__ u64 b;
  if (!t) { INIT(&b, 1); ARRIVE_EXPECT(&b, 512); BRING(s, x, 512, &b); // BRING
    WAIT(&b, 0); }
  __syncthreads(); // BARRIER
  y[t] = s[127 - t]; // USE""")
    x, trace, y = np.arange(128, dtype=np.int32), Trace(), np.zeros(128, np.int32)
    launch(text, x, y, trace=trace)
    assert np.array_equal(y, x[::-1])
    clean(trace)
    wrong = text.replace("__syncthreads(); // BARRIER", "")
    trace = Trace()
    launch(wrong, x, y, trace=trace)
    assert [(r.kind, r.line, r.other_line) for r in trace.races] == [
        ("bulk copy without its wait", line_of(wrong, "USE"), line_of(wrong, "BRING"))
    ]


@pytest.mark.parametrize(("old", "new", "says"), [
    ("ARRIVE_EXPECT(&full[slot], 512); // ANNOUNCE", "ARRIVE(&full[slot]);", None),
    ("ARRIVE_EXPECT(&full[slot], 512)", "ARRIVE_EXPECT(&full[slot], 528)", "16 announced bytes missing"),
    ("ARRIVE_EXPECT(&full[slot], 512)", "ARRIVE_EXPECT(&full[slot], 496)", "the announcement of 16 bytes missing"),
    ("ARRIVE_EXPECT(&full[slot], 512)", "EXPECT(&full[slot], 512)", "1 of 1 arrival missing"),
    ("BRING(stage[slot], x + (blockIdx.x * 8 + k) * 128, 512, &full[slot]); // BRING", "", "512 announced bytes missing"),
    ("if (t % 32 == 0) ARRIVE(&empty[slot]); // GIVE", "if (t == 32) ARRIVE(&empty[slot]);", "2 of 3 arrivals missing"),
])  # fmt: skip
def test_bytes_that_do_not_add_up(old, new, says):
    assert old in RING
    wrong = RING.replace(old, new)
    if says is None:  # the phase ends before the bytes are there
        trace = Trace()
        with pytest.raises(EmulatorFault) as caught:
            ring(wrong, trace)
        assert caught.value.kind in ("deadlock", "mbarrier")
        assert "bulk copy without its wait" in {race.kind for race in trace.races}
        return
    with pytest.raises(EmulatorFault) as caught:
        ring(wrong)
    assert caught.value.kind == "deadlock"
    assert says in caught.value.sentence


@pytest.mark.parametrize(("old", "new", "kind"), [
    ("* 128, 512, &full", "* 128, 520, &full", "misaligned"), ("* 128, 512, &full", "* 128 + 1, 512, &full", "misaligned"),
    ("BRING(stage[slot],", "BRING(stage[slot] + 2,", "misaligned"), ("* 8 + k) * 128", "* 8 + k) * 128 + 4 * (k == 7)", "out of bounds"),
    ("BRING(stage[slot],", "BRING(stage[slot] + 4 * (slot == 2),", "out of bounds"),
])  # fmt: skip
def test_misaligned_and_outside(old, new, kind):
    assert old in RING
    wrong = RING.replace(old, new)
    with pytest.raises(EmulatorFault) as caught:
        ring(wrong)
    assert caught.value.kind == kind
    assert caught.value.line == line_of(wrong, "BRING")


# --- bulk copies out of shared memory ------------------------------------------------------------------------------------

OUT = kernel("""  __shared__ __align__(16) int s[128];
  s[t] = x[i] * 2; // FILL
  PROXY; // FENCE
  __syncthreads(); // BARRIER
  if (!t) {
    STORE(y + i, s, 512); // STORE
    COMMIT; // COMMIT
    READ_OUT; // READ
  }
  __syncthreads();
  s[t] = 7; // AGAIN""")


def out(text, trace=None):
    x, y = RNG.integers(-999, 999, 384).astype(np.int32), np.zeros(384, np.int32)
    launch(text, x, y, grid=3, trace=trace)
    return y, x * 2


def test_a_store_reads_before_its_source_is_overwritten():
    trace = Trace()
    got, wanted = out(OUT, trace)
    assert np.array_equal(got, wanted)
    clean(trace)


def test_a_store_whose_source_is_overwritten():
    wrong = OUT.replace("    READ_OUT; // READ\n", "\n").replace("// AGAIN", "// AGAIN\n  if (!t) WRITTEN;")
    trace = Trace()
    got, wanted = out(wrong, trace)
    assert not np.array_equal(got, wanted)
    assert ("write after read", line_of(wrong, "AGAIN"), line_of(wrong, "STORE")) in {
        (r.kind, r.line, r.other_line) for r in trace.races
    }


@pytest.mark.parametrize("line", ["    COMMIT; // COMMIT\n", "    READ_OUT; // READ\n"])
def test_leaving_without_a_wait(line):
    wrong = OUT.replace(line, "\n")
    fault = fault_of(wrong, np.zeros(384, np.int32), np.zeros(384, np.int32), grid=3)
    assert fault.kind == "bulk copy without its wait"
    assert fault.line == line_of(wrong, "STORE")


def test_a_store_without_its_fence_or_barrier():
    for old, finding in (
        ("PROXY; // FENCE", "missing proxy fence"),
        ("__syncthreads(); // BARRIER", "read after write"),
    ):
        trace = Trace()
        wrong = OUT.replace(old, "")
        out(wrong, trace)
        assert (finding, line_of(wrong, "STORE"), line_of(wrong, "FILL")) in {
            (r.kind, r.line, r.other_line) for r in trace.races
        }


def test_written_only_after_the_whole_wait():
    text = OUT.replace(
        "READ_OUT; // READ", "READ_OUT; y[384 + blockIdx.x] = y[i]; WRITTEN; y[387 + blockIdx.x] = y[i];"
    )
    x, y = np.arange(1, 385, dtype=np.int32), np.zeros(390, np.int32)
    launch(text, x, y, grid=3)
    assert np.array_equal(y[:384], x * 2)
    assert (y[384:387] == 0).all()
    assert np.array_equal(y[387:], x[::128] * 2)


@pytest.mark.parametrize(("kind", "dtype", "function"), [
    ("add.u32", np.uint32, np.add), ("add.s32", np.int32, np.add), ("min.s32", np.int32, np.minimum), ("max.u32", np.uint32, np.maximum),
    ("and.b32", np.uint32, np.bitwise_and), ("or.b32", np.uint32, np.bitwise_or), ("xor.b32", np.uint32, np.bitwise_xor),
    ("add.f32", np.float32, np.add), ("add.noftz.f16", np.float16, np.add), ("add.u64", np.uint64, np.add), ("add.f64", np.float64, np.add),
])  # fmt: skip
def test_reductions(kind, dtype, function):
    text = kernel(f"""  __shared__ __align__(16) int s[128]; s[t] = x[i]; PROXY; __syncthreads();
  if (t < 2) {{ asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.{kind} [%0], [%1], 512;" :: "l"(y), "r"(at(s)) : "memory"); COMMIT; READ_OUT; }}""")
    x, y = (RNG.integers(0, 200, 512 // np.dtype(dtype).itemsize).astype(dtype) for _ in range(2))
    wanted = function(function(y, x), x)
    launch(text, x.view(np.int32), y.view(np.int32))
    assert np.array_equal(y, wanted)


@pytest.mark.parametrize(("noinc", "count"), [(".noinc", 64), ("", 1)])
def test_arrivals_behind_cp_async(noinc, count):
    """Two warps copy, the other two wait on an mbarrier that the copies' arrival counts at."""
    own = "" if noinc else "__syncthreads(); if (!t) ARRIVE(&b);"
    text = kernel(f"""  __shared__ __align__(16) int s[64]; __shared__ u64 b; if (!t) INIT(&b, {count}); __syncthreads();
  if (t < 64) {{ asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(at(&s[t])), "l"(x + i) : "memory");
    asm volatile("cp.async.mbarrier.arrive{noinc}.shared::cta.b64 [%0];" :: "r"(at(&b)) : "memory"); }}
  {own}
  if (t >= 64) {{ WAIT(&b, 0); y[i] = s[127 - t]; }}""")
    x, y, trace = RNG.integers(-99, 99, (3, 128)).astype(np.int32), np.zeros((3, 128), np.int32), Trace()
    launch(text, x, y, grid=3, trace=trace)
    assert np.array_equal(y[:, 64:], x[:, 63::-1])
    clean(trace)
    launch(text.replace("WAIT(&b, 0);", ""), x, y, grid=3)
    assert not np.array_equal(y[:, 64:], x[:, 63::-1])


def test_as_the_toolkit_writes_it():
    """cuda::barrier and cuda::ptx, as in the CUDA C++ Programming Guide."""
    text = """#include <cuda/barrier>
using barrier = cuda::barrier<cuda::thread_scope_block>;
namespace cde = cuda::device::experimental;
extern "C" __global__ void k(const int* x, int* y) {
  #pragma nv_diag_suppress static_var_with_dynamic_init
  __shared__ barrier bar;
  __shared__ alignas(128) int s[256];
  if (threadIdx.x == 0) { init(&bar, blockDim.x); cde::fence_proxy_async_shared_cta(); }
  __syncthreads();
  barrier::arrival_token token;
  if (threadIdx.x == 0) {
    cde::cp_async_bulk_global_to_shared(s, x + blockIdx.x * 256, sizeof(s), bar);
    token = cuda::device::barrier_arrive_tx(bar, 1, sizeof(s));
  } else token = bar.arrive();
  bar.wait(cuda::std::move(token));
  for (int i = threadIdx.x; i < 256; i += blockDim.x) s[i] += 1;
  cde::fence_proxy_async_shared_cta();
  __syncthreads();
  if (threadIdx.x == 0) {
    cde::cp_async_bulk_shared_to_global(y + blockIdx.x * 256, s, sizeof(s));
    cde::cp_async_bulk_commit_group();
    cde::cp_async_bulk_wait_group_read<0>();
  }
}"""
    x, y, trace = RNG.integers(-99, 99, (2, 256)).astype(np.int32), np.zeros((2, 256), np.int32), Trace()
    launch(text, x, y, grid=2, block=64, trace=trace)
    assert np.array_equal(y, x + 1)
    clean(trace)


def test_refused_by_name():
    for instruction in (
        "mbarrier.arrive.expect_tx.shared.b64 rd, [r];",
        "mbarrier.frob.shared.b64 [r];",
        "cp.async.bulk.global.global [rd], [rd], 16;",
        "mbarrier.test_wait.shared.b32 p, [r], rd;",
    ):
        text = f".version 8.6\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{{\n.reg .b32 r; .reg .b64 rd; .reg .pred p;\n{instruction}\nret;\n}}\n"
        with pytest.raises(NotImplementedError, match=r"the emulator does not know `" + instruction.split()[0]):
            Program(text).plan("k")
