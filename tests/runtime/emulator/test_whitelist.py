# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Forms of instructions that no other test meets: qualifiers, rare types, hints; and what is refused among them."""

import numpy as np
import pytest
from emulator_reference import DTYPES, edge_values, run_instruction, same_bits

from styleforge_lib.runtime.emulator import EmulatorFault, Program

THREADS = 32
HEAD = ".version 8.7\n.target sm_100a\n.address_size 64\n"


def program(body: str, before: str = "") -> Program:
    """Each thread has %rd1 and %rd2: its 64 bytes of the arrays a and out; %r9 is its number."""
    return Program(
        f"""{HEAD}{before}.visible .entry k(.param .u64 a, .param .u64 out)
{{ .reg .b16 %h<20>; .reg .b32 %r<20>; .reg .f32 %f<20>; .reg .f64 %fd<4>; .reg .b64 %rd<20>; .reg .b128 %q<4>; .reg .pred %p<4>;
ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [out]; mov.u32 %r9, %tid.x;
mad.wide.u32 %rd1, %r9, 64, %rd1; mad.wide.u32 %rd2, %r9, 64, %rd2;
{body}
ret; }}"""
    )


def run(body: str, a: np.ndarray, before: str = "") -> np.ndarray:
    """Run the body on 64 bytes a thread; returns what it left in `out`, as a's type."""
    out = np.zeros(THREADS * 64, np.uint8).view(a.dtype).reshape(THREADS, -1)
    program(body, before).launch("k", (1,), (THREADS,), (a, out))
    return out


def words(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, (THREADS, 16), dtype=np.uint32)


LOADS = [
    "weak.global", "volatile.global", "relaxed.cta.global", "relaxed.gpu.global", "relaxed.sys.global", "relaxed.cluster.global",
    "acquire.cta.global", "acquire.gpu.global", "acquire.sys.global", "acquire.cluster.global", "mmio.relaxed.sys.global",
    "global.ca", "global.cg", "global.cs", "global.lu", "global.cv", "global.nc", "global.L1::no_allocate", "global.L2::128B", "volatile",
]  # fmt: skip
STORES = [
    "weak.global", "volatile.global", "relaxed.cta.global", "relaxed.gpu.global", "relaxed.sys.global", "relaxed.cluster.global",
    "release.cta.global", "release.gpu.global", "release.sys.global", "release.cluster.global", "mmio.relaxed.sys.global",
    "global.wb", "global.cg", "global.cs", "global.wt", "global.L1::no_allocate",
]  # fmt: skip


@pytest.mark.parametrize("words_of_load", LOADS)
def test_orders_scopes_and_hints_of_a_load_change_no_value(words_of_load):
    a = words()
    out = run(f"ld.{words_of_load}.b32 %r1, [%rd1+8]; st.global.b32 [%rd2], %r1;", a)
    assert np.array_equal(out[:, 0], a[:, 2])


@pytest.mark.parametrize("words_of_store", STORES)
def test_orders_scopes_and_hints_of_a_store_change_no_value(words_of_store):
    a = words()
    out = run(f"ld.global.b32 %r1, [%rd1+8]; st.{words_of_store}.b32 [%rd2+4], %r1;", a)
    assert np.array_equal(out[:, 1], a[:, 2])


@pytest.mark.parametrize("kind", ["s8", "s16", "s32", "s64", "u8", "u16", "u64", "f64"])
def test_every_type_is_stored(kind):
    a, width = words(), DTYPES[kind].itemsize
    register = {1: "%h1", 2: "%h1", 4: "%r1", 8: "%rd3"}[width]
    out = run(f"ld.global.{kind} {register}, [%rd1+16]; st.global.{kind} [%rd2+24], {register};", a)
    assert np.array_equal(out.view(np.uint8)[:, 24 : 24 + width], a.view(np.uint8)[:, 16 : 16 + width])


