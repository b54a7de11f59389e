# ruff: noqa: E501 (tables and kernels keep one case to a line)
"""Parsing, inlining, blocks, liveness and reconvergence order."""

import numpy as np
import pytest

from styleforge_lib.runtime.emulator import EmulatorFault, Program
from styleforge_lib.runtime.emulator.calls import flatten
from styleforge_lib.runtime.emulator.control_flow import build_graph
from styleforge_lib.runtime.emulator.lanes import Universe, merge
from styleforge_lib.runtime.emulator.parse import (
    Imm,
    Instruction,
    Mem,
    Pair,
    Reg,
    Sym,
    Vec,
    parse_module,
    parse_variable,
)

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


def module(body: str, parameters: str = ".param .u64 out", before: str = ""):
    return parse_module(f"{HEAD}{before}\n.visible .entry k({parameters})\n{{\n{body}\n}}\n")


def instructions(body: str) -> list[Instruction]:
    return [item for item in module(body).functions["k"].body if isinstance(item, Instruction)]


def test_operands():
    body = """.reg .pred %p<4>; .reg.b32 %r<9>; .reg .f32 %f<3>; .reg .b64 %rd<3>;
    @!%p1 add.s32 %r1, %r2, -5; ld.global.v2.f32 {%f1, _}, [%rd1+-16]; setp.lt.s32 %p1|%p2, %r1, 0x1F; mov.f32 %f2, 0fBF800000;
    shfl.sync.bfly.b32 %r1|%p3, %r2, 16, 31, -1; st.global.b32 [%rd1], {%r1}; mov.u32 %r3, %tid.x; // comment; { }
    /* a comment
       of two lines; */ selp.b32 %r1, 1, 0, %p1; ret;"""
    found = instructions(body)
    assert found[0] == Instruction("add", ("s32",), (Reg("%r1"), Reg("%r2"), Imm(-5, "int")), Reg("%p1"), True)
    assert found[1].operands == (Vec((Reg("%f1"), None)), Mem(Reg("%rd1"), -16))
    assert found[2].operands == (Pair(Reg("%p1"), Reg("%p2")), Reg("%r1"), Imm(31, "int"))
    assert found[3].operands[1] == Imm(0xBF800000, "f32")
    assert found[4].operands[0] == Pair(Reg("%r1"), Reg("%p3"))
    assert found[6].operands[1] == Reg("%tid.x")
    assert [item.opcode for item in found[-2:]] == ["selp", "ret"]


def test_scopes_of_inline_assembly_keep_their_registers_and_labels_apart():
    body = """.reg .b32 %r<4>; .reg .pred %p<2>;
    { .reg .b32 t; .reg .pred p; mov.u32 t, %r1; setp.eq.s32 p, t, 0; @p bra DONE; add.s32 %r1, t, 1; DONE: }
    { .reg .b32 t; .reg .pred p; mov.u32 t, %r2; setp.eq.s32 p, t, 0; @p bra DONE; add.s32 %r2, t, 1; DONE: }
    ret;"""
    found = instructions(body)
    assert found[0].operands[0] != found[4].operands[0]
    jumps = [item.operands[0] for item in found if item.opcode == "bra"]
    assert jumps[0] != jumps[1]


def test_lines_and_inlining_sites():
    body = """.reg .b32 %r<4>; .loc 1 7 3
    mov.u32 %r1, 1;
    .loc 2 90 3, function_name $L__info_string0, inlined_at 1 7 3
    mov.u32 %r2, 2; .local .align 4 .b8 depot[16];
    .loc 1 0 3
    mov.u32 %r3, 3; ret;"""
    text = f'{HEAD}.visible .entry k()\n{{\n{body}\n}}\n.file 1 "/tmp/kernel.cu"\n.file 2 "/usr/include/header.h"\n'
    program = Program(text, {"kernel.cu": ""})
    places = [item.place for item in program.module.functions["k"].body]
    assert [program.line_of(place) for place in places] == [7, 7, 7, 7]
    assert places[1].line == 90


def test_variables():
    table = parse_variable(".const .align 4 .b8 tab[8] = {1, 0, 0, 0, 255, 1}")
    assert (table.size, table.initial, table.space) == (8, bytes([1, 0, 0, 0, 255, 1]), "const")
    assert parse_variable(".global .align 4 .f32 x = 0f3F800000").initial == np.float32(1).tobytes()
    assert parse_variable(".extern .shared .align 16 .b8 s[]").size is None
    assert parse_variable(".global .u64 p[2] = {tab, generic(tab)+4}").references == ((0, "tab"), (8, "tab"))
    with pytest.raises(ValueError, match="not understood"):
        parse_variable(".global .strange x")


