"""mbarrier, cp.async.bulk, wgmma and setmaxnreg: what came with compute capability 9.0.

The barriers are `emulator.mbarriers`, the copies `emulator.bulk_copies`, the products `emulator.warpgroups`.
"""

from __future__ import annotations

from ..parse import Imm, Mem, Reg, Sym, TensorMem, Vec
from ..warpgroup_operands import Shape
from .emitter import rule, wait_rule

_SEMANTICS = ("acquire", "release", "relaxed")
_SCOPES = ("cta", "cluster")
_SPACES = ("shared", "shared_cta", "shared_cluster")
_BARRIER_HINT = (
    "Use mbarrier.init, inval, arrive (with .expect_tx, .noComplete or a count), arrive_drop, expect_tx, complete_tx, "
    "test_wait, try_wait (with or without .parity) or pending_count, of .shared .b64."
)
_PRODUCT_HINT = (
    "Use wgmma.mma_async.sync.aligned.m64nNk16 of .f16 (to .f32 or .f16) or .bf16 (to .f32), or .m64nNk8 of .tf32 (to "
    ".f32), with N a multiple of 8 up to 256."
)


def address(e, operand, space: str) -> str:
    """Return (address, offset, space) as translated code."""
    base = operand.base
    kind = f"u{8 * e.register(base.name)[1].itemsize}" if isinstance(base, Reg) else "u64"
    if isinstance(base, Sym):
        return f"({e.use(base, 'u64')}, {operand.offset}, {space!r})"
    return f"({e.use(base, kind)}, {operand.offset}, {space!r})"


def _space(m) -> str:
    return "shared" if m.one_of(*_SPACES) else "generic"


# --- mbarrier ---------------------------------------------------------------------------------------------------------


@rule("mbarrier")
def _mbarrier(e, ins, m):
    what = m.one_of("init", "inval", "arrive", "arrive_drop", "expect_tx", "complete_tx", "pending_count") or m.refuse(
        _BARRIER_HINT
    )
    announces = what.startswith("arrive") and m.flag("expect_tx")
    m.flag("noComplete")
    m.one_of(*_SEMANTICS)
    m.one_of(*_SCOPES)
    space = _space(m)
    if m.one_of("b64") is None or m.left:
        m.refuse(_BARRIER_HINT)
    operands = list(ins.operands)
    if what == "pending_count":
        target, state = operands
        e.set_expression(target, f"m.mbarriers.pending_count({e.use(state, 'u64')})", "u32")
        return
    site = e.code.site(ins, space, "store" if what in ("init", "inval") else "atomic", 8)
    if what in ("init", "inval"):
        where = address(e, operands[0], space)
        if what == "init":
            e.line(f"m.mbarriers.initialise({where}, {e.use(operands[1], 'u32')}, L, {site})")
        else:
            e.line(f"m.mbarriers.invalidate({where}, L, {site})")
        return
    if what in ("expect_tx", "complete_tx"):
        sign = 1 if what == "expect_tx" else -1
        where, size = address(e, operands[0], space), e.use(operands[1], "u32")
        e.line(f"m.mbarriers.expect({where}, {size}, L, {site}, {sign})")
        return
    target = None if isinstance(operands[0], Mem) else operands.pop(0)
    where, *numbers = operands
    number = e.use(numbers[0], "u32") if numbers else e.constant(1, "u32")
    if announces and not numbers:
        m.refuse(_BARRIER_HINT)
    count, size = (e.constant(1, "u32"), number) if announces else (number, None)
    call = f"m.mbarriers.arrive({address(e, where, space)}, {count}, {size}, {what == 'arrive_drop'}, L, {site})"
    if target is None:
        e.line(call)
    else:
        e.set_expression(target, call, "u64")


def arrive_behind_copies(e, ins, m) -> None:
    """Translate cp.async.mbarrier.arrive."""
    counted = m.flag("arrive") and m.flag("noinc")
    space = _space(m)
    if m.left != ["b64"] or "arrive" not in ins.modifiers:
        m.refuse("Use cp.async.mbarrier.arrive, with or without .noinc, .shared.b64.")
    site = e.code.site(ins, space, "atomic", 8)
    e.line(f"m.mbarriers.arrive_behind_copies({address(e, ins.operands[0], space)}, {counted}, L, {site})")


@wait_rule("mbarrier")
def _mbarrier_wait(e, ins, m):
    m.one_of("try_wait", "test_wait")
    m.flag("parity")
    m.one_of(*_SEMANTICS)
    m.one_of(*_SCOPES)
    space = _space(m)
    if m.one_of("b64") is None or m.left or len(ins.operands) not in (3, 4):
        m.refuse(_BARRIER_HINT)
    _register_wait(e, ins, space, "atomic", 8)


def _register_wait(e, ins, space: str, verb: str, width: int) -> None:
    name = e.code.site(ins, space, verb, width)
    e.code.waits[e.block.index] = e.code.namespace[name]