def test_wide_and_shared_accesses():
    a = words()
    body = """ld.global.b32 %r1, [%rd1]; st.global.b32 [%rd2], %r1;
    ld.global.b128 %q1, [%rd1+16]; st.global.b128 [%rd2+16], %q1; mov.b128 %q2, %q1; mov.b128 {%rd5, %rd6}, %q2; st.global.b64 [%rd2+8], %rd6;
    ld.global.v8.b32 {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}, [%rd1+32]; st.global.v8.b32 [%rd2+32], {%r8, %r7, %r6, %r5, %r4, %r3, %r2, %r1};
    mov.u32 %r10, near; mad.lo.u32 %r10, %r9, 4, %r10; st.shared::cta.b32 [%r10], %r1; ld.shared::cta.b32 %r11, [%r10]; st.global.b32 [%rd2+4], %r11;"""
    out = run(body, a, ".shared .align 4 .b8 near[128];\n")
    assert np.array_equal(out[:, 0], a[:, 0])
    assert np.array_equal(out[:, 1], a[:, 8])
    assert np.array_equal(out[:, 2:4], a[:, 6:8])
    assert np.array_equal(out[:, 4:8], a[:, 4:8])
    assert np.array_equal(out[:, 8:], a[:, :7:-1])


def test_a_parameter_by_its_full_name():
    a = words()
    out = run("ld.param::entry.u64 %rd3, [a]; ld.global.b32 %r1, [%rd3]; st.global.b32 [%rd2], %r1;", a)
    assert (out[:, 0] == a[0, 0]).all()


def test_atomics_of_the_block_s_own_shared_memory_and_reductions_of_every_order():
    a = words() & 0xFF
    body = """mov.u32 %r10, near; st.shared.b32 [%r10], 0; bar.sync 0; ld.global.b32 %r1, [%rd1];
    atom.shared::cta.add.u32 %r2, [%r10], %r1; red.relaxed.cta.shared::cta.max.u32 [%r10], 0; bar.sync 0; ld.shared.b32 %r3, [%r10]; st.global.b32 [%rd2], %r3;
    red.relaxed.cta.shared::cluster.max.u32 [%r10], 0; mov.u64 %rd5, near; cvta.shared.u64 %rd5, %rd5; getctarank.u64 %r4, %rd5; st.global.b32 [%rd2+12], %r4;
    getctarank.shared::cluster.u32 %r4, %r10; st.global.b32 [%rd2+16], %r4; atom.global.cta.add.u32 %r5, [%rd2+20], 3; red.global.sys.add.u32 [%rd2+20], 4;
    ld.param.u64 %rd4, [out]; red.relaxed.gpu.global.add.u32 [%rd4+4], %r1; red.release.sys.global.add.u32 [%rd4+4], %r1; red.relaxed.cluster.global.or.b32 [%rd4+8], %r1;
    red.release.cta.global.xor.b32 [%rd4+8], 0; atom.global.add.v2.f32 {%f1, %f2}, [%rd2+32], {0f3F800000, 0f40000000};"""
    body += "red.global.add.noftz.v8.f16 [%rd2+48], {%h0, %h0, %h0, %h0, %h0, %h0, %h0, %h1}; "
    body = "mov.b16 %h0, 0x3C00; mov.b16 %h1, 0x4000; " + body
    body += "mov.b16 %h2, 0; atom.global.add.noftz.v8.f16 {%h3, _, _, _, _, _, _, _}, [%rd2+48], {%h2, %h2, %h2, %h2, %h2, %h2, %h2, %h2};"
    out = run(body, a, ".shared .align 4 .b8 near[4];\n")
    assert (out[:, 0] == a[:, 0].sum()).all()
    assert out.view(np.float16)[:, 24:].tolist() == [[1] * 7 + [2]] * THREADS
    assert out[0, 1] == 2 * a[:, 0].sum()
    assert out[0, 2] == np.bitwise_or.reduce(a[:, 0])
    assert not out[:, 3:5].any()  # each is of the block's own
    assert (out[:, 5] == 7).all()
    assert out.view(np.float32)[:, 8:10].tolist() == [[1, 2]] * THREADS


def test_what_changes_no_value():
    a = words()
    body = """prefetch.global.L2 [%rd1]; prefetchu.L1 [%rd1]; discard.global.L2 [%rd1], 128; applypriority.global.L2::evict_normal [%rd1], 128;
    nanosleep.u32 20; pmevent 3; griddepcontrol.wait; griddepcontrol.launch_dependents; fence.acq_rel.sys; fence.sc.gpu; fence.acquire.cluster;
    fence.release.cta; membar.sys; fence.proxy.async.global; fence.proxy.async.shared::cta; fence.proxy.async.shared::cluster; cp.async.bulk.prefetch.L2.global [%rd1], 16; fence.proxy.alias;
    setmaxnreg.inc.sync.aligned.u32 232; setmaxnreg.dec.sync.aligned.u32 40; ld.global.b32 %r1, [%rd1]; st.global.b32 [%rd2], %r1;"""
    assert np.array_equal(run(body, a)[:, 0], a[:, 0])