def test_pointers_in_initial_values():
    text = f"""{HEAD}.global .align 4 .u32 value = 42;\n.global .align 8 .u64 where = generic(value);
    .visible .entry k(.param .u64 out) {{ .reg .b64 %rd<4>; .reg .b32 %r<2>;
    ld.param.u64 %rd1, [out]; mov.u64 %rd2, where; ld.global.u64 %rd3, [%rd2]; ld.u32 %r1, [%rd3]; st.global.u32 [%rd1], %r1; ret; }}"""
    out = np.zeros(1, np.uint32)
    Program(text).launch("k", (1,), (1,), (out,))
    assert out[0] == 42


def order_of(body: str):
    graph = build_graph(flatten(module(body), "k"))
    return graph, {label: block.index for block in graph.blocks for label in [_mark(block)] if label is not None}


def _mark(block):
    for item in block.instructions:
        if item.opcode == "mov" and isinstance(item.operands[1], Imm):
            return item.operands[1].value
    return None


def test_a_loop_with_a_break_comes_before_what_follows_it():
    """The exit is met first in the text and reached first in a depth-first walk, and must still come last."""
    body = """.reg .b32 %r<9>; .reg .pred %p<4>;
    mov.u32 %r1, 1; bra HEAD;
    EXIT: mov.u32 %r2, 5; ret;
    HEAD: mov.u32 %r3, 2; @%p1 bra LEFT;
    mov.u32 %r4, 3; @%p2 bra EXIT; bra HEAD;
    LEFT: mov.u32 %r5, 4; bra HEAD;"""
    _, order = order_of(body)
    assert order[1] < order[2] < min(order[3], order[4])
    assert order[5] > max(order[3], order[4])


def test_the_join_comes_after_both_arms():
    body = """.reg .b32 %r<9>; .reg .pred %p<4>; mov.u32 %r1, 1; @%p1 bra A; mov.u32 %r2, 2; bra JOIN;
    JOIN: mov.u32 %r3, 4; ret; A: mov.u32 %r4, 3; bra JOIN;"""
    _, order = order_of(body)
    assert order[4] > max(order[2], order[3])


def test_liveness():
    body = """.reg .b32 %r<9>; .reg .pred %p<4>; mov.u32 %r1, 1; mov.u32 %r2, %tid.x; setp.eq.s32 %p1, %r2, 0;
    @%p1 bra A; add.s32 %r3, %r1, %r2; A: add.s32 %r4, %r1, 1; ret;"""
    graph, _ = order_of(body)

    def live(mask):
        return {name for name, bit in graph.bit.items() if mask >> bit & 1}

    assert live(graph.blocks[0].live_in) == {"%tid.x"}
    assert live(graph.blocks[0].live_out) == {"%r1", "%r2"}
    assert live(graph.blocks[1].live_out) == {"%r1"}


def test_guarded_instructions_become_blocks():
    out = np.zeros(64, np.uint32)
    text = f"""{HEAD}.visible .entry k(.param .u64 out) {{ .reg .b64 %rd<4>; .reg .b32 %r<4>; .reg .pred %p<3>;
    ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mad.wide.u32 %rd2, %r1, 4, %rd1; mov.u32 %r2, 7; setp.lt.u32 %p1, %r1, 40;
    @%p1 add.u32 %r2, %r2, %r1; @!%p1 mov.u32 %r2, 1; setp.eq.u32 %p2, %r1, 5; @%p2 ret; st.global.u32 [%rd2], %r2; ret; }}"""
    Program(text).launch("k", (1,), (64,), (out,))
    i = np.arange(64)
    assert np.array_equal(out, np.where(i == 5, 0, np.where(i < 40, 7 + i, 1)))


def test_switch_table():
    out = np.zeros(64, np.uint32)
    text = f"""{HEAD}.visible .entry k(.param .u64 out) {{ .reg .b64 %rd<4>; .reg .b32 %r<4>;
    ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mad.wide.u32 %rd2, %r1, 4, %rd1; and.b32 %r3, %r1, 3;
    table: .branchtargets L0, L1, L2, L1;
    brx.idx %r3, table; L0: mov.u32 %r2, 10; bra.uni END; L1: mov.u32 %r2, 11; bra.uni END; L2: mov.u32 %r2, 12; END: st.global.u32 [%rd2], %r2; ret; }}"""
    Program(text).launch("k", (1,), (64,), (out,))
    assert np.array_equal(out, np.array([10, 11, 12, 11])[np.arange(64) & 3])