@wait_rule("barrier")
def _cluster_wait(e, ins, m):
    m.left = [word for word in m.left if word not in ("cluster", "wait", "aligned", "acquire")]
    if m.left or "wait" not in ins.modifiers:
        m.refuse("Use barrier.cluster.arrive and barrier.cluster.wait.")
    _register_wait(e, ins, "", "barrier", 0)


@rule("mapa")
def _mapa(e, ins, m):
    generic = m.one_of("shared_cluster") is None
    kind = m.type("u64" if generic else "u32", "u32")
    m.finish()
    target, source, rank = ins.operands
    site = e.code.site(ins, "", ins.opcode, 0)
    value, rank = e.use(source, "u64" if generic or isinstance(source, Sym) else "u32"), e.use(rank, "u32")
    e.set_expression(target, f"m.clusters.map_address({value}, {rank}, {generic}, L, {site})", kind)


@rule("getctarank")
def _getctarank(e, ins, m):
    generic = m.one_of("shared_cluster") is None
    kind = m.type("u64", "u32")
    m.finish()
    target, source = ins.operands
    e.set_expression(target, f"m.clusters.rank_of({e.use(source, kind)}, {generic}, L)", "u32")


# --- cp.async.bulk ----------------------------------------------------------------------------------------------------

_COPY_HINT = (
    "Use cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes, "
    "cp.async.bulk.global.shared::cta.bulk_group, "
    "cp.reduce.async.bulk.global.shared::cta.bulk_group, cp.async.bulk.commit_group and cp.async.bulk.wait_group."
)
_REDUCED_TYPES = {"u32": "U4", "s32": "I4", "u64": "U8", "s64": "I8", "f16": "F2", "f32": "F4", "f64": "F8",
                  "b32": "U4", "b64": "U8"}  # fmt: skip


def bulk_copy(e, ins, m) -> None:
    """Translate cp.async.bulk; `cp`, `async` and `bulk` have been taken."""
    if m.flag("commit_group"):
        m.finish()
        e.line("m.bulk.commit(L)")
        return
    if m.flag("wait_group"):
        only_read = m.flag("read")
        m.finish()
        if not isinstance(ins.operands[0], Imm):
            m.refuse(_COPY_HINT)
        e.line(f"m.bulk.wait({ins.operands[0].value}, {only_read}, L)")
        return
    if m.flag("prefetch"):
        return  # of the L2 cache: no value changes
    hinted, mask = m.flag("L2_cache_hint"), None
    operands = list(ins.operands[:-1] if hinted else ins.operands)
    if m.flag("multicast_cluster"):
        mask = e.use(operands.pop(), "u16")
    if m.flag("tensor"):
        _box(e, ins, m, operands, mask)
        return
    if m.flag("bulk_group"):
        m.one_of("global") or m.refuse(_COPY_HINT)
        m.one_of("shared_cta") or m.refuse(_COPY_HINT)
        operation, dtype = _reduction(m, ins)
        m.flag("noftz")
        if m.left or len(operands) != 3:
            m.refuse(_COPY_HINT)
        target, source, size = operands
        read, write = e.code.site(ins, "shared", "load", 16), e.code.site(ins, "global", "store", 16)
        where = f"{address(e, target, 'global')}, {address(e, source, 'shared')}, {e.use(size, 'u32')}"
        e.line(f"m.bulk.store({where}, {operation!r}, {dtype}, L, {read}, {write})")
        return
    if not m.flag("mbarrier_complete_tx_bytes"):
        m.refuse(_COPY_HINT)
    m.one_of("shared_cluster", "shared_cta") or m.refuse(_COPY_HINT)
    source_space = m.one_of("global", "shared_cta") or m.refuse(_COPY_HINT)
    if m.left or len(operands) != 4:
        m.refuse(_COPY_HINT)
    target, source, size, barrier = operands
    source_space = "global" if source_space == "global" else "shared"
    read, write = e.code.site(ins, source_space, "load", 16), e.code.site(ins, "shared", "store", 16)
    where = f"{address(e, target, 'shared')}, {address(e, source, source_space)}, {e.use(size, 'u32')}"
    e.line(f"m.bulk.load({where}, {address(e, barrier, 'shared')}, {mask}, L, {read}, {write})")


_BOX_HINT = (
    "Use cp.async.bulk.tensor.1d to .5d, .shared::cluster.global.tile.mbarrier::complete_tx::bytes or "
    ".global.shared::cta.tile.bulk_group."
)