def test_matrices_from_the_block_s_own_shared_memory():
    a = words()
    body = """mov.u32 %r10, near; mad.lo.u32 %r10, %r9, 16, %r10; ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1]; st.shared.v4.b32 [%r10], {%r1, %r2, %r3, %r4}; bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.shared::cta.b16 {%r1, %r2, %r3, %r4}, [%r10]; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r10]; bar.sync 0;
    st.global.v4.b32 [%rd2], {%r1, %r2, %r3, %r4}; st.global.v4.b32 [%rd2+16], {%r5, %r6, %r7, %r8};
    stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%r10], {%r1, %r2, %r3, %r4}; bar.sync 0; ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r10]; st.global.v4.b32 [%rd2+32], {%r1, %r2, %r3, %r4};
    mov.u32 %r11, near; wmma.load.a.sync.aligned.row.m16n16k16.shared::cta.f16 {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}, [%r11], 16; st.global.b32 [%rd2+48], %r1;
    wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}, [%r11], 16; st.global.b32 [%rd2+52], %r1;"""
    out = run(body, a, ".shared .align 16 .b8 near[512];\n")
    assert np.array_equal(out[:, :4], out[:, 4:8])
    assert np.array_equal(out[:, 8:12], a[:, :4])
    assert np.array_equal(out[:, 12], out[:, 13])


def test_rare_forms_of_asynchronous_copies_and_barriers():
    """One thread: a cache hint, transactions of an mbarrier counted by hand, reductions of 64 bits by a bulk copy."""
    a = words()
    body = """setp.ne.u32 %p1, %r9, 0; @%p1 bra END; mov.u32 %r10, near; mov.u32 %r11, bar; mov.b64 %rd4, 0;
    cp.async.cg.shared.global.L2::cache_hint [%r10], [%rd1], 16, %rd4; cp.async.wait_all; ld.shared.b32 %r1, [%r10+4]; st.global.b32 [%rd2], %r1;
    mbarrier.init.shared.b64 [%r11], 2; mbarrier.arrive.noComplete.release.cta.shared.b64 %rd5, [%r11], 1; mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r11], 16;
    mbarrier.arrive.release.cluster.shared::cta.b64 %rd5, [%r11]; mbarrier.test_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r11], 0; selp.u32 %r2, 7, 3, %p2; st.global.b32 [%rd2+4], %r2;
    mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%r11], 16; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p2, [%r11], 0; selp.u32 %r2, 7, 3, %p2; st.global.b32 [%rd2+8], %r2;
    st.shared.b64 [%r10], 5; st.shared.b64 [%r10+8], -9; mov.b64 %rd6, 20; st.global.b64 [%rd2+16], %rd6; st.global.b64 [%rd2+24], %rd6; fence.proxy.async.shared::cta;
    cp.reduce.async.bulk.global.shared::cta.bulk_group.min.s64 [%rd2+16], [%r10], 16; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
    mov.b64 %rd6, 12; st.global.b64 [%rd2+32], %rd6; st.global.b64 [%rd2+40], %rd6; cp.reduce.async.bulk.global.shared::cta.bulk_group.and.b64 [%rd2+32], [%r10], 16;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:"""
    out = run(body, a, ".shared .align 16 .b8 near[16];\n.shared .align 8 .b64 bar;\n")
    assert out[0, :3].tolist() == [a[0, 1], 3, 7]
    assert out[0].view(np.int64)[2:6].tolist() == [5, -9, 5 & 12, -9 & 12]


def test_arriving_at_a_barrier_of_the_block():
    a = words()
    text = """barrier.cta.arrive.aligned 3, 32; setp.lt.u32 %p1, %r9, 16; @%p1 bra FIRST; bar.cta.arrive 1, 32; barrier.cta.arrive 2, 32; bra END;
    FIRST: bar.cta.sync 1, 32; barrier.cta.sync 2, 32; ld.global.b32 %r1, [%rd1]; st.global.b32 [%rd2], %r1; END:"""
    out = run(text, a)
    assert np.array_equal(out[:16, 0], a[:16, 0])
    assert not out[16:].any()


