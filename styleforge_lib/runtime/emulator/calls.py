"""A kernel as one stream of instructions, whatever it calls: `flatten`.

`inline` copies a function to where it is called. Where that has no end (recursion) or no one answer (a call through a
pointer), the function is there once, and a call of it is what it is on a GPU: the caller saves the registers that it
still needs and the arguments on a stack in local memory, notes where to go on, and jumps; the function jumps back
through a table of all places that may have called it. A frame on the stack holds, from its base `%sp`: the number of
the place to return to, the results, the parameters, the function's local arrays, and the registers that it saves.

Functions whose address is taken have addresses in a slot of their own, 16 bytes apart.

Contents: `function_addresses`, `Frame`, `Site`, `Calls`, `flatten`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .address_space import FUNCTION_SLOT, slot_base
from .control_flow import build_graph, read, written
from .inline import Copy, Flat, operands_within
from .parse import TYPE_BYTES, Function, Imm, Instruction, Label, Mem, Module, Place, Reg, Sym, Variable, Vec

STACK_BYTES = 8192  # per thread; a GPU's own is 1 KiB unless the host asks for more
STACK = "the call stack"
POINTER, RETURN, CALLEE, INDEX, HELD = (Reg(name) for name in ("%sp", "%return", "%callee", "%index", "%held"))
_HEADER = 16
_TABLE, _NOWHERE = "%functions", "%nowhere"


def function_addresses(module: Module) -> dict[str, int]:
    """Return the addresses of the functions whose address a module takes."""
    names = [name for name, function in module.functions.items() if function.body and not function.entry]
    if not names:  # as mostly: the compiler has inlined them, and nothing has to be looked through
        return {}
    taken = {target for variable in module.variables.values() for _, target in variable.references}
    for function in module.functions.values():
        for item in function.body:
            if isinstance(item, Instruction) and item.opcode not in ("call", "bra", "brx"):
                taken |= {part.name for part in operands_within(item.operands) if isinstance(part, Sym)}
    names = [name for name in names if name in taken]
    return {name: slot_base(FUNCTION_SLOT) + 16 * number for number, name in enumerate(names)}


def _layout(variables) -> tuple[list[int], int]:
    """Return the offsets of results and parameters in a frame, and where they end."""
    offsets, end = [], _HEADER
    for variable in variables:
        offsets.append(-(-end // variable.align) * variable.align)
        end = offsets[-1] + variable.size
    return offsets, end


class Frame:
    """What lies where on the stack while a function runs."""

    def __init__(self, function: Function):
        self.name, self.prefix = function.name, f"{function.name}::"
        cells = (*function.results, *function.parameters)
        offsets, self.size = _layout(cells)
        self.cells = {cell.name: offset for cell, offset in zip(cells, offsets, strict=True)}
        self.saved: dict[str, int] = {}

    def room(self, size: int, align: int) -> int:
        """Return the offset of some more bytes."""
        offset = -(-self.size // align) * align
        self.size = offset + size
        return offset

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return -(-self.size // 16) * 16


@dataclass
class Site:
    """A call: in which frame it stands, whom it calls, and at which offsets its cells lie in the callee's frame."""

    number: int
    frame: Frame | None
    instruction: Instruction
    callee: str | None
    pointer: Reg | None
    arguments: list[tuple[int, str]]
    results: list[tuple[int, str]]

    @property
    def back(self) -> str:
        """The label behind the call."""
        return f"%back{self.number}"


