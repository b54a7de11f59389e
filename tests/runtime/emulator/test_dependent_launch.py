"""What a kernel does before griddepcontrol.wait, read from its control flow."""

import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import Program

HEAD = """#define WAIT asm volatile("griddepcontrol.wait;" ::: "memory");
extern "C" __global__ void k(const float* x, float* y, int n) { extern __shared__ float shared[]; int t = threadIdx.x;
"""


def program(body):
    return Program(compile_ptx(HEAD + body + "\n}", "compute_90"), sources={"kernel.cu": HEAD + body})


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("WAIT\nif (t < n) y[t] = 1;", None),
        (
            "if (t == 0) shared[n] = 1;\nWAIT\nfor (int i = t; i < n; i += 32) { if (y[i] > 1) break; y[i] = x[i]; }",
            None,
        ),
        ("if (t < n) { WAIT y[t] = 1; }\nelse { WAIT y[t] = 2; }", None),
        ("if (t > n) __trap();\nWAIT y[t] = 1;", None),
        ("n++;\nif (t > n)\nreturn;\nWAIT y[t] = 1;", 4),
        ("if (t < n) {\nWAIT y[t] = 1; }", 3),
        ("y[t] = 1;", 4),
        ("for (int i = 0; i < n; i++) WAIT\ny[t] = 1;", 3),
    ],
)
def test_a_thread_that_ends_without_waiting(body, line):
    assert program(body).end_without_wait("k") == line


@pytest.mark.parametrize(
    ("body", "early"),
    [
        ("WAIT\ny[t] = x[t];", []),
        ("float v = x[t];\nshared[t] = v;\nWAIT\ny[t] = v + shared[t ^ 1];", [(3, "ld.global")]),
        ("y[t] = 0;\nWAIT\ny[t] = x[t];", [(3, "st.global")]),
        ("if (t < n) WAIT\ny[t] = x[t];", [(4, "ld.global"), (4, "st.global")]),
        ("atomicAdd(y, 1.0f);\nWAIT", [(3, "global.add")]),
        (
            'asm volatile("cp.async.bulk.prefetch.L2.global [%0], 16;" :: "l"(x));\n'
            'asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" :: "r"(0), "l"(x));\nWAIT\ny[t] = shared[t];',
            [(4, "cp.async")],
        ),
    ],
)
def test_what_touches_global_memory_before_the_wait(body, early):
    found = program(body).before_the_wait("k")
    assert [line for line, _ in found] == [line for line, _ in early]
    assert all(word in name for (_, name), (_, word) in zip(found, early, strict=True))
