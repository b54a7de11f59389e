"""Global memory as the race detector sees it: overlapping arrays, arrays that are only read, what is strong."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import Program, Trace
from styleforge_lib.runtime.emulator.shared_globals import Placement, written_arrays


def program_of(body, parameters="float* x, float* y, int n"):
    return Program(compile_ptx(f'extern "C" __global__ void kernel({parameters}) {{\n{body}\n}}\n', "compute_80"))


def races(body, x, y, *, grid=2, block=64, **options):
    trace = Trace()
    program_of(body, **options).launch("kernel", (grid,), (block,), (x, y, np.int32(x.size)), trace=trace)
    return [(race.kind, race.line) for race in trace.races]


def fresh(size=256, dtype=np.float32):
    return np.zeros(size, dtype), np.zeros(size, dtype)


SHIFT = "int i = blockIdx.x * 64 + threadIdx.x;\ny[i] = x[i + 1] + i;"


def test_two_pointers_into_one_array():
    x, y = fresh()
    assert races(SHIFT, x, y) == []
    assert ("write after read", 3) in races(SHIFT, x, x), "in place"
    assert ("write after read", 3) in races(SHIFT, x, x[4:]), "a view that begins elsewhere"
    assert races("int i = blockIdx.x * 64 + threadIdx.x;\ny[i] = x[i] + i;", x, x) == [], "each its own element"


def test_halves_of_one_array_do_not_meet():
    x, _ = fresh(512)
    assert races(SHIFT.replace("i + 1", "(i + 1) % 128"), x[:256], x[256:]) == []


def test_where_arrays_lie():
    class Region:
        space, name = "global", "x"

        def __init__(self, base, data):
            self.base, self.data, self.size = base, data, data.size

    memory = np.zeros(1000, np.uint8)
    parts = {1: memory[:100], 2: memory[50:200], 3: memory[300:400], 4: memory[350:360]}
    placement = Placement({slot: Region(slot, data) for slot, data in parts.items()})
    assert placement.of == {1: (0, 0), 2: (0, 50), 3: (1, 0), 4: (1, 50)}
    assert placement.sizes == [200, 100]


@pytest.mark.parametrize(
    ("body", "written"),
    [
        ("y[threadIdx.x] = x[threadIdx.x];", "y"),
        ("atomicAdd(x, 1.0f);", "x"),
        ("float* p = n > 3 ? x : y; p[n] = 1;", "xy"),
        ("for (float* p = x; p < x + n; p += 32) p[threadIdx.x] = 1;", "x"),
        ("y[__float_as_int(x[0])] = 1;", "y"),
        ("__shared__ float s[4]; s[threadIdx.x & 3] = x[0]; __syncthreads(); if (s[n & 3] > 9) __trap();", ""),
        ("float** table = (float**)x; table[0][1] = 2;", "xy"),  # a pointer out of memory: it may be any
    ],
)
def test_which_arrays_are_written(body, written):
    program = program_of(body)
    plan = program.plan("kernel")
    x, y = fresh()
    launch = program._launch("kernel", (1,), (32,), (x, y, np.int32(9)), 0, None, ("x", "y", "n"))
    names = {region.base: region.name for region in launch.regions.values()}
    assert {names[base] for base in written_arrays(plan, launch) if base in names} == set(written)


@pytest.mark.parametrize(
    ("type_name", "dtype"), [("float", np.float32), ("unsigned char", np.uint8), ("short", np.int16), ("double", float)]
)
def test_writing_what_is_there_is_no_race(type_name, dtype):
    parameters = f"{type_name}* x, {type_name}* y, int n"
    x, y = fresh(256, dtype)
    assert races("y[threadIdx.x] = 7;", x, y, parameters=parameters) == []
    assert races("y[threadIdx.x] = blockIdx.x;", x, y, parameters=parameters) == [("write after write", 2)]


FLAG = """volatile float* flag = y;
if (blockIdx.x == 0 && threadIdx.x == 0) flag[0] = 1;
if (blockIdx.x == 1 && threadIdx.x == 0) while (flag[0] == 0) {}"""


def test_a_flag_is_no_race():
    x, y = fresh()
    assert races(FLAG, x, y) == []
    x, y = fresh()
    assert races(FLAG.replace("blockIdx.x == 1 && threadIdx.x == 0", "threadIdx.x == 32"), x, y) == [], "in one block"
    bare = "if (blockIdx.x == 0) y[0] = 1;\nif (blockIdx.x == 1) x[threadIdx.x] = y[0];"
    assert races(bare, x, np.zeros(256, np.float32), block=1) == [("write after read", 2)], "the reader may come first"


def test_a_loop_around_a_compare_and_swap_is_no_race():
    body = """int* at = (int*)y; int old = *at, seen;
do { seen = old; old = atomicCAS(at, seen, seen + 1); } while (old != seen);"""
    x, y = fresh()
    assert races(body, x, y, block=32) == []