class Calls:
    """The calls of one kernel that are not inlined."""

    def __init__(self, module: Module, kernel: str):
        self.module, self.sites = module, []
        self.addresses = function_addresses(module)
        self.functions = self._not_inlined(kernel)
        self.frames = {name: Frame(module.functions[name]) for name in self.functions}

    def _callees(self, name: str) -> set[str]:
        found = set()
        for item in self.module.functions[name].body:
            if isinstance(item, Instruction) and item.opcode == "call":
                callee = item.operands[1]
                found |= {callee.name} if isinstance(callee, Sym) else {None, *self.addresses}
        return {callee for callee in found if callee is None or callee in self.module.functions}

    def _reached(self, name: str) -> set[str]:
        seen, stack = set(), [name]
        while stack:
            for callee in self._callees(stack.pop()):
                if callee not in seen:
                    seen.add(callee)
                    stack += [callee] if callee is not None else []
        return seen

    def _not_inlined(self, kernel: str) -> list[str]:
        reached = self._reached(kernel)
        names = {name for name in reached if name is not None and name in self._reached(name)}
        return sorted(names | (set(self.addresses) if None in reached else set()))

    def add(self, frame: Frame | None, item: Instruction, callee, pointer, results, parameters, cells) -> Instruction:
        """Note a call and return what stands for it until `expand`; `cells` name results, then parameters."""
        offsets, _ = _layout((*results, *parameters))
        pairs = list(zip(offsets, cells, strict=True))
        stand_in = Instruction("call", ("far",), (), item.guard, item.guard_negated, item.place)
        count = len(results)
        site = Site(len(self.sites), frame, stand_in, callee, pointer, pairs[count:], pairs[:count])
        self.sites.append(site)
        return stand_in

    # --- what is written in the place of a call --------------------------------------------------------------------

    @staticmethod
    def _pieces(flat: Flat, cells: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """Return (offset in the frame, register) for each piece of some cells."""
        found = []
        for start, cell in cells:
            head = f"{cell}+"
            found += [(start + int(name[len(head) :]), name) for name in flat.registers if name.startswith(head)]
        return found

    def complete(self, flat: Flat) -> None:
        """Tell each call which registers it reads and writes, now that every piece of a cell is known."""
        for site in self.sites:
            read_here = [Reg(name) for _, name in self._pieces(flat, site.arguments)]
            pointer = [site.pointer] if site.pointer else []
            made = Vec(tuple(Reg(name) for _, name in self._pieces(flat, site.results)))
            site.instruction.operands = (made, Imm(site.number, "int"), *pointer, *read_here)

    def save(self, part: Flat, frame: Frame) -> dict[int, list[str]]:
        """Return, for each call of a function, the registers that live on behind it; they get room in the frame."""
        graph = build_graph(part)
        needed: dict[int, list[str]] = {}
        for block in graph.blocks:
            live = set(graph.names(block.live_out))
            for item in ([block.last] if block.last else []) + block.instructions[::-1]:
                live -= set(written(item))
                if item.opcode == "call" and item.modifiers == ("far",):
                    needed[item.operands[1].value] = sorted(live & set(part.registers))
                live |= set(read(item))
        for name in sorted({name for names in needed.values() for name in names}):
            width = max(4, TYPE_BYTES[part.registers[name]])
            frame.saved[name] = frame.room(width, width)
        return needed

    def expand(self, flat: Flat, body: list, frame: Frame | None, saves: dict[int, list[str]]) -> list:
        """Return a body with its calls and returns written out."""
        out: list = []
        for item in body:
            if isinstance(item, Instruction) and item.opcode == "call" and item.modifiers == ("far",):
                number = item.operands[1].value
                out += self._call(flat, self.sites[number], frame, saves.get(number, []))
            elif frame is not None and isinstance(item, Instruction) and item.opcode == "ret":
                guard = {"guard": item.guard, "guard_negated": item.guard_negated, "place": item.place}
                out.append(Instruction("ld", ("local", "u32"), (RETURN, Mem(POINTER, 0)), **guard))
                out.append(Instruction("brx", ("idx",), (RETURN, Sym(f"{frame.prefix}returns")), **guard))
            else:
                out.append(item)
        return out

    def _call(self, flat: Flat, site: Site, frame: Frame | None, saved: list[str]) -> list:
        place, item, end = site.instruction.place, site.instruction, frame.end if frame else 0
        skip = f"%skip{site.number}"
        out: list = []
        if item.guard is not None:
            out.append(Instruction("bra", (), (Sym(skip),), item.guard, not item.guard_negated, place))
        for name in saved:
            out += _store(flat, name, frame.saved[name], place)
        for offset, name in self._pieces(flat, site.arguments):
            out += _store(flat, name, end + offset, place)
        out.append(Instruction("st", ("local", "u32"), (Mem(POINTER, end), Imm(site.number, "int")), place=place))
        out.append(Instruction("add", ("u64",), (POINTER, POINTER, Imm(end, "int")), place=place))
        out += self._jump(site, place)
        out.append(Label(site.back))
        out.append(Instruction("sub", ("u64",), (POINTER, POINTER, Imm(end, "int")), place=place))
        for offset, name in self._pieces(flat, site.results):
            out += _load(flat, name, end + offset, place)
        for name in saved:
            out += _load(flat, name, frame.saved[name], place)
        return [*out, Label(skip)] if item.guard is not None else out

    def _jump(self, site: Site, place: Place) -> list:
        if site.callee is not None:
            return [Instruction("bra", (), (Sym(self.frames[site.callee].prefix),), place=place)]
        count = len(self.addresses)
        base = Imm(slot_base(FUNCTION_SLOT), "int")
        return [
            Instruction("sub", ("u64",), (CALLEE, site.pointer, base), place=place),
            Instruction("shr", ("u64",), (CALLEE, CALLEE, Imm(4, "int")), place=place),
            Instruction("min", ("u64",), (CALLEE, CALLEE, Imm(count, "int")), place=place),
            Instruction("cvt", ("u32", "u64"), (INDEX, CALLEE), place=place),
            Instruction("brx", ("idx",), (INDEX, Sym(_TABLE)), place=place),
        ]

    def tables(self) -> dict[str, tuple[str, ...]]:
        """Return the tables of jumps: to the functions whose address is taken, and back from each function."""
        entries = [self.frames[name].prefix for name in self.addresses if name in self.frames]
        tables = {_TABLE: (*entries, _NOWHERE)}
        for name, frame in self.frames.items():
            own = [site.callee == name or (site.callee is None and name in self.addresses) for site in self.sites]
            first = next((site.back for site, mine in zip(self.sites, own, strict=True) if mine), _NOWHERE)
            backs = tuple(site.back if mine else first for site, mine in zip(self.sites, own, strict=True))
            tables[f"{frame.prefix}returns"] = backs or (_NOWHERE,)
        return tables


def _store(flat: Flat, name: str, offset: int, place: Place) -> list[Instruction]:
    kind, register = flat.registers[name], Reg(name)
    if kind == "pred":
        choose = Instruction("selp", ("u32",), (HELD, Imm(1, "int"), Imm(0, "int"), register), place=place)
        return [choose, Instruction("st", ("local", "u32"), (Mem(POINTER, offset), HELD), place=place)]
    width = f"b{8 * TYPE_BYTES[kind]}"
    return [Instruction("st", ("local", width), (Mem(POINTER, offset), register), place=place)]


def _load(flat: Flat, name: str, offset: int, place: Place) -> list[Instruction]:
    kind, register = flat.registers[name], Reg(name)
    if kind == "pred":
        fetch = Instruction("ld", ("local", "u32"), (HELD, Mem(POINTER, offset)), place=place)
        return [fetch, Instruction("setp", ("ne", "u32"), (register, HELD, Imm(0, "int")), place=place)]
    width = f"b{8 * TYPE_BYTES[kind]}"
    return [Instruction("ld", ("local", width), (register, Mem(POINTER, offset)), place=place)]


def flatten(module: Module, name: str) -> Flat:
    """Return the kernel as one stream of instructions."""
    function = module.functions[name]
    flat, calls = Flat(name, function.parameters, function.cluster), Calls(module, name)
    Copy(module, flat, function, "", {}, (), calls, None).run()
    if not calls.sites:
        return flat
    flat.registers |= {POINTER.name: "b64", CALLEE.name: "b64"}
    flat.registers |= dict.fromkeys((RETURN.name, INDEX.name, HELD.name), "b32")
    flat.locals[STACK] = Variable(STACK, "local", 16, STACK_BYTES, "b8")
    parts = {}
    for callee, frame in calls.frames.items():
        part = Flat(callee, [], None, [], flat.registers, flat.branch_targets, flat.locals, flat.shared)
        Copy(module, part, module.functions[callee], frame.prefix, {}, (), calls, frame).run()
        parts[callee] = part
    calls.complete(flat)
    saves = {callee: calls.save(part, calls.frames[callee]) for callee, part in parts.items()}
    start = Instruction("mov", ("u64",), (POINTER, Sym(STACK)))
    flat.body = [start, *calls.expand(flat, flat.body, None, {})]
    for callee, part in parts.items():
        frame = calls.frames[callee]
        flat.body += [Label(frame.prefix), *calls.expand(flat, part.body, frame, saves[callee])]
    if any(site.pointer for site in calls.sites):
        place = next(site.instruction.place for site in calls.sites if site.pointer)
        flat.body += [Label(_NOWHERE), Instruction("trap", ("pointer",), (), place=place), Instruction("exit", (), ())]
    flat.branch_targets |= calls.tables()
    return flat