def test_which_space_an_address_is_in():
    body = """cvta.shared.u64 %rd4, near; cvta.shared::cta.u64 %rd5, near; cvta.local.u64 %rd6, own; mov.u32 %r1, 0;
    isspacep.shared %p1, %rd4; @%p1 or.b32 %r1, %r1, 1; isspacep.shared::cta %p1, %rd5; @%p1 or.b32 %r1, %r1, 2; isspacep.local %p1, %rd6; @%p1 or.b32 %r1, %r1, 4;
    isspacep.global %p1, %rd1; @%p1 or.b32 %r1, %r1, 8; isspacep.shared %p1, %rd1; @%p1 or.b32 %r1, %r1, 16; isspacep.global %p1, %rd6; @%p1 or.b32 %r1, %r1, 32;
    cvta.to.shared::cta.u64 %rd7, %rd5; cvta.to.shared.u64 %rd8, %rd4; setp.eq.u64 %p1, %rd7, %rd8; @%p1 or.b32 %r1, %r1, 64;
    cvta.const.u64 %rd10, table; ld.b32 %r2, [%rd10]; add.u32 %r1, %r1, %r2; cvta.param.u64 %rd11, a; ld.b64 %rd12, [%rd11]; st.global.b64 [%rd2+8], %rd12; st.global.b32 [%rd2], %r1;"""
    before = ".shared .align 4 .b8 near[4];\n.const .align 4 .u32 table[2] = {1000, 5};\n"
    a = words()
    out = np.zeros((THREADS, 16), np.uint32)
    text = ".local .align 4 .b8 own[8];\n" + body + "ld.param.u64 %rd13, [a]; st.global.b64 [%rd2+16], %rd13;"
    program(text, before).launch("k", (1,), (THREADS,), (a, out))
    assert (out[:, 0] == 1000 + 1 + 2 + 4 + 8 + 64).all()
    assert np.array_equal(out[:, 2:4], out[:, 4:6])


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_carries_through_every_instruction(kind):
    """Sums, differences and products of twice the width, from halves that hand on their carry."""
    unsigned, bits = "u" + kind[1:], 8 * DTYPES[kind].itemsize
    rng = np.random.default_rng(3)
    a, b, c = (rng.permutation(edge_values(kind, rng)) for _ in range(3))
    mask = (1 << bits) - 1

    def check(text, function):
        got = run_instruction(text, [(kind, a), (kind, b), (kind, c)], kind).view(DTYPES[unsigned])
        wanted = [function(int(x) & mask, int(y) & mask, int(z) & mask) & mask for x, y, z in zip(a, b, c, strict=True)]
        assert got.tolist() == wanted, text

    check(f"add.cc.{kind} d, a, b; addc.{kind} d, c, 0;", lambda x, y, z: z + ((x + y) >> bits))
    check(f"sub.cc.{kind} d, a, b; subc.{kind} d, c, a;", lambda x, y, z: z - x - (x < y))
    check(
        f"add.cc.{kind} d, a, b; addc.cc.{kind} d, c, c; addc.{kind} d, 0, 0;",
        lambda x, y, z: (2 * z + ((x + y) >> bits)) >> bits,
    )
    check(
        f"sub.cc.{kind} d, a, b; subc.cc.{kind} d, c, b; subc.{kind} d, 0, 0;", lambda x, y, z: -(z - y - (x < y) < 0)
    )
    check(
        f"mad.lo.cc.{kind} d, a, b, c; madc.lo.{kind} d, a, b, 0;",
        lambda x, y, z: (x * y & mask) + (((x * y & mask) + z) >> bits),
    )

    def high(x, y):
        if kind[0] == "s":
            x, y = (v - (1 << bits) if v >> (bits - 1) else v for v in (x, y))
        return (x * y) >> bits & mask

    check(
        f"mad.lo.cc.{kind} d, a, b, c; madc.hi.{kind} d, a, b, a;",
        lambda x, y, z: high(x, y) + x + (((x * y & mask) + z) >> bits),
    )
    check(f"mad.hi.cc.{kind} d, a, b, c; madc.lo.cc.{kind} d, b, c, 0; addc.{kind} d, 0, 0;",
          lambda x, y, z: ((y * z & mask) + ((high(x, y) + z) >> bits)) >> bits)  # fmt: skip


