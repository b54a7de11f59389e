# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""mma.sync, ldmatrix and stmatrix: every form against matrices laid out by hand, and what is refused."""

import numpy as np
import pytest
from conftest import compile_ptx
from emulator_reference import run_instruction

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace

RNG = np.random.default_rng(0)
BLOCKS, WARPS = 3, 2

FORMS = [  # arch, shape, K, type of A, of B, of C and D
    ("compute_75", "m16n8k8", 8, "f16", "f16", "f32"), ("compute_75", "m16n8k8", 8, "f16", "f16", "f16"),
    ("compute_80", "m16n8k16", 16, "f16", "f16", "f32"), ("compute_90", "m16n8k16", 16, "f16", "f16", "f16"),
    ("compute_80", "m16n8k8", 8, "bf16", "bf16", "f32"), ("compute_90", "m16n8k16", 16, "bf16", "bf16", "f32"),
    ("compute_80", "m16n8k4", 4, "tf32", "tf32", "f32"), ("compute_90", "m16n8k8", 8, "tf32", "tf32", "f32"),
    ("compute_80", "m16n8k16", 16, "s8", "s8", "s32"), ("compute_80", "m16n8k32", 32, "s8", "u8", "s32"),
    ("compute_90", "m16n8k32", 32, "u8", "s8", "s32"), ("compute_90", "m16n8k16", 16, "u8", "u8", "s32"),
]  # fmt: skip
STORAGE = {"f16": "u2", "bf16": "u2", "tf32": "u4", "s8": "i1", "u8": "u1", "f32": "f4", "s32": "i4"}


