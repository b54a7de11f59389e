"""Other orders of the warpgroups: right kernels come to the same, and what lacks a wait does not."""

import numpy as np
import pytest

from styleforge_lib.runtime import compile_cuda
from styleforge_lib.runtime.emulator import ORDERS, EmulatorFault, Trace

# One warpgroup gives numbers to another, round by round, through two places.
HANDOVER = """
__device__ unsigned at(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
__device__ void arrive(unsigned long long* b) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(at(b)) : "memory");
}
__device__ void wait(unsigned long long* b, int parity) {
    unsigned done = 0;
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(at(b)), "r"(parity) : "memory");
}
extern "C" __global__ void handover(int* out, int rounds) {
    __shared__ unsigned long long full[2], empty[2];
    __shared__ int place[2][128];
    int self = threadIdx.x % 128;
    if (threadIdx.x < 2) {
        asm volatile("mbarrier.init.shared.b64 [%0], 128;" ::"r"(at(full + threadIdx.x)) : "memory");
        asm volatile("mbarrier.init.shared.b64 [%0], 128;" ::"r"(at(empty + threadIdx.x)) : "memory");
    }
    place[threadIdx.x / 128][self] = -1;
    __syncthreads();
    for (int i = 0; i < rounds; i++) {
        if (threadIdx.x GIVES) {
            GIVE_WAIT;
            place[i % 2][127 - self] = 1000 * i + self;
            arrive(full + i % 2);
        } else {
            TAKE_WAIT;
            out[i * 128 + self] = place[i % 2][self];
            arrive(empty + i % 2);
        }
    }
}
"""
ROUNDS = 4
EXPECTED = 1000 * np.arange(ROUNDS)[:, None] + 127 - np.arange(128)
WAITS = {"GIVE_WAIT": "wait(empty + i % 2, (i / 2 + 1) % 2)", "TAKE_WAIT": "wait(full + i % 2, i / 2 % 2)"}


def handed_over(order, gives="< 128", trace=None, **waits):
    text = HANDOVER.replace("GIVES", gives)
    for name, wait in (WAITS | waits).items():
        text = text.replace(name, wait)
    out = np.zeros((ROUNDS, 128), np.int32)
    compile_cuda(text, arch="sm_90").only.emulate(1, 256, (out, ROUNDS), order=order, trace=trace)
    return out


@pytest.mark.parametrize("gives", ["< 128", ">= 128"])
@pytest.mark.parametrize("order", ORDERS)
def test_what_waits_is_right_in_any_order(order, gives):
    assert np.array_equal(handed_over(order, gives), EXPECTED)


def found(order, **waits):
    """Return whether a launch ends in a deadlock or with other numbers; the race detector says nothing of it."""
    trace = Trace()
    try:
        made = handed_over(order, trace=trace, **waits)
    except EmulatorFault as fault:
        if fault.kind != "deadlock":
            raise
        made = None
    assert not trace.races
    return made is None or not np.array_equal(made, EXPECTED)


@pytest.mark.parametrize(
    ("missing", "order"), [("GIVE_WAIT", "first warpgroup ahead"), ("TAKE_WAIT", "last warpgroup ahead")]
)
def test_a_missing_wait_is_found_where_the_detector_is_silent(missing, order):
    assert not found("together")
    assert found(order, **{missing: ""})


def test_an_order_that_is_none():
    with pytest.raises(ValueError, match="'backwards' is none of 'together', 'first warpgroup ahead'"):
        handed_over("backwards")
