"""shfl, vote, match, redux, activemask, and what a thread asks of the system: printf, assert, trap.

The work is in `emulator.warps` and `emulator.system`.
"""

from __future__ import annotations

from ..parse import Pair
from .emitter import rule


def _site(e, ins) -> str:
    return e.code.site(ins, "warp", ins.opcode, 4)


def _targets(operand):
    return (operand.first, operand.second) if isinstance(operand, Pair) else (operand, None)


@rule("shfl")
def _shfl(e, ins, m):
    if not m.flag("sync"):
        m.refuse("Use the _sync form.")
    mode = m.one_of("up", "down", "bfly", "idx") or m.refuse()
    m.type("b32")
    m.finish()
    target, value, lane, clamp, mask = ins.operands
    variable, dtype = e.bits(value, 4)
    lane, clamp, mask = e.use(lane, "u32"), e.use(clamp, "u32"), e.use(mask, "u32")
    first, second = _targets(target)
    both = e.new(f"m.shuffle({mode!r}, {variable}, {lane}, {clamp}, {mask}, L, {_site(e, ins)})")
    kind = {"f": "f32", "u": "u32", "i": "s32"}[dtype.kind]
    if first is not None:
        e.set_expression(first, f"{both}[0]", kind)
    if second is not None:
        e.set_expression(second, f"{both}[1]", "pred")


@rule("vote")
def _vote(e, ins, m):
    if not m.flag("sync"):
        m.refuse("Use the _sync form.")
    mode = m.one_of("all", "any", "uni", "ballot") or m.refuse()
    m.type("pred" if mode != "ballot" else "b32")
    m.finish()
    target, predicate, mask = ins.operands
    call = f"m.vote({mode!r}, {e.use(predicate, 'pred')}, {e.use(mask, 'u32')}, L, {_site(e, ins)})"
    e.set_expression(target, call, "u32" if mode == "ballot" else "pred")


@rule("activemask")
def _activemask(e, ins, m):
    m.type("b32")
    m.finish()
    e.set_expression(ins.operands[0], "m.active_mask(L)", "u32")


@rule("elect")
def _elect(e, ins, m):
    m.flag("sync")
    m.finish()
    target, mask = ins.operands
    first, second = _targets(target)
    both = e.new(f"m.elect({e.use(mask, 'u32')}, L, {_site(e, ins)})")
    if first is not None:
        e.set_expression(first, f"{both}[0]", "u32")
    if second is not None:
        e.set_expression(second, f"{both}[1]", "pred")


@rule("match")
def _match(e, ins, m):
    m.flag("sync") or m.refuse()
    mode = m.one_of("any", "all") or m.refuse()
    kind = m.type("b32", "b64")
    m.finish()
    target, value, mask = ins.operands
    first, second = _targets(target)
    both = e.new(f"m.match({mode!r}, {e.use(value, kind)}, {e.use(mask, 'u32')}, L, {_site(e, ins)})")
    if first is not None:
        e.set_expression(first, f"{both}[0]", "u32")
    if second is not None:
        e.set_expression(second, f"{both}[1]", "pred")


@rule("redux")
def _redux(e, ins, m):
    m.flag("sync") or m.refuse()
    operation = m.one_of("add", "min", "max", "and", "or", "xor") or m.refuse()
    kind = m.type("u32", "s32", "b32")
    m.finish()
    target, value, mask = ins.operands
    call = f"m.reduce({operation!r}, {e.use(value, kind)}, {e.use(mask, 'u32')}, L, {_site(e, ins)})"
    e.set_expression(target, call, kind)


@rule("call")
def _call(e, ins, m):
    name = m.left.pop()
    results, *values = ins.operands
    site = e.code.site(ins, "", name, 4)
    if name == "vprintf":
        text, arguments = (e.use(value, "u64") for value in values)
        e.line(f"m.printf({text}, {arguments}, L, {site})")
        for result in results.items:
            e.set(result, e.constant(1, "u32"), "u32")
    else:
        message, file, line, function, _ = values
        names = ", ".join([e.use(message, "u64"), e.use(file, "u64"), e.use(line, "u32"), e.use(function, "u64")])
        e.line(f"m.assertion_failed({names}, L, {site})")


@rule("trap", "brkpt")
def _trap(e, ins, m):
    pointer = ins.opcode == "trap" and m.flag(
        "pointer"
    )  # the emulator's own: a call through a pointer that leads to no function
    m.finish()
    e.line(f"m.trap(L, {e.code.site(ins, '', ins.opcode, 4)}, {pointer})")


@rule("bar", "barrier")
def _arrive(e, ins, m):
    """bar.arrive and barrier.cluster.arrive, the only barriers that do not end a block."""
    if ins.opcode == "barrier" and m.flag("cluster"):
        m.left = [word for word in m.left if word not in ("arrive", "aligned", "release", "relaxed")]
        m.finish()
        e.line("m.clusters.arrive(L)")
        return
    m.one_of("cta")
    if not m.flag("arrive"):
        m.refuse()
    if ins.opcode == "barrier":
        m.flag("aligned")
    m.finish()
    number, count = (e.use(value, "u32") for value in ins.operands)
    e.line(f"m.arrive({number}, {count}, L, {e.code.site(ins, '', 'barrier', 4)})")