COMPARE = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}


def compared(comparison, a, b):
    return np.array([eval(f"x {COMPARE[comparison]} y") for x, y in zip(a.tolist(), b.tolist(), strict=True)])


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "s16", "u32", "s32", "u64", "s64", "f32", "f64"])
def test_set_and_setp_with_a_predicate(kind):
    rng = np.random.default_rng(4)
    a, b = (rng.permutation(edge_values(kind, rng)) for _ in range(2))
    b[::5] = a[::5]
    for comparison in (
        ["eq", "ne"] if kind[0] == "b" else ["lt", "ge", "lo", "ls", "hi", "hs"] if kind[0] == "u" else ["lt", "ge"]
    ):
        holds = compared(comparison, a, b)
        for combine, function in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
            odd = np.arange(a.size) % 2 == 1
            choose = "{ .reg .pred q; and.b32 tid2, tid, 1; setp.eq.u32 q, tid2, 1; %s }"
            text = choose % f"set.{comparison}.{combine}.u32.{kind} d, a, b, q;"
            got = run_instruction(text, [(kind, a), (kind, b)], "u32")
            assert np.array_equal(got, np.where(function(holds, odd), 0xFFFFFFFF, 0)), text
            text = choose % f"setp.{comparison}.{combine}.{kind} p, a, b, q; selp.u32 d, 1, 0, p;"
            got = run_instruction(text, [(kind, a), (kind, b)], "u32")
            assert np.array_equal(got, function(holds, odd)), text


@pytest.mark.parametrize("name", ["set.lt.ftz.u32.f32 d, a, b;", "setp.lt.ftz.f32 p, a, b; selp.u32 d, -1, 0, p;"])
def test_comparisons_flush(name):
    a = np.array([1e-39, -1e-39, 0, 1e-39, 1], np.float32)
    b = np.array([2e-39, 1e-39, 1e-39, 1e-37, 1], np.float32)
    assert run_instruction(name, [("f32", a), ("f32", b)], "u32").tolist() == [0, 0, 0, 2**32 - 1, 0]


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "s16", "u32", "s32", "u64", "s64", "f32", "f64"])
def test_choices(kind):
    rng = np.random.default_rng(5)
    a, b = (rng.permutation(edge_values(kind, rng)) for _ in range(2))
    c = rng.permutation(edge_values("s32", rng))[: a.size]
    a, b = a[: c.size], b[: c.size]
    unsigned = f"u{a.itemsize}"
    got = run_instruction(f"slct.{kind}.s32 d, a, b, c;", [(kind, a), (kind, b), ("s32", c)], kind)
    assert np.array_equal(got.view(unsigned), np.where(c >= 0, a.view(unsigned), b.view(unsigned)))
    got = run_instruction(f"setp.ge.s32 p, c, 0; selp.{kind} d, a, b, p;", [(kind, a), (kind, b), ("s32", c)], kind)
    assert np.array_equal(got.view(unsigned), np.where(c >= 0, a.view(unsigned), b.view(unsigned)))


def test_a_choice_by_the_sign_of_a_float():
    c = np.array([1, -1, 0, -0.0, np.nan, -1e-39, np.inf], np.float32)
    a, b = np.arange(7, dtype=np.uint32), np.arange(7, dtype=np.uint32) + 100
    assert run_instruction("slct.u32.f32 d, a, b, c;", [("u32", a), ("u32", b), ("f32", c)], "u32").tolist() == [
        0,
        101,
        2,
        3,
        104,
        105,
        6,
    ]
    assert run_instruction("slct.ftz.u32.f32 d, a, b, c;", [("u32", a), ("u32", b), ("f32", c)], "u32").tolist() == [
        0,
        101,
        2,
        3,
        104,
        5,
        6,
    ]


