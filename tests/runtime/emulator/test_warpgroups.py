# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""wgmma: layouts, element types, deferred results, and what is said about every step that is forgotten."""

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import EmulatorFault, Program, Trace
from styleforge_lib.runtime.emulator.tokens import TOKENS, is_token, token_numbers

RNG = np.random.default_rng(0)
UNITS = {0: 1, 1: 8, 2: 4, 3: 2}  # 16-byte pieces of a row, by the descriptor's swizzle
HEAD = r"""
typedef unsigned long long u64;
__device__ __forceinline__ unsigned at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
#define FENCE asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#define COMMIT asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#define WAIT(n) asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(n) : "memory");
#define PROXY asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
"""


def multiply(shape, count, kind="f", a='"l"(da)', how="1, 1, 1, 0, 0", result="d", b="db"):
    """Return the asm statement of one wgmma whose accumulator is the array `result` of `count` registers."""
    number = 4 if a.startswith('"r"') else 1
    registers = ", ".join(f"%{i}" for i in range(count))
    left = "{" + ", ".join(f"%{count + i}" for i in range(number)) + "}" if number > 1 else f"%{count}"
    outs = ", ".join(f'"+{kind}"({result}[{i}])' for i in range(count))
    return f'asm volatile("wgmma.mma_async.sync.aligned.{shape} {{{registers}}}, {left}, %{count + number}, {how};" : {outs} : {a}, "l"({b}));'


def kernel(body, head="", threads=128, arguments="const uint4* image, float* out, u64 da, u64 db"):
    """Return a kernel whose blocks copy an image into shared memory, then execute the body; out[r][t] is register r."""
    return f"""{HEAD}{head}
extern "C" __global__ void __launch_bounds__({threads}) k({arguments}) {{
  __shared__ __align__(1024) uint4 s[2816];
  asm volatile("" :: "r"(at(s)) : "memory"); // else the compiler leaves it out
  int t = threadIdx.x;
  for (int i = t; i < 2816; i += {threads}) s[i] = image[blockIdx.x * 2816 + i]; // STORE
  PROXY // PROXY
  __syncthreads();
  out += blockIdx.x * 64 * {threads};
{body}
}}"""


def shown(count):
    return f"for (int r = 0; r < {count}; r++) out[r * blockDim.x + t] = d[r]; // READ"


def line_of(text, mark):
    return next(number for number, line in enumerate(text.split("\n"), 1) if f"// {mark}" in line)


def launch(text, image, out, da, db, *, grid=1, threads=128, trace=None):
    program = Program(compile_ptx(text, "compute_90a"))
    program.launch("k", (grid,), (threads,), (image, out, np.uint64(da), np.uint64(db)), trace=trace)


# --- operands in memory, laid out one element after another from the manual's figures ----------------------------------


def descriptor(start, leading, stride, swizzle):
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | swizzle << 62