def random_matrix(kind, shape):
    """Storage bits and their values in float64; whole numbers of moderate size, so that float64 sums are exact."""
    if kind in ("s8", "u8"):
        info = np.iinfo(STORAGE[kind])
        bits = RNG.integers(info.min, info.max + 1, shape).astype(STORAGE[kind])
        return bits, bits.astype(np.float64)
    if kind == "s32":
        bits = RNG.integers(-(2**31), 2**31, shape).astype(np.int32)
        bits[..., :2] = [2**31 - 1, -(2**31)]  # where sums wrap, or saturate
        return bits, bits.astype(np.float64)
    values = (RNG.integers(-999, 1000, shape) / 64).astype(np.float32)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16), values.astype(np.float16).astype(np.float64)
    if kind == "f32":
        return values, values.astype(np.float64)
    bits = values.view(np.uint32)
    if kind == "bf16":
        return (bits >> 16).astype(np.uint16), (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    return bits | np.uint32(0x1FFF), (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)  # tf32


def product_kernel(shape, depth, a, b, result, modifier=""):
    """Fragments element by element, as the tables of the PTX ISA give them: nothing is shared with the emulator."""
    packed = {"f16": 2, "bf16": 2, "tf32": 1, "s8": 4, "u8": 4}[a]
    unit = {1: "unsigned", 2: "unsigned short", 4: "unsigned char"}[packed]
    a_registers, b_registers = depth // packed // 2, depth // packed // 4
    c_registers = 2 if result == "f16" else 4
    letter, c_type = ("f", "float") if result == "f32" else ("r", "unsigned")
    names = [f"%{k}" for k in range(2 * c_registers + a_registers + b_registers)]
    groups, rest = [], names[c_registers:]
    for size in (a_registers, b_registers, c_registers):
        groups.append("{" + ",".join(rest[:size]) + "}")
        rest = rest[size:]
    outputs = ",".join(f'"={letter}"(d[{k}])' for k in range(c_registers))
    inputs = [f'"r"(A[{k}])' for k in range(a_registers)] + [f'"r"(B[{k}])' for k in range(b_registers)]
    inputs += [f'"{letter}"(c[{k}])' for k in range(c_registers)]
    mma = f"mma.sync.aligned.{shape}.row.col{modifier}.{result}.{a}.{b}.{result} {{{','.join(names[:c_registers])}}},{','.join(groups)};"
    c_place = "(i * 8 + g) * 4 + t" if result == "f16" else "((i / 2) * 8 + g) * 8 + 2 * t + i % 2"
    return f"""
extern "C" __global__ void k(const {unit}* pa, const {unit}* pb, const {c_type}* pc, {c_type}* pd) {{
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, tile = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  pa += tile * {16 * depth}; pb += tile * {8 * depth}; pc += tile * {64 if result == "f16" else 128}; pd += tile * {64 if result == "f16" else 128};
  unsigned A[{a_registers}], B[{b_registers}]; {c_type} c[{c_registers}], d[{c_registers}];
  for (int r = 0; r < {a_registers}; r++) {{ A[r] = 0; for (int p = 0; p < {packed}; p++)
    A[r] |= (unsigned)pa[(g + 8 * (r % 2)) * {depth} + {packed} * t + p + {4 * packed} * (r / 2)] << ({32 // packed} * p % 32); }}
  for (int r = 0; r < {b_registers}; r++) {{ B[r] = 0; for (int p = 0; p < {packed}; p++)
    B[r] |= (unsigned)pb[({packed} * t + p + {4 * packed} * r) * 8 + g] << ({32 // packed} * p % 32); }}
  for (int i = 0; i < {c_registers}; i++) c[i] = pc[{c_place}];
  asm volatile("{mma}" : {outputs} : {",".join(inputs)});
  for (int i = 0; i < {c_registers}; i++) pd[{c_place}] = d[i];
}}"""


def run_product(arch, shape, depth, a, b, result, modifier=""):
    tiles = BLOCKS * WARPS
    (pa, va), (pb, vb), (pc, vc) = (
        random_matrix(kind, (tiles, *size)) for kind, size in ((a, (16, depth)), (b, (depth, 8)), (result, (16, 8)))
    )
    pd = np.zeros_like(pc)
    Program(compile_ptx(product_kernel(shape, depth, a, b, result, modifier), arch)).launch(
        "k", (BLOCKS,), (32 * WARPS,), (pa, pb, pc, pd)
    )
    return pd, va @ vb + vc


@pytest.mark.parametrize(("arch", "shape", "depth", "a", "b", "result"), FORMS)
def test_product(arch, shape, depth, a, b, result):
    got, wanted = run_product(arch, shape, depth, a, b, result)
    if result == "s32":
        wanted = (wanted.astype(np.int64) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    elif result == "f16":
        got, wanted = got.view(np.float16), wanted.astype(np.float16)
    else:
        wanted = wanted.astype(np.float32)
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("mode", ["rna", "rn", "rz"])
def test_rounding_to_tf32(mode):
    values = np.array(
        [1 + k / 4096 for k in range(9)] + [3.4028235e38, np.inf, -0.0, 1e-40, -1.75 * 2**-130], np.float32
    )
    values = np.concatenate([values, -values])
    got = run_instruction(f"cvt.{mode}.tf32.f32 d, a;", [("f32", values)], "b32")
    unit = np.exp2(np.maximum(np.floor(np.log2(np.maximum(np.abs(values.astype(np.float64)), 1e-300))), -126) - 10)
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(values) / unit
        whole = {"rna": np.floor(size + 0.5), "rn": np.rint(size), "rz": np.floor(size)}[mode]
        wanted = np.where(np.isinf(values), values, np.copysign(whole * unit, values)).astype(np.float32)
    assert np.array_equal(got, wanted.view(np.uint32))
    assert (
        run_instruction(f"cvt.{mode}.tf32.f32 d, a;", [("f32", np.array([np.nan], np.float32))], "b32")[0] == 0x7FFFFFFF
    )


def test_satfinite_clamps():
    got, wanted = run_product("compute_80", "m16n8k32", 32, "u8", "u8", "s32", ".satfinite")
    assert (wanted > 2**31).any()
    assert np.array_equal(got, np.clip(wanted, -(2**31), 2**31 - 1).astype(np.int32))


def test_infinity_and_nan_of_a_product():
    text = product_kernel("m16n8k16", 16, "f16", "f16", "f32")
    a, b = np.zeros((1, 16, 16), np.float16), np.zeros((1, 16, 8), np.float16)
    a[0, 0, 0], a[0, 1, 1], a[0, 2, 2] = np.inf, np.nan, 65504
    b[0, 0, :4], b[0, 2] = 1, 65504
    c, d = np.zeros((1, 16, 8), np.float32), np.empty((1, 16, 8), np.float32)
    Program(compile_ptx(text)).launch("k", (1,), (32,), (a.view(np.uint16), b.view(np.uint16), c, d))
    assert np.isposinf(d[0, 0, :4]).all()
    assert np.isnan(d[0, 0, 4:]).all()
    assert np.isnan(d[0, 1]).all()
    assert (d[0, 2] == np.float32(65504) ** 2).all()
    assert (d[0, 3:] == 0).all()


def test_chained_products_keep_each_rounding():
    """Four products in a row, the middle results read by nothing else: each is rounded to float16 nevertheless."""
    text = """extern "C" __global__ void k(unsigned* y, unsigned a, unsigned b) { unsigned d0 = 0x64006400, d1 = 0;
      #pragma unroll
      for (int k = 0; k < 4; k++) asm volatile("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0,%1},{%2,%2},{%3},{%0,%1};" : "+r"(d0), "+r"(d1) : "r"(a), "r"(b));
      y[threadIdx.x * 2] = d0; y[threadIdx.x * 2 + 1] = d1; }"""
    y = np.zeros(64, np.uint32)
    eighth = int(np.float16(1 / 16).view(np.uint16)) * 0x10001
    Program(compile_ptx(text, "compute_75")).launch("k", (1,), (32,), (y, np.uint32(eighth), np.uint32(0x3C003C00)))
    halves = y.view(np.float16).reshape(32, 4)
    assert (halves[:, :2] == 1024).all()  # 1024 + 0.5 rounds to even each time; 1026 if it were rounded at the end
    assert (halves[:, 2:] == 2).all()


MATRIX = """extern "C" __global__ void k(const uint4* x, unsigned* y) {{ __shared__ uint4 s[{warps}][32]; int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  s[warp][lane] = x[blockIdx.x * {warps} * 32 + threadIdx.x]; __syncwarp();
  unsigned a = (unsigned)__cvta_generic_to_shared(&s[warp][lane < {rows} ? lane : 31]) + (lane < {rows} ? 0 : 100000), r[{count}];
  asm volatile("ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%{count}];" : {outputs} : "r"(a) : "memory");
  for (int i = 0; i < {count}; i++) y[((blockIdx.x * {warps} + warp) * {count} + i) * 32 + lane] = r[i]; }}"""


@pytest.mark.parametrize("arch", ["compute_75", "compute_90"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(arch, count, transposed):
    """Lanes that give no address may hold any: here one far outside."""
    text = MATRIX.format(warps=WARPS, rows=8 * count, count=count, trans=".trans" if transposed else "", names=",".join(f"%{k}" for k in range(count)),
                         outputs=",".join(f'"=r"(r[{k}])' for k in range(count)))  # fmt: skip
    x = RNG.integers(0, 65536, (BLOCKS, WARPS, 4, 8, 8)).astype(np.uint16)
    y = np.zeros((BLOCKS, WARPS, count, 32, 2), np.uint16)
    trace = Trace()
    Program(compile_ptx(text, arch)).launch(
        "k", (BLOCKS,), (32 * WARPS,), (x.view(np.uint32), y.view(np.uint32)), trace=trace
    )
    matrices = x[:, :, :count].swapaxes(-1, -2) if transposed else x[:, :, :count]
    assert np.array_equal(y.reshape(matrices.shape), matrices)
    loads = next(line for line in trace.lines().values() if ("shared", "load") in line.accesses).accesses[
        "shared", "load"
    ]
    assert (loads.requests, loads.units, loads.ideal) == (
        BLOCKS * WARPS,
        BLOCKS * WARPS * count,
        BLOCKS * WARPS * count,
    )
    assert not trace.races
    assert not trace.faults


REREAD = """extern "C" __global__ void k(const uint4* x, float* y, unsigned* seen) {{ __shared__ uint4 s[2][{warps}][32], t[32]; int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint4* mine = x + blockIdx.x * {stride}; t[lane] = mine[{warps} * 64 + lane];
  unsigned a = (unsigned)__cvta_generic_to_shared(&s[0][warp][lane]), b = (unsigned)__cvta_generic_to_shared(&t[lane]);
  for (int turn = 0; turn < 12; turn++) {{ __syncthreads();
    if (turn % 6 == 0) for (int h = 0; h < 2; h++) s[h][warp][lane] = mine[(warp * 2 + turn / 6) * 32 + lane];
    __syncthreads(); unsigned r[4], q[4]; float d[4] = {{}};
    asm volatile("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%0,%1,%2,%3}}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
    asm volatile("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%0,%1,%2,%3}}, [%4];" : "=r"(q[0]), "=r"(q[1]), "=r"(q[2]), "=r"(q[3]) : "r"(b) : "memory");
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{%0,%1,%2,%3}}, {{%4,%5,%6,%7}}, {{%8,%9}}, {{%0,%1,%2,%3}};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(q[1]), "r"(q[2]));
    int at = ((blockIdx.x * {warps} + warp) * 12 + turn) * 128;
    for (int i = 0; i < 4; i++) {{ y[at + (i / 2 * 8 + lane / 4) * 8 + lane % 4 * 2 + i % 2] = d[i]; if (turn % 5 == 4) seen[at + i * 32 + lane] = r[i]; }} }} }}"""


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_that_are_read_again_and_again(kind, transposed, alike):
    """So often that the emulator keeps the bank's numbers, until something is written there."""
    bits, values = random_matrix(kind, (BLOCKS, 2 * WARPS + 1, 4, 8, 8))
    if alike:
        bits, values = (np.repeat(one[:1], BLOCKS, axis=0) for one in (bits, values))
    text = REREAD.format(warps=WARPS, stride=32 * (2 * WARPS + 1), trans=".trans" if transposed else "", kind=kind)
    y, seen = np.zeros((BLOCKS, WARPS, 12, 16, 8), np.float32), np.zeros((BLOCKS, WARPS, 12, 4, 8, 8), np.uint16)
    Program(compile_ptx(text, "compute_80")).launch(
        "k", (BLOCKS,), (32 * WARPS,), (np.ascontiguousarray(bits).view(np.uint32), y, seen.view(np.uint32))
    )
    turn = (lambda one: one.swapaxes(-1, -2)) if transposed else (lambda one: one)
    tiles, stored = turn(values), turn(bits)
    for block, warp, number in np.ndindex(BLOCKS, WARPS, 12):
        a, b = tiles[block, warp * 2 + number // 6], tiles[block, -1]
        left = np.block([[a[0], a[2]], [a[1], a[3]]])
        assert np.array_equal(y[block, warp, number], left @ np.concatenate((b[1].T, b[2].T)))
        if number % 5 == 4:
            assert np.array_equal(seen[block, warp, number], stored[block, warp * 2 + number // 6])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count, transposed):
    names = ",".join(f"%{k + 1}" for k in range(count))
    inputs = ",".join(f'"r"(x[((blockIdx.x * 2 + warp) * {count} + {k}) * 32 + lane])' for k in range(count))
    text = f"""extern "C" __global__ void k(const unsigned* x, uint4* y) {{ __shared__ uint4 s[2][32]; int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
      unsigned a = (unsigned)__cvta_generic_to_shared(&s[warp][lane]);
      asm volatile("stmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 [%0], {{{names}}};" :: "r"(a), {inputs} : "memory");
      __syncwarp(); if (lane < {8 * count}) y[(blockIdx.x * 2 + warp) * {8 * count} + lane] = s[warp][lane]; }}"""
    x = RNG.integers(0, 65536, (BLOCKS, 2, count, 8, 8)).astype(np.uint16)
    y = np.zeros_like(x)
    trace = Trace()
    Program(compile_ptx(text, "compute_90")).launch(
        "k", (BLOCKS,), (64,), (x.view(np.uint32), y.view(np.uint32)), trace=trace
    )
    assert np.array_equal(y, x.swapaxes(-1, -2) if transposed else x)
    assert not trace.races
    assert not trace.faults


@pytest.mark.parametrize(("stride", "ways"), [(64, 8), (72, 1), (32, 4)])
def test_bank_conflicts_of_ldmatrix(stride, ways):
    """Rows of 64 halves begin in one bank, and padding by 8 spreads them: the classic of every such kernel."""
    text = f"""extern "C" __global__ void k(unsigned* y) {{ __shared__ uint4 s[32 * {stride} / 8]; for (int i = threadIdx.x; i < 32 * {stride} / 8; i += 32) s[i] = make_uint4(i, i, i, i);
      __syncwarp(); unsigned a = (unsigned)__cvta_generic_to_shared(s) + threadIdx.x * {2 * stride}, r0, r1, r2, r3;
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%0,%1,%2,%3}}, [%4];" : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"(a) : "memory");
      y[threadIdx.x] = r0 + r1 + r2 + r3; }}"""
    trace = Trace()
    Program(compile_ptx(text)).launch("k", (1,), (32,), (np.zeros(32, np.uint32),), trace=trace)
    loads = next(line for line in trace.lines().values() if ("shared", "load") in line.accesses).accesses[
        "shared", "load"
    ]
    assert (loads.requests, loads.units, loads.ideal) == (1, 4 * ways, 4)


@pytest.mark.parametrize(("instruction", "says"), [
    ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {f,f,f,f},{r,r},{r},{f,f,f,f};", "m16n8k16"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.e4m3.e4m3.f32 {f,f,f,f},{r,r},{r},{f,f,f,f};", "m16n8k16"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {f,f,f,f},{r,r,r,r},{r,r},{f,f,f,f};", "m16n8k16"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {f,f,f,f},{r,r},{r},{f,f,f,f};", "4, 2 and 4 registers"),
    ("ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {r,r}, [r];", "m8n8"),
    ("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {r}, [r];", "2 registers"),
])  # fmt: skip
def test_refused_by_name(instruction, says):
    text = f".version 8.6\n.target sm_90\n.address_size 64\n.visible .entry k()\n{{\n.reg .f32 f; .reg .b32 r;\n{instruction}\nret;\n}}\n"
    with pytest.raises(NotImplementedError, match=instruction.split()[0].replace(".", r"\.")) as caught:
        Program(text).launch("k", (1,), (32,), ())
    assert says in str(caught.value)


def test_a_warp_that_is_not_whole_is_a_fault():
    text = """extern "C" __global__ void k(float* y) { float c = 0; unsigned a = 0; if (threadIdx.x < 40)
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%0,%0,%0},{%1,%1},{%1},{%0,%0,%0,%0};" : "+f"(c) : "r"(a));
      y[threadIdx.x] = c; }"""
    with pytest.raises(EmulatorFault, match="all 32 threads") as caught:
        Program(compile_ptx(text)).launch("k", (1,), (64,), (np.zeros(64, np.float32),))
    assert caught.value.kind == "inactive lane"
    assert caught.value.line == 2
    assert caught.value.threads == ((32, 0, 0),)