TESTS = {
    "finite": np.isfinite, "infinite": np.isinf, "number": lambda x: ~np.isnan(x), "notanumber": np.isnan,
    "normal": lambda x: np.isfinite(x) & (np.abs(x) >= np.finfo(x.dtype).tiny),
    "subnormal": lambda x: (np.abs(x) < np.finfo(x.dtype).tiny) & (x != 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", TESTS)
def test_testp(name, kind):
    a = edge_values(kind, np.random.default_rng(6))
    got = run_instruction(f"testp.{name}.{kind} p, a; selp.u32 d, 1, 0, p;", [(kind, a)], "u32")
    assert np.array_equal(got, TESTS[name](a))


@pytest.mark.parametrize("name", ["abs", "neg"])
def test_signs_of_halves(name):
    bits = np.arange(65536, dtype=np.uint16)
    x = bits.view(np.float16)
    exact = np.abs(x) if name == "abs" else -x
    flushed = np.where(np.abs(x) < np.float16(2.0**-14), np.copysign(np.float16(0), exact), exact)
    for ftz, wanted in (("", exact), (".ftz", flushed)):
        assert same_bits(run_instruction(f"{name}{ftz}.f16 d, a;", [("f16", x)], "f16"), wanted).all()
        pairs = run_instruction(f"{name}{ftz}.f16x2 d, a;", [("b32", bits.astype(np.uint32) << 16 | 0x3C00)], "b32")
        assert same_bits((pairs >> 16).astype(np.uint16).view(np.float16), wanted).all()


def test_instructions_that_flush():
    a = np.array([1e-39, -1e-39, 2.0**-126, -3.0, 1e-20], np.float32)
    small = np.array([0, -0.0, 2.0**-126, -3.0, 1e-20], np.float32)
    one = np.full(5, 2e-39, np.float32)
    for name, wanted in (("abs", np.abs(small)), ("neg", -small)):
        assert same_bits(run_instruction(f"{name}.ftz.f32 d, a;", [("f32", a)], "f32"), wanted).all()
    with np.errstate(all="ignore"):
        for name, function in (
            ("sqrt.rn.ftz", np.sqrt),
            ("sqrt.approx.ftz", np.sqrt),
            ("lg2.approx.ftz", np.log2),
            ("sin.approx.ftz", np.sin),
            ("cos.approx.ftz", np.cos),
        ):
            got, wanted = run_instruction(f"{name}.f32 d, a;", [("f32", a)], "f32"), function(small.astype(np.float64))
            assert np.allclose(got, wanted, rtol=2.0**-20, atol=2.0**-126, equal_nan=True), name
    for name, wanted in (("min", [0, -0.0, 0, -3.0, 0]), ("max", [0, 0, 2.0**-126, 0, 1e-20])):
        got = run_instruction(f"{name}.ftz.f32 d, a, b;", [("f32", a), ("f32", one)], "f32")
        assert same_bits(got, np.array(wanted, np.float32)).all()
    assert same_bits(run_instruction("cvt.rni.ftz.f32.f32 d, a;", [("f32", a)], "f32"), np.rint(small)).all()
    assert run_instruction("cvt.rpi.ftz.s32.f32 d, a;", [("f32", a)], "s32").tolist() == [0, 0, 1, -3, 1]
    assert same_bits(run_instruction("cvt.rn.ftz.f32.f64 d, a;", [("f64", a.astype(np.float64))], "f32"), small).all()


def test_what_a_warp_does_with_rare_types():
    a = words(7) & 0x3F
    body = """ld.global.b32 %r1, [%rd1]; redux.sync.and.b32 %r2, %r1, -1; st.global.b32 [%rd2], %r2; redux.sync.or.b32 %r2, %r1, -1; st.global.b32 [%rd2+4], %r2;
    redux.sync.xor.b32 %r2, %r1, -1; st.global.b32 [%rd2+8], %r2; redux.sync.min.u32 %r2, %r1, -1; st.global.b32 [%rd2+12], %r2; redux.sync.max.u32 %r2, %r1, -1; st.global.b32 [%rd2+16], %r2;
    setp.gt.u32 %p1, %r1, 99; vote.sync.uni.pred %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2; st.global.b32 [%rd2+20], %r2; setp.gt.u32 %p1, %r1, 20; vote.sync.uni.pred %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2; st.global.b32 [%rd2+24], %r2;
    and.b32 %r3, %r1, 3; cvt.u64.u32 %rd3, %r3; shl.b64 %rd3, %rd3, 40; match.any.sync.b64 %r2, %rd3, -1; st.global.b32 [%rd2+28], %r2; redux.sync.add.u32 %r2, %r1, -1; st.global.b32 [%rd2+32], %r2;"""
    out, x = run(body, a), a[:, 0]
    assert [set(out[:, k].tolist()) for k in (0, 1, 2, 3, 4, 5, 6, 8)] == [
        {np.bitwise_and.reduce(x)}, {np.bitwise_or.reduce(x)}, {np.bitwise_xor.reduce(x)}, {x.min()}, {x.max()}, {1}, {0}, {x.sum()}]  # fmt: skip
    assert out[:, 7].tolist() == [sum(1 << k for k, v in enumerate(x) if v & 3 == w & 3) for w in x]


@pytest.mark.parametrize("kind", ["u64", "s64"])
def test_sad_of_64_bits(kind):
    rng = np.random.default_rng(8)
    a, b, c = (rng.permutation(edge_values(kind, rng)) for _ in range(3))
    got = run_instruction(f"sad.{kind} d, a, b, c;", [(kind, a), (kind, b), (kind, c)], kind)
    mask = 2**64 - 1
    assert [int(v) & mask for v in got] == [
        (int(z) + abs(int(x) - int(y))) & mask for x, y, z in zip(a, b, c, strict=True)
    ]


def test_a_breakpoint_stops():
    with pytest.raises(EmulatorFault, match="trap"):
        run("brkpt;", words())


@pytest.mark.parametrize(("statement", "name"), [
    ("ld.release.gpu.global.b32 %r1, [%rd1];", "ld.release"), ("st.acquire.gpu.global.b32 [%rd1], %r1;", "st.acquire"), ("st.global.nc.b32 [%rd1], %r1;", "st.global.nc"),
    ("atom.global.weak.add.u32 %r1, [%rd1], 1;", "atom.global.weak"), ("red.global.exch.b32 [%rd1], 1;", "red.global.exch"), ("atom.local.add.u32 %r1, [%rd1], 1;", "atom.local"),
    ("addc.sat.s32 %r1, %r1, %r1;", "addc.sat.s32"), ("add.sat.u32 %r1, %r1, %r1;", "add.sat.u32"), ("shl.u32 %r1, %r1, 3;", "shl.u32"), ("selp.f16 %h1, %h1, %h1, %p1;", "selp.f16"),
    ("min.ftz.f64 %fd1, %fd1, %fd1;", "min.ftz.f64"), ("cvt.ftz.s32.u32 %r1, %r1;", "cvt.ftz.s32.u32"), ("abs.ftz.f64 %fd1, %fd1;", "abs.ftz.f64"), ("div.rn.sat.f32 %f1, %f1, %f1;", "div.rn.sat.f32"),
    ("vabsdiff4.u32.u32.u32.sat %r1, %r1, %r1, %r1;", "vabsdiff4"), ("vadd4.u32.u32.u32 %r1, %r1, %r1, %r1;", "vadd4"), ("rcp.approx.f64 %fd1, %fd1;", "rcp.approx.f64"), ("sqrt.approx.f64 %fd1, %fd1;", "sqrt.approx.f64"),
    ("tanh.approx.ftz.f32 %f1, %f1;", "tanh.approx.ftz"), ("cvta.global.u32 %r1, %r1;", "cvta.global.u32"), ("ldu.global.b32 %r1, [%rd1];", "ldu.global"), ("isspacep.const %p1, %rd1;", "isspacep.const"), ("redux.sync.min.f32 %f1, %f1, -1;", "redux.sync.min.f32"),
    ("tex.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [%rd1, {%f1, %f2}];", "tex.2d"), ("stackrestore.u64 %rd1;", "stackrestore"),
])  # fmt: skip
def test_refused_by_name(statement, name):
    with pytest.raises(NotImplementedError, match=name.replace(".", r"\.")):
        program(statement).plan("k")


@pytest.mark.parametrize(("statement", "hint"), [
    ("tex.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [%rd1, {%f1, %f2}];", "Read and write arrays through pointers"),
    ("vadd4.u32.u32.u32 %r1, %r1, %r1, %r1;", "Use the intrinsics"), ("ldu.global.b32 %r1, [%rd1];", "Use ld.global"),
])  # fmt: skip
def test_a_refusal_says_what_to_use_instead(statement, hint):
    with pytest.raises(NotImplementedError, match=hint):
        program(statement).plan("k")
