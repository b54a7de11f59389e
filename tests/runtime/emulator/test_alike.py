"""What the race detector says does not depend on whether blocks that do the same are judged together."""

import random

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import Program, Trace
from styleforge_lib.runtime.emulator.alike import AlikeBlocks

PLACES = ("i", "i / 2", "63 - i", "i ^ 32", "i ^ 1", "7", "(i + 5) & 63", "(i * 3 + blockIdx.x) & 63", "i & 31")
STEPS = (
    "s[{0}] = v;", "v += s[{0}];", "if (i < 32) s[{0}] = v;", "if (i & 1) v += s[{0}];", "atomicAdd(&s[{0}], 1);",
    "if (i == 40) s[{0}] = 3;", "s[{0}] = 5;", "if (blockIdx.x) v += s[{0}];", "((short*)s)[{0}] = v;",
    "v += ((short*)s)[{0} + 1];", "if (i < 16) *(int4*)&s[i * 4] = make_int4(v, i, i, v);",
    "if (i < 16) v += ((int4*)s)[15 - i].y;",
)  # fmt: skip
BARRIERS = ("__syncthreads();", "__syncthreads();", "__syncwarp();", "")


def kernel(seed: int) -> str:
    rng = random.Random(seed)
    places = PLACES[:6:2] if seed % 2 else PLACES
    lines = ["s[i] = i; t[63 - i] = i;", "__syncthreads();"] if seed % 4 else []
    for _ in range(10):
        lines.append(rng.choice(STEPS).format(rng.choice(places)))
        lines.append(rng.choice(BARRIERS[: 1 if seed % 2 else 4]))
    loop = "for (int j = 0; j < 3; j++) {" if seed % 3 == 0 else "{"
    body = "\n".join(lines)
    return (
        'extern "C" __global__ void k(int* y) {\n'
        "__shared__ __align__(16) int s[68], t[64]; int i = threadIdx.x, v = i;\n"
        f"{loop}\n{body}\n__syncthreads();\nv += t[i]; }}\ny[blockIdx.x * 64 + i] = v; }}"
    )


def found(program, blocks):
    trace, y = Trace(), np.zeros(64 * blocks, np.int32)
    program.launch("k", (blocks,), (64,), (y,), trace=trace)
    return [race.sentence for race in trace.races], [str(fault) for fault in trace.faults], y


@pytest.mark.parametrize("seed", range(24))
def test_same_findings(seed, monkeypatch):
    program = Program(compile_ptx(kernel(seed)))
    together = found(program, 3)
    with monkeypatch.context() as patch:
        patch.setattr(AlikeBlocks, "_alike", lambda *_: False)
        apart = found(program, 3)
    assert together[:2] == apart[:2]
    assert np.array_equal(together[2], apart[2])


def test_the_seeds_hold_races_and_none():
    counts = [len(found(Program(compile_ptx(kernel(seed))), 3)[0]) for seed in range(24)]
    assert 0 in counts
    assert sum(count > 0 for count in counts) >= 8


def test_harmless_accesses_are_judged_together(monkeypatch):
    text = """extern "C" __global__ void k(int* y) { __shared__ int s[64]; int i = threadIdx.x;
      s[i] = i; __syncthreads(); int v = s[63 - i] + s[7]; __syncthreads(); s[i] = v; __syncthreads();
      y[blockIdx.x * 64 + i] = s[i ^ 1]; }"""
    program = Program(compile_ptx(text))
    judged = []
    passes = AlikeBlocks.passes
    monkeypatch.setattr(AlikeBlocks, "passes", lambda *args: judged.append(passes(*args)) or judged[-1])
    assert found(program, 3)[:2] == ([], [])
    assert judged == [True] * len(judged)
    assert len(judged) == 5