def place(matrix, image, start, leading, stride, swizzle, turned):
    """Lay an operand (rows of M or N, columns of K) into an image of shared memory, byte address by byte address."""
    size, units = matrix.itemsize, UNITS[swizzle]
    flat = image.reshape(-1).view(matrix.dtype)
    for row in range(matrix.shape[0]):
        for k in range(matrix.shape[1]):
            along, across = (row, k) if turned else (k, row)  # along the 16 bytes, and from row to row
            piece, inside = divmod(along * size, 16)
            group, line = divmod(across, 8)
            if turned:
                offset = (
                    piece % units * 16 + piece // units * leading + line * 16 * units + group * stride
                    if swizzle
                    else piece * stride + line * 16 + group * leading
                )
            else:
                offset = line * 16 * units + group * stride + piece * (16 if swizzle else leading)
            address = start + offset + inside
            mask = {8: 7, 4: 3, 2: 1, 1: 0}[units]
            address ^= ((address >> 7) & mask) << 4
            flat[(address - 1024) // size] = matrix[row, k]


def values(fragment, columns):
    """Return registers (registers, 128) of float32 as a matrix of 64 rows."""
    out = np.zeros((64, columns), fragment.dtype)
    for r in range(fragment.shape[0]):
        for t in range(128):
            out[16 * (t // 32) + t % 32 // 4 + 8 * (r // 2 % 2), 8 * (r // 4) + t % 4 * 2 + r % 2] = fragment[r, t]
    return out


def whole(shape, dtype=np.float16):
    return RNG.integers(-9, 10, shape).astype(dtype)


OFFSETS = {  # swizzle -> (leading, stride) for operands with K along the rows, and for turned ones of 64 elements
    0: ((2064, 144), (1280, 144)),
    1: ((16, 1024), (2304, 1152)),
    2: ((16, 640), (2304, 640)),
    3: ((16, 256), (2304, 256)),
}


@pytest.mark.parametrize("turned", [(0, 0), (1, 0), (0, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("swizzle", [0, 1, 2, 3])
def test_every_layout(swizzle, turned):
    """The start of A is aligned to 256 bytes only: the swizzle looks at the address."""
    a, b = whole((64, 16)), whole((64, 16))
    image = np.zeros((2816, 4), np.uint32)
    starts = (1024 + 256, 1024 + 20480 + 128)
    both = []
    for matrix, start, side in zip((a, b), starts, turned, strict=True):
        leading, stride = OFFSETS[swizzle][side]
        place(matrix, image, start, leading, stride, swizzle, side)
        both.append(descriptor(start, leading, stride, swizzle))
    how = f"1, 1, 1, {turned[0]}, {turned[1]}"
    body = (
        "float d[32]; for (int r = 0; r < 32; r++) d[r] = 1; FENCE "
        + multiply("m64n64k16.f32.f16.f16", 32, how=how)
        + " COMMIT WAIT(0) "
        + shown(32)
    )
    out, trace = np.zeros((64, 128), np.float32), Trace()
    launch(kernel(body), image, out, *both, trace=trace)
    assert np.array_equal(values(out[:32], 64), a.astype(np.float32) @ b.T.astype(np.float32) + 1)
    assert not trace.races
    assert not trace.faults


@pytest.mark.parametrize("columns", [8, 24, 128, 256])
def test_every_width(columns):
    """Turned and 128 wide, rows of 64 elements lie side by side."""
    a, b = whole((64, 16)), whole((columns, 16))
    image = np.zeros((2816, 4), np.uint32)
    place(a, image, 1024, 16, 1024, 1, False)
    place(b, image, 1024 + 12288, 2048, 1024, 1, True)
    count = columns // 2
    text = kernel(
        f"float d[{count}] = {{}}; FENCE "
        + multiply(f"m64n{columns}k16.f32.f16.f16", count, how="1, 1, 1, 0, 1")
        + f" COMMIT WAIT(0) for (int r = 0; r < {count}; r++) out[r * 128 + t] = d[r];"
    )
    out = np.zeros((128, 128), np.float32)
    launch(text, image, out, descriptor(1024, 16, 1024, 1), descriptor(1024 + 12288, 2048, 1024, 1))
    assert np.array_equal(values(out[:count], columns), a.astype(np.float32) @ b.T.astype(np.float32))


@pytest.mark.parametrize(("kind", "dtype", "depth"), [("bf16", np.float32, 16), ("tf32", np.float32, 8)])
def test_other_elements(kind, dtype, depth):
    a, b = whole((64, depth), dtype), whole((64, depth), dtype)
    image = np.zeros((2816, 4), np.uint32)
    for matrix, start in ((a, 1024), (b, 1024 + 8192)):
        stored = (matrix.view(np.uint32) >> 16).astype(np.uint16) if kind == "bf16" else matrix.view(np.uint32) | 0x1FFF
        place(stored, image, start, 16, 512, 2, False)
    turned = ", 0, 0" if kind == "bf16" else ""
    text = kernel(
        "float d[32] = {}; FENCE "
        + multiply(f"m64n64k{depth}.f32.{kind}.{kind}", 32, how="1, 1, 1" + turned)
        + " COMMIT WAIT(0) "
        + shown(32)
    )
    out = np.zeros((64, 128), np.float32)
    launch(text, image, out, descriptor(1024, 16, 512, 2), descriptor(1024 + 8192, 16, 512, 2))
    assert np.array_equal(values(out[:32], 64), a @ b.T)


@pytest.mark.parametrize("scale", ["1, 1", "-1, 1", "1, -1", "-1, -1"])
def test_a_in_registers_scales_and_scale_d(scale):
    """Scale-d is a predicate of the warpgroup: the second one overwrites what its accumulator held."""
    a, b = whole((2, 64, 16)), whole((64, 16))
    image = np.zeros((2816, 4), np.uint32)
    place(b, image, 1024, 16, 1024, 1, False)
    fragments = np.zeros((256, 4, 2), np.float16)
    for t in range(256):
        for r in range(4):
            row, column = 16 * (t % 128 // 32) + t % 32 // 4 + 8 * (r % 2), t % 4 * 2 + 8 * (r // 2)
            fragments[t, r] = a[t // 128, row, column : column + 2]
    image[2048:2304] = fragments.view(np.uint32).reshape(256, 4)
    four = ", ".join(f'"r"(x.{c})' for c in "xyzw")
    product = (
        multiply("m64n64k16.f32.f16.f16", 32, a=four, how=f"p, {scale}, 0")
        .replace('"wgmma.', '"{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.')
        .replace('0;" :', '0;}" :')
        .replace('"l"(db))', '"l"(db), "r"((int)(t < 128)))')
    )
    body = (
        "float d[32]; for (int r = 0; r < 32; r++) d[r] = 5; uint4 x = s[2048 + t]; FENCE "
        + product
        + " COMMIT WAIT(0) "
        + shown(32)
    )
    out = np.zeros((32, 256), np.float32)
    launch(kernel(body, threads=256), image, out, 0, descriptor(1024, 16, 1024, 1), threads=256)
    sign = -1 if scale in ("-1, 1", "1, -1") else 1
    for group, start in ((0, 5), (1, 0)):
        got = values(out[:, group * 128 : group * 128 + 128], 64)
        assert np.array_equal(got, sign * (a[group].astype(np.float32) @ b.T.astype(np.float32)) + start)


def test_into_float16_rounds_once():
    a, b = RNG.normal(size=(64, 16)).astype(np.float16), RNG.normal(size=(64, 16)).astype(np.float16)
    image = np.zeros((2816, 4), np.uint32)
    place(a, image, 1024, 16, 1024, 1, False)
    place(b, image, 1024 + 8192, 16, 1024, 1, False)
    text = kernel(
        "unsigned d[16] = {}; FENCE "
        + multiply("m64n64k16.f16.f16.f16", 16, kind="r")
        + " COMMIT WAIT(0) for (int r = 0; r < 16; r++) out[r * 128 + t] = __uint_as_float(d[r]);"
    )
    out = np.zeros((64, 128), np.float32)
    launch(text, image, out, descriptor(1024, 16, 1024, 1), descriptor(1024 + 8192, 16, 1024, 1))
    pairs = out[:16].view(np.float16).reshape(16, 128, 2)
    got = np.zeros((64, 64), np.float16)
    for r in range(16):
        for t in range(128):
            row, column = 16 * (t // 32) + t % 32 // 4 + 8 * (r % 2), 8 * (r // 2) + t % 4 * 2
            got[row, column : column + 2] = pairs[r, t]
    assert np.array_equal(got, (a.astype(np.float64) @ b.T.astype(np.float64)).astype(np.float16))


# --- a chain of products over 64 of K, in two groups, by two warpgroups and several blocks -------------------------------

CHAIN = kernel(
    "  float d[32]; for (int r = 0; r < 32; r++) d[r] = t;\n"
    "  u64 a = da + (t / 128) * 512;\n"
    "  FENCE // FENCE\n"
    + "  " + multiply("m64n64k16.f32.f16.f16", 32, a='"l"(a)') + " // PRODUCT\n"
    + "  " + multiply("m64n64k16.f32.f16.f16", 32, a='"l"(a + 2)', b="db + 2") + "\n"
    "  COMMIT // FIRST\n"
    + "  " + multiply("m64n64k16.f32.f16.f16", 32, a='"l"(a + 4)', b="db + 4") + " // LAST\n"
    "  COMMIT // SECOND\n"
    "  WAIT(0) // WAIT\n"
    "  " + shown(32),
    threads=256,
)  # fmt: skip


def chain(text, trace=None, grid=3):
    a, b = whole((grid, 128, 64)), whole((grid, 64, 64))
    image = np.zeros((grid, 2816, 4), np.uint32)
    for block in range(grid):
        place(a[block], image[block], 1024, 16, 1024, 1, False)
        place(b[block], image[block], 1024 + 16384, 16, 1024, 1, False)
    out = np.zeros((grid, 64, 256), np.float32)
    launch(
        text,
        image,
        out,
        descriptor(1024, 16, 1024, 1),
        descriptor(1024 + 16384, 16, 1024, 1),
        grid=grid,
        threads=256,
        trace=trace,
    )
    wanted = np.einsum("brk,bck->brc", a[:, :, :48].astype(np.float32), b[:, :, :48].astype(np.float32))
    got = np.zeros_like(wanted)
    for block in range(grid):
        for group in range(2):
            columns = slice(group * 128, group * 128 + 128)
            got[block, group * 64 : group * 64 + 64] = values(out[block, :32, columns] - np.arange(256)[columns], 64)
    return got, wanted


@pytest.mark.parametrize("traced", [False, True])
def test_a_chain_of_groups(traced):
    trace = Trace() if traced else None
    got, wanted = chain(CHAIN, trace)
    assert np.array_equal(got, wanted)
    if traced:
        assert not trace.races, trace.races[0].sentence
        assert not trace.faults
        assert trace.lines()[line_of(CHAIN, "PRODUCT")].instructions >= 3 * 8


@pytest.mark.parametrize("wrong", [
    CHAIN.replace("  WAIT(0) // WAIT\n", "\n"),
    CHAIN.replace("  WAIT(0) // WAIT\n", "  WAIT(1)\n"),
    CHAIN.replace("  COMMIT // SECOND\n", "\n"),
], ids=["no wait", "a wait that is one group short", "no commit"])  # fmt: skip
def test_an_accumulator_read_too_early_is_named(wrong):
    assert wrong != CHAIN
    with pytest.raises(EmulatorFault) as caught:
        chain(wrong)
    assert caught.value.kind == "wgmma without its wait"
    assert caught.value.line == line_of(wrong, "READ")
    assert f"line {line_of(wrong, 'PRODUCT')}" in caught.value.sentence


def test_a_missing_fence_is_named():
    with pytest.raises(EmulatorFault, match=r"wgmma\.fence") as caught:
        chain(CHAIN.replace("FENCE // FENCE", ""))
    assert caught.value.line == line_of(CHAIN, "PRODUCT")


def test_a_missing_proxy_fence_is_found():
    trace = Trace()
    wrong = CHAIN.replace("PROXY // PROXY", "")
    got, wanted = chain(wrong, trace)
    assert np.array_equal(got, wanted), "the emulator has one proxy: it is the trace that sees it"
    assert ("missing proxy fence", line_of(wrong, "PRODUCT"), line_of(wrong, "STORE")) in {
        (r.kind, r.line, r.other_line) for r in trace.races
    }


def test_a_proxy_fence_behind_the_barrier_does_as_well():
    trace = Trace()
    chain(CHAIN.replace("  PROXY // PROXY\n  __syncthreads();", "  __syncthreads(); PROXY"), trace)
    assert not trace.races


def test_operands_are_read_late():
    """What is overwritten before the wait is wrong, and named; behind the wait and a barrier it is right."""
    early = CHAIN.replace("  WAIT(0) // WAIT\n", "  s[1024 + t] = make_uint4(0, 0, 0, 0); // EARLY\n  WAIT(0)\n")
    trace = Trace()
    got, wanted = chain(early, trace)
    assert not np.array_equal(got, wanted)
    assert ("write after read", line_of(early, "EARLY")) in {(r.kind, r.line) for r in trace.races}
    late = CHAIN.replace("  WAIT(0) // WAIT\n", "  WAIT(0)\n  __syncthreads(); s[1024 + t] = make_uint4(0, 0, 0, 0);\n")
    trace = Trace()
    got, wanted = chain(late, trace)
    assert np.array_equal(got, wanted)
    assert not trace.races


def test_overwritten_without_a_barrier():
    """Each warpgroup has waited, but not for the other one."""
    wrong = CHAIN.replace("  WAIT(0) // WAIT\n", "  WAIT(0)\n  s[1024 + t] = make_uint4(0, 0, 0, 0); // OVER\n")
    trace = Trace()
    chain(wrong, trace)
    assert ("write after read", line_of(wrong, "OVER")) in {(r.kind, r.line) for r in trace.races}


def test_missing_barrier_before_the_product():
    wrong = CHAIN.replace("  PROXY // PROXY\n  __syncthreads();", "  PROXY")
    trace = Trace()
    chain(wrong, trace)
    assert ("read after write", line_of(wrong, "PRODUCT"), line_of(wrong, "STORE")) in {
        (r.kind, r.line, r.other_line) for r in trace.races
    }


@pytest.mark.parametrize("mode", [0, 2, 3])
def test_a_wrong_swizzle_gives_wrong_numbers(mode):
    got, wanted = chain(
        CHAIN.replace(
            "u64 a = da + (t / 128) * 512;",
            f"u64 a = (da & 0x3fffffffffffffffull | {mode}ull << 62) + (t / 128) * 512;",
        )
    )
    assert not np.array_equal(got, wanted)


@pytest.mark.parametrize(("old", "new", "says"), [
    ("(t / 128) * 512;", "(t / 128) * 512 + t % 2;", "differs between the threads"),
    ("(t / 128) * 512;", "(t / 128) * 5120;", "covers bytes"),
    ("  FENCE // FENCE", "  if (t < 32) return; FENCE", "all 128 threads of a warpgroup"),
])  # fmt: skip
def test_misuse(old, new, says):
    text = CHAIN.replace(old, new)
    assert text != CHAIN
    with pytest.raises(EmulatorFault, match=says):
        chain(text)


def test_warpgroups_of_their_own():
    """The first warpgroup makes one product more, and waits for it while the second is elsewhere."""
    text = kernel(
        "float d[32] = {}; u64 a = da + (t / 128) * 512;\nfor (int k = 0; k < 3 - t / 128; k++) { FENCE\n"
        + multiply("m64n64k16.f32.f16.f16", 32, a='"l"(a + 2 * k)', b="db + 2 * k")
        + "COMMIT if (t / 128) { WAIT(0) } else { WAIT(1) } }\nWAIT(0)" + shown(32), threads=256)  # fmt: skip
    a, b = whole((128, 64)), whole((64, 64))
    image = np.zeros((2816, 4), np.uint32)
    place(a, image, 1024, 16, 1024, 1, False)
    place(b, image, 1024 + 16384, 16, 1024, 1, False)
    out = np.zeros((64, 256), np.float32)
    trace = Trace()
    launch(
        text, image, out, descriptor(1024, 16, 1024, 1), descriptor(1024 + 16384, 16, 1024, 1), threads=256, trace=trace
    )
    for group, depth in ((0, 48), (1, 32)):
        wanted = a[group * 64 : group * 64 + 64, :depth].astype(np.float32) @ b[:, :depth].T.astype(np.float32)
        assert np.array_equal(values(out[:32, group * 128 : group * 128 + 128], 64), wanted)
    assert not trace.races


@pytest.mark.parametrize("instruction", [
    "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {r,r,r,r}, rd, rd, 1;",
    "wgmma.mma_async.sync.aligned.m64n12k16.f32.f16.f16 {r,r,r,r,r,r}, rd, rd, 1, 1, 1, 0, 0;",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.f16 {r,r,r,r}, rd, rd, 1, 1, 1, 0, 0;",
    "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16 {r,r,r,r}, rd, rd, r, 0, 1, 1, 1, 0, 0;",
    "setmaxnreg.inc.sync.aligned.u32 250;",
])  # fmt: skip
def test_refused_by_name(instruction):
    text = f".version 8.6\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{{\n.reg .b32 r; .reg .b64 rd;\n{instruction}\nret;\n}}\n"
    with pytest.raises(NotImplementedError, match="the emulator does not know `" + instruction.split()[0]):
        Program(text).plan("k")


def test_registers_may_be_moved():
    text = kernel(
        'asm volatile("setmaxnreg.inc.sync.aligned.u32 168;"); asm volatile("setmaxnreg.dec.sync.aligned.u32 40;"); out[t] = t;'
    )
    out = np.zeros((64, 128), np.float32)
    launch(text, np.zeros((2816, 4), np.uint32), out, 0, 0)
    assert np.array_equal(out[0], np.arange(128))


def test_tokens():
    tokens = TOKENS.of(300, 64, "f32")
    assert all(np.isnan(token) and is_token(token) for token in tokens)
    assert [tuple(int(n) for n in token_numbers(token)) for token in tokens] == [(300, i) for i in range(64)]
    arrays = np.array([np.nan, -np.nan, 1, np.inf, -np.inf], np.float32)
    assert not is_token(arrays).any(), "neither numbers nor the processor's own NaN"
    assert is_token(np.array(tokens)).all()
