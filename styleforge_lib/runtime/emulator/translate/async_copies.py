"""cp.async with its groups and waits. The copies themselves are `emulator.async_copies`."""

from __future__ import annotations

from ..parse import Imm, Reg
from .emitter import rule
from .hopper import address, arrive_behind_copies, bulk_copy

_HINT = (
    "Use cp.async.ca.shared.global of 4, 8 or 16 bytes or cp.async.cg.shared.global of 16, then cp.async.commit_group "
    "and cp.async.wait_group (or wait_all)."
)


@rule("cp")
def _cp(e, ins, m):
    m.one_of("reduce") if "bulk" in m.left else None
    if not m.flag("async"):
        m.refuse(_HINT)
    if m.flag("mbarrier"):
        arrive_behind_copies(e, ins, m)
        return
    if m.flag("bulk"):
        bulk_copy(e, ins, m)
        return
    if m.flag("commit_group"):
        m.finish()
        e.line("m.copies.commit(L)")
    elif m.flag("wait_group"):
        m.finish()
        e.line(f"m.copies.wait({_number(m, ins.operands[0])}, L)")
    elif m.flag("wait_all"):
        m.finish()
        e.line("m.copies.commit(L)")
        e.line("m.copies.wait(0, L)")
    else:
        _copy(e, ins, m)


def _number(m, operand) -> int:
    return operand.value if isinstance(operand, Imm) else m.refuse(_HINT)


def _copy(e, ins, m) -> None:
    hinted = m.flag("L2_cache_hint")
    m.left = [word for word in m.left if word not in ("L2_64B", "L2_128B", "L2_256B")]
    cache = m.one_of("ca", "cg") or m.refuse(_HINT)
    if not ((m.flag("shared") or m.flag("shared_cta")) and m.flag("global")) or m.left:
        m.refuse(_HINT)
    operands = ins.operands[:-1] if hinted else ins.operands
    if len(operands) not in (3, 4):
        m.refuse(_HINT)
    target, source, width = operands[0], operands[1], _number(m, operands[2])
    if width not in ((4, 8, 16) if cache == "ca" else (16,)):
        m.refuse(_HINT)
    size = None
    if len(operands) == 4:
        size = operands[3]
        if isinstance(size, Reg) and e.code.kind(size.name) == "pred":
            m.refuse("Instead of ignore-src, give a source size of 0.")
        size = None if isinstance(size, Imm) and size.value == width else e.use(size, "u32")
    load, store = (e.code.site(ins, space, verb, width) for space, verb in (("global", "load"), ("shared", "store")))
    to, of = address(e, target, "shared"), address(e, source, "global")
    e.line(f"m.copies.issue({to}, {of}, {size}, {width}, L, {load}, {store})")