@pytest.mark.parametrize(("statement", "name"), [
    ("add.rz.ftz.f64 %fd1, %fd1, %fd1;", "add.rz.ftz.f64"), ("frob.b32 %r1, %r1;", "frob.b32"), ("add.sat.f32x2 %rd1, %rd1, %rd1;", "add.sat.f32x2"),
    ("fma.rn.sat.bf16 %rs1, %rs1, %rs1, %rs1;", "fma.rn.sat.bf16"), ("ld.global.L2::cache_hint.b32 %r1, [%rd1], %rd2;", "ld.global"),
    ("min.xorsign.abs.f32 %f1, %f1, %f1;", "min.xorsign.abs.f32"), ("mul.wide.u64 %rd1, %rd1, %rd1;", "mul.wide.u64"),
    ("barrier.cluster.sync.aligned;", "barrier.cluster.sync.aligned"), ("cp.async.bulk.commit_group.x;", "cp.async.bulk.commit_group.x"),
    ("call frob, ();", "call frob"), ("atom.global.add.bf16x2 %r1, [%rd1], %r1;", "atom.global.add.bf16x2"),
])  # fmt: skip
def test_refusals_name_the_instruction_and_its_line(statement, name):
    body = f".reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .f32 %f<4>; .reg .f64 %fd<3>; .reg .b16 %rs<3>;\n.loc 1 12 3\n{statement} ret;"
    text = f'{HEAD}.visible .entry k(.param .u64 out)\n{{\n{body}\n}}\n.file 1 "/tmp/kernel.cu"\n'
    with pytest.raises(NotImplementedError, match=r"line 12") as caught:
        Program(text).plan("k")
    assert f"`{name}" in str(caught.value)


def test_lane_sets_gather_and_scatter_any_shape():
    """Whatever a set and a value look like, gather and scatter agree with plain (T, B) arrays."""
    rng = np.random.default_rng(0)
    for threads, blocks in ((4, 3), (1, 5), (6, 1), (1, 1), (32, 4)):
        universe = Universe(threads, blocks)
        for _ in range(60):
            kind = rng.integers(3)
            mask = rng.random((threads, blocks)) < 0.6
            if kind:
                mask = mask[:, :1] & mask[:1] if kind == 1 else np.repeat(mask[:, :1], blocks, 1)
            lanes = universe.from_mask(mask)
            if lanes is None:
                assert not mask.any()
                continue
            assert np.array_equal(lanes.mask(), mask)
            shape = [(), (1, blocks), (threads, 1), (threads, blocks)][rng.integers(4)]
            value = rng.integers(0, 99, shape)
            value = value if shape else np.int64(7)
            seen = lanes.expand(lanes.gather(value)).reshape(-1)
            assert np.array_equal(seen, np.broadcast_to(value, mask.shape)[mask])
            old = rng.integers(0, 99, [(1, blocks), (threads, 1), (threads, blocks)][rng.integers(3)])
            new = lanes.scatter(old, lanes.gather(value), False)
            wanted = np.broadcast_to(old, mask.shape).copy()
            wanted[mask] = np.broadcast_to(value, mask.shape)[mask]
            assert np.array_equal(np.broadcast_to(new, mask.shape), wanted)
            predicate = np.broadcast_to(
                rng.random([(1, blocks), (threads, 1), (threads, blocks)][rng.integers(3)]) < 0.5, mask.shape
            )
            yes, no = lanes.split(lanes.gather(np.ascontiguousarray(predicate)))
            for part, wanted in ((yes, mask & predicate), (no, mask & ~predicate)):
                assert np.array_equal(part.mask() if part else np.zeros_like(mask), wanted)
            if yes and no:
                assert np.array_equal(merge(no, yes).mask(), mask)  # two halves are the whole again
                some, _ = yes.split(yes.gather(rng.random(mask.shape) < 0.5))
                if some:
                    assert np.array_equal(merge(no, some).mask(), no.mask() | some.mask())  # a part of one half is not


def test_launch_of_a_fault_leaves_the_program_usable():
    text = f"""{HEAD}.visible .entry k(.param .u64 out, .param .u32 n) {{ .reg .b64 %rd<4>; .reg .b32 %r<4>;
    ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [n]; mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.u32 [%rd2], %r1; ret; }}"""
    program, out = Program(text), np.zeros(4, np.uint32)
    with pytest.raises(EmulatorFault, match=r"byte 16 of 16 in out"):
        program.launch("k", (1,), (1,), (out, np.uint32(4)), names=("out", "n"))
    program.launch("k", (1,), (1,), (out, np.uint32(3)))
    assert out.tolist() == [0, 0, 0, 3]
    assert Sym("x") == Sym("x")