def _box(e, ins, m, operands: list, mask: str | None) -> None:
    """Translate cp.async.bulk.tensor; `tensor` has been taken."""
    axes = m.one_of("1d", "2d", "3d", "4d", "5d") or m.refuse(_BOX_HINT)
    m.flag("tile")
    stores = m.flag("bulk_group")
    known = (["global", "shared_cta"],) if stores else (["shared_cluster", "global"], ["shared_cta", "global"])
    loads = not stores and m.flag("mbarrier_complete_tx_bytes")
    if "reduce" in ins.modifiers or not (stores or loads) or m.left not in known or len(operands) != 3 - stores:
        m.refuse(_BOX_HINT)
    tensor, other = (operands[0], operands[1]) if stores else (operands[1], operands[0])
    if not isinstance(tensor, TensorMem) or len(tensor.coordinates) != int(axes[0]):
        m.refuse(f"Its coordinates must be {axes[0]}.")
    corner = ", ".join(e.use(value, "s32") for value in tensor.coordinates)
    verbs = (("shared", "load"), ("global", "store")) if stores else (("global", "load"), ("shared", "store"))
    read, write = (e.code.site(ins, space, verb, 16) for space, verb in verbs)
    where, held = address(e, tensor, "generic"), address(e, other, "shared")
    if stores:
        e.line(f"m.bulk.store_box({where}, ({corner},), {held}, L, {read}, {write})")
    else:
        counted = address(e, operands[2], "shared")
        e.line(f"m.bulk.load_box({held}, {where}, ({corner},), {counted}, {mask}, L, {read}, {write})")


def _reduction(m, ins) -> tuple[str | None, str]:
    if "reduce" not in ins.modifiers:
        return None, "None"
    operation = m.one_of("add", "min", "max", "and", "or", "xor") or m.refuse(_COPY_HINT)
    return operation, _REDUCED_TYPES[m.one_of(*_REDUCED_TYPES) or m.refuse(_COPY_HINT)]


# --- wgmma ------------------------------------------------------------------------------------------------------------

_DEPTHS = {"f16": 16, "bf16": 16, "tf32": 8}


@rule("wgmma")
def _wgmma(e, ins, m):
    if m.flag("commit_group"):
        if m.left != ["sync", "aligned"]:
            m.refuse(_PRODUCT_HINT)
        e.line(f"m.warpgroups.commit(L, {e.code.site(ins, '', ins.name, 0)})")
        return
    if m.left[:3] != ["mma_async", "sync", "aligned"] or len(m.left) != 7:
        m.refuse(_PRODUCT_HINT)
    shape, result, kind, other = m.left[3:]
    depth = _DEPTHS.get(kind)
    if depth is None or other != kind or not shape.startswith("m64n") or not shape.endswith(f"k{depth}"):
        m.refuse(_PRODUCT_HINT)
    columns = int(shape[4 : -len(f"k{depth}")])
    if columns % 8 or not 8 <= columns <= 256 or result not in (("f16", "f32") if kind == "f16" else ("f32",)):
        m.refuse(_PRODUCT_HINT)
    target, a, b, adds, *scales = ins.operands
    in_registers = isinstance(a, Vec)
    count = columns // (2 if result == "f32" else 4)
    if len(target.items) != count or (in_registers and len(a.items) != 4):
        m.refuse(f"Its accumulator takes {count} registers, and A in registers four.")
    if any(not isinstance(value, Imm) for value in scales):
        m.refuse("Its scales and transpositions are constants.")
    scale_a, scale_b, *turned = (value.value for value in scales)
    if len(turned) != (0 if kind == "tf32" else 1 if in_registers else 2):
        m.refuse(_PRODUCT_HINT)
    transposed_a = bool(turned[0]) if len(turned) == 2 else False
    transposed_b = bool(turned[-1]) if turned else False
    negated = (scale_a == -1) != (scale_b == -1)
    what = e.code.constant(Shape(columns, depth, kind, result, transposed_a, transposed_b, negated))
    held = "f32" if result == "f32" else "u32"
    values = ", ".join(e.use(register, held) for register in target.items)
    left = f"({', '.join(e.use(register, 'u32') for register in a.items)},)" if in_registers else e.use(a, "u64")
    adds = e.use(adds, "pred")
    site = e.code.site(ins, "shared", "load", 0)
    found = e.new(f"m.warpgroups.multiply({what}, ({values},), {left}, {e.use(b, 'u64')}, {adds}, L, {site})")
    for number, register in enumerate(target.items):
        e.set_expression(register, f"{found}[{number}]", held)


@wait_rule("wgmma")
def _wgmma_wait(e, ins, m):
    if m.left not in (["fence", "sync", "aligned"], ["wait_group", "sync", "aligned"]):
        m.refuse(_PRODUCT_HINT)
    _register_wait(e, ins, "", ins.opcode, 0)


# --- registers --------------------------------------------------------------------------------------------------------


@rule("setmaxnreg")
def _setmaxnreg(e, ins, m):
    """Do nothing: it moves registers between warpgroups: no value changes."""
    if not (m.one_of("inc", "dec") and m.flag("sync") and m.flag("aligned") and m.flag("u32")) or m.left:
        m.refuse("Use setmaxnreg.inc or .dec.sync.aligned.u32.")
    count = ins.operands[0].value
    if count % 8 or not 24 <= count <= 256:
        m.refuse("Its count must be a multiple of 8 from 24 to 256.")
