"""Device functions are copied to where they are called.

A call passes values through `.param` cells. A cell becomes an ordinary register here, so that liveness, divergence
and reconvergence work across calls with no machinery of their own. Recursion and calls through pointers have no such
form: `calls`, which also puts the whole kernel together, sees to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .faults import unsupported
from .parse import (
    TYPE_BYTES,
    Function,
    Imm,
    Instruction,
    Label,
    Mem,
    Not,
    Pair,
    Reg,
    Sym,
    TensorMem,
    Variable,
    Vec,
)

INTRINSICS = ("vprintf", "__assertfail")
_ALLOCATION = "Pass an array as an argument, or use shared memory: nothing is allocated inside a kernel here."
_INSTEAD = dict.fromkeys(("malloc", "free"), _ALLOCATION)


@dataclass
class Flat:
    """A kernel after inlining."""

    name: str
    parameters: list[Variable]
    cluster: tuple[int, int, int] | None = None
    body: list[Instruction | Label] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    branch_targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    locals: dict[str, Variable] = field(default_factory=dict)
    shared: dict[str, Variable] = field(default_factory=dict)


def operands_within(operands) -> Iterator:
    """Yield operands and the parts that they are made of."""
    for operand in operands:
        yield operand
        if isinstance(operand, Vec):
            yield from operands_within(operand.items)
        elif isinstance(operand, (Mem, TensorMem)):
            yield operand.base


class Copy:
    """Copies one function's body, renaming what is its own with `prefix`.

    calls, frame: see `calls`; a copy with a frame is of a function that is there once, or of one inlined into it.
    """

    def __init__(self, module, flat, function: Function, prefix: str, cells: dict[str, str], active, calls, frame):
        self.module, self.flat, self.function, self.prefix = module, flat, function, prefix
        self.cells, self.calls, self.frame = cells, calls, frame
        self.active = (*active, function.name)
        self.own_locals = {v.name for v in function.variables if v.space == "local"}
        self.is_whole = frame is not None and prefix == frame.prefix
        self.in_frame: dict[str, int] = dict(frame.cells) if self.is_whole else {}

    def run(self) -> None:
        """Copy the whole function."""
        flat, prefix = self.flat, self.prefix
        for name, kind in self.function.registers.items():
            flat.registers[prefix + name] = kind
        for variable in self.function.variables:
            if variable.space == "local" and self.frame is not None:
                self.in_frame[variable.name] = self.frame.room(variable.size, variable.align)
            elif variable.space == "local":
                flat.locals[prefix + variable.name] = variable
            else:
                flat.shared.setdefault(variable.name, variable)
        for label, targets in self.function.branch_targets.items():
            flat.branch_targets[prefix + label] = tuple(prefix + target for target in targets)
        for item in self.function.body:
            if isinstance(item, Label):
                flat.body.append(Label(prefix + item.name))
            else:
                self._instruction(item)
        if prefix and not self.is_whole:
            flat.body.append(Label(f"{prefix}return"))

    def _instruction(self, item: Instruction) -> None:
        if self.in_frame and self._in_frame(item):
            return
        if item.opcode in ("ld", "st") and item.modifiers and item.modifiers[0].startswith("param"):
            cell_operand = item.operands[1] if item.opcode == "ld" else item.operands[0]
            if isinstance(cell_operand.base, Sym) and not (
                item.opcode == "ld" and self._is_kernel_parameter(cell_operand)
            ):
                self._cell_move(item, cell_operand)
                return
        if item.opcode == "call":
            self._call(item)
            return
        if item.opcode == "ret" and self.prefix and not self.is_whole:
            copy = replace(item, opcode="bra", modifiers=(), operands=(Sym(f"{self.prefix}return"),))
            copy.guard = self._rename(item.guard) if item.guard else None
            self.flat.body.append(copy)
            return
        labels = item.opcode in ("bra", "brx")
        operands = tuple(
            Sym(self.prefix + operand.name) if labels and isinstance(operand, Sym) else self._rename(operand)
            for operand in item.operands
        )
        guard = self._rename(item.guard) if item.guard else None
        self.flat.body.append(replace(item, operands=operands, guard=guard))

    def _in_frame(self, item: Instruction) -> bool:
        """Copy an instruction that names what lies in the frame: local arrays, and the function's own parameters."""
        named = [
            part for part in operands_within(item.operands) if isinstance(part, Sym) and part.name in self.in_frame
        ]
        if not named or item.opcode in ("bra", "brx", "call"):
            return False
        guard = self._rename(item.guard) if item.guard else None
        pointer, offset = Reg("%sp"), self.in_frame[named[0].name]
        if item.opcode == "mov" and item.operands[1] is named[0]:
            operands = (self._rename(item.operands[0]), pointer, Imm(offset, "int"))
            self.flat.body.append(replace(item, opcode="add", modifiers=("u64",), operands=operands, guard=guard))
            return True
        if item.opcode not in ("ld", "st"):
            raise unsupported(item.name, item.place.line, f"It takes the address of `{named[0].name}`.")
        operands = tuple(
            Mem(pointer, offset + operand.offset) if isinstance(operand, Mem) else self._rename(operand)
            for operand in item.operands
        )
        modifiers = tuple("local" if word.startswith("param") else word for word in item.modifiers)
        self.flat.body.append(replace(item, modifiers=modifiers, operands=operands, guard=guard))
        return True

    def _is_kernel_parameter(self, operand: Mem) -> bool:
        return not self.prefix and any(p.name == operand.base.name for p in self.function.parameters)

    def _rename(self, operand):
        if isinstance(operand, Reg):
            own = operand.name in self.function.registers
            return Reg(self.prefix + operand.name) if own else operand
        if isinstance(operand, Sym):
            return Sym(self.prefix + operand.name) if operand.name in self.own_locals else operand
        if isinstance(operand, Mem):
            return Mem(self._rename(operand.base), operand.offset)
        if isinstance(operand, TensorMem):
            coordinates = tuple(self._rename(part) for part in operand.coordinates)
            return TensorMem(self._rename(operand.base), operand.offset, coordinates)
        if isinstance(operand, Vec):
            return Vec(tuple(self._rename(part) for part in operand.items))
        if isinstance(operand, Pair):
            return Pair(self._rename(operand.first), self._rename(operand.second))
        if isinstance(operand, Not):
            return Not(self._rename(operand.reg))
        return operand

    def _cell(self, name: str, offset: int, kind: str, item: Instruction) -> Reg:
        """Return the register that stands for bytes `offset...` of a `.param` cell."""
        full = f"{self.cells.get(name, self.prefix + name)}+{offset}"
        bits = f"b{8 * TYPE_BYTES[kind]}"
        if self.flat.registers.setdefault(full, bits) != bits:
            raise unsupported(item.name, item.place.line, "The call reads an argument in another width than it wrote.")
        return Reg(full)

    def _cell_move(self, item: Instruction, cell: Mem) -> None:
        kind = item.modifiers[-1]
        value = item.operands[0] if item.opcode == "ld" else item.operands[1]
        parts = value.items if isinstance(value, Vec) else (value,)
        for position, part in enumerate(parts):
            register = self._cell(cell.base.name, cell.offset + position * TYPE_BYTES[kind], kind, item)
            part = self._rename(part)
            operands = (part, register) if item.opcode == "ld" else (register, part)
            self.flat.body.append(Instruction("mov", (kind,), operands, place=item.place))

    def _call(self, item: Instruction) -> None:
        results, callee, arguments = item.operands[:3]
        name = callee.name if isinstance(callee, Sym) else ""
        if name in INTRINSICS:
            cells = tuple(Sym(self.prefix + argument.name) for argument in arguments.items)
            widths = (8, 8) if name == "vprintf" else (8, 8, 4, 8, 8)
            values = tuple(
                self._cell(cell.name.removeprefix(self.prefix), 0, f"b{8 * width}", item)
                for cell, width in zip(cells, widths, strict=True)
            )
            result = tuple(self._cell(cell.name, 0, "b32", item) for cell in results.items)
            self.flat.body.append(replace(item, modifiers=(name,), operands=(Vec(result), *values)))
            return
        function = self.module.functions.get(name)
        if not isinstance(callee, Sym) or name in self.calls.frames:
            self._far_call(item, function)
            return
        if function is None or not function.body:
            raise unsupported(f"call {name}", item.place.line, _INSTEAD.get(name, ""))
        prefix = f"{self.prefix}{name}#{len(self.flat.body)}:"
        cells = {}
        for formal, actual in zip(function.parameters, arguments.items, strict=True):
            cells[formal.name] = self.cells.get(actual.name, self.prefix + actual.name)
        for formal, actual in zip(function.results, results.items, strict=True):
            cells[formal.name] = self.cells.get(actual.name, self.prefix + actual.name)
        Copy(self.module, self.flat, function, prefix, cells, self.active, self.calls, self.frame).run()

    def _far_call(self, item: Instruction, function: Function | None) -> None:
        """Leave a stand-in for a call of a function that is there once; through a pointer, `function` is None."""
        results, callee, arguments = item.operands[:3]
        names = [cell.name for cell in (*results.items, *arguments.items)]
        if function is None:
            declared = [self.function.cells[name] for name in names]
            made, given = declared[: len(results.items)], declared[len(results.items) :]
        else:
            made, given = function.results, function.parameters
        cells = [self.cells.get(name, self.prefix + name) for name in names]
        guarded = replace(item, guard=self._rename(item.guard) if item.guard else None)
        pointer = self._rename(callee) if function is None else None
        name = None if function is None else function.name
        self.flat.body.append(self.calls.add(self.frame, guarded, name, pointer, made, given, cells))
