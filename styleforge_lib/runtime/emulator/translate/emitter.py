"""Turns a basic block into the source of a Python function over NumPy values.

A rule per opcode (in the other files of this folder, one per family) asks the `Emitter` for its operands in the type it
needs, and gives back the expression of its result. Registers are static single assignments here: each definition is a
fresh Python variable, a move is no code at all, reinterpretation (`.view`) and widening happen once, and every
variable is deleted after its last use so that dead arrays leave the cache.

Contents: dtypes of PTX types, the registries `RULES` and `HELPERS`, `Modifiers`, `Emitter`, `translate_block`.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from ..address_space import Site
from ..control_flow import Block, Graph, read
from ..faults import unsupported
from ..inline import Flat
from ..parse import TYPE_BYTES, Imm, Instruction, Mem, Not, Pair, Reg, Sym, Vec

DTYPES = {
    **{
        f"{p}{bits}": np.dtype(f"{kind}{bits // 8}")
        for p, kind in (("b", "u"), ("u", "u"), ("s", "i"))
        for bits in (8, 16, 32, 64)
    },
    "f16": np.dtype("f2"),
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "f16x2": np.dtype("u4"),
    "bf16": np.dtype("u2"),
    "bf16x2": np.dtype("u4"),
    "pred": np.dtype(bool),
    "b128": np.dtype([("low", "u8"), ("high", "u8")]),
}
BITS = {name: 8 * TYPE_BYTES[name] for name in DTYPES}
_DTYPE_NAMES = {dtype: name for name, dtype in (
    ("U1", np.dtype("u1")), ("U2", np.dtype("u2")), ("U4", np.dtype("u4")), ("U8", np.dtype("u8")),
    ("I1", np.dtype("i1")), ("I2", np.dtype("i2")), ("I4", np.dtype("i4")), ("I8", np.dtype("i8")),
    ("F2", np.dtype("f2")), ("F4", np.dtype("f4")), ("F8", np.dtype("f8")), ("BOOL", np.dtype(bool)),
    ("B16", DTYPES["b128"]),
)}  # fmt: skip

Rule = Callable[["Emitter", Instruction, "Modifiers"], None]
RULES: dict[str, Rule] = {}
WAIT_RULES: dict[str, Rule] = {}  # of what may end a block: they check it, and register its site
HELPERS: dict[str, object] = {"np": np, **{name: dtype for dtype, name in _DTYPE_NAMES.items()}}
_VARIABLE = re.compile(r"\b[vr]\d+\b")


def rule(*opcodes: str) -> Callable[[Rule], Rule]:
    """Register the rule of some opcodes."""

    def register(function: Rule) -> Rule:
        for opcode in opcodes:
            RULES[opcode] = function
        return function

    return register


def wait_rule(opcode: str) -> Callable[[Rule], Rule]:
    """Register the rule of an opcode that ends a block."""

    def register(function: Rule) -> Rule:
        WAIT_RULES[opcode] = function
        return function

    return register


def helper(function: Callable) -> Callable:
    """Make a function callable by its name in translated code."""
    HELPERS[function.__name__] = function
    return function


def dtype_name(dtype: np.dtype) -> str:
    """Return the name of a dtype in translated code."""
    return _DTYPE_NAMES[dtype]


class Refused(Exception):
    """An instruction is not on the whitelist; the emitter adds its name and line to the hint."""


class Modifiers:
    """What follows an opcode's dots; a rule takes what it understands and `finish` refuses the rest."""

    def __init__(self, instruction: Instruction):
        self.instruction = instruction
        self.left = list(instruction.modifiers)

    def flag(self, name: str) -> bool:
        """Take a modifier if it is there."""
        if name in self.left:
            self.left.remove(name)
            return True
        return False

    def one_of(self, *names: str, default: str | None = None) -> str | None:
        """Take the first modifier that is one of the names."""
        for position, name in enumerate(self.left):
            if name in names:
                return self.left.pop(position)
        return default

    def type(self, *allowed: str) -> str:
        """Take the last type; refuses it unless it is allowed."""
        for position in range(len(self.left) - 1, -1, -1):
            if self.left[position] in TYPE_BYTES:
                kind = self.left.pop(position)
                if allowed and kind not in allowed:
                    self.refuse()
                return kind
        return self.refuse()

    def finish(self) -> None:
        """Refuses the instruction if a modifier was not understood."""
        if self.left:
            self.refuse()

    def refuse(self, hint: str = ""):
        """Refuse the instruction, with a hint at what to use instead."""
        raise Refused(hint)


_ARRAYS = "Read and write arrays through pointers; textures and surfaces are not emulated."
_PLAIN = "Use the intrinsics of the CUDA headers (__vadd4 and the like), which compile to plain instructions."
# What to use in the place of opcodes that are not emulated, by how they begin.
_INSTEAD = {
    **dict.fromkeys(("tex", "tld4", "txq", "suld", "sust", "sured", "suq", "istypep"), _ARRAYS),
    **dict.fromkeys(("vadd", "vsub", "vmin", "vmax", "vavrg", "vset", "vmad", "vshl", "vshr", "vabsdiff"), _PLAIN),
    "ldu": "Use ld.global, or __ldg.",
    "stack": "Use arrays of a constant size.",
    "alloca": "Use arrays of a constant size.",
    "multimem": "Use one GPU's memory.",
    "tcgen05": "Compile for sm_90a or before.",
}


def instead_of(opcode: str) -> str:
    """Return what to use in the place of an opcode that is not emulated."""
    return next((hint for start, hint in _INSTEAD.items() if opcode.startswith(start)), "")


class KernelCode:
    """What the blocks of one kernel share: register types, symbols, constants and memory sites."""

    def __init__(self, flat: Flat, graph: Graph, symbols: dict[str, tuple[str, int]], line_of: Callable):
        self.flat, self.graph, self.symbols, self.line_of = flat, graph, symbols, line_of
        self.parameters = {p.name: p for p in flat.parameters}
        self.parameter_offsets: dict[str, int] = {}
        offset = 0
        for parameter in flat.parameters:
            offset = -(-offset // parameter.align) * parameter.align
            self.parameter_offsets[parameter.name] = offset
            offset += parameter.size
        self.parameter_bytes = offset
        self.namespace: dict[str, object] = dict(HELPERS)
        self._constants: dict[tuple, str] = {}
        self.sites: list[Site] = []
        self.waits: dict[int, Site] = {}  # of the wait that ends a block
        self.accumulators = _accumulators(flat)  # registers that may hold tokens of wgmma
        self.dtypes = self._register_dtypes()

    def _register_dtypes(self) -> dict[str, np.dtype]:
        """Return the dtype in which a register crosses from block to block: what most instructions take it for."""
        votes: dict[str, dict[str, int]] = {}
        for block in self.graph.blocks:
            for item in block.instructions:
                kind = item.modifiers[-1] if item.modifiers else ""
                if kind[:1] not in ("u", "s", "f") or kind not in DTYPES:
                    continue
                for operand in item.operands:
                    for register in operand.items if isinstance(operand, Vec) else (operand,):
                        if isinstance(register, Reg):
                            count = votes.setdefault(register.name, {})
                            count[kind] = count.get(kind, 0) + 1
        dtypes = {}
        for name in self.graph.registers:
            width = TYPE_BYTES[self.kind(name)]
            ranked = sorted((-count, kind) for kind, count in votes.get(name, {}).items() if TYPE_BYTES[kind] == width)
            dtypes[name] = DTYPES[ranked[0][1]] if ranked else DTYPES[self.kind(name)]
            if name in self.accumulators:
                dtypes[name] = DTYPES[self.accumulators[name]]
        return dtypes

    def kind(self, register: str) -> str:
        """Return the declared type of a register."""
        if register in self.flat.registers:
            return self.flat.registers[register]
        if register == "%carry":
            return "b32"
        if register == "%is_explicit_cluster":
            return "pred"
        return "u64" if register.endswith("64") or register == "%globaltimer" else "u32"

    @functools.cached_property
    def varying(self) -> frozenset[str]:
        """The registers that may differ between the threads of a block."""
        from .matrix_sums import varying_registers

        return varying_registers(self.flat.body)

    @functools.cached_property
    def summands(self) -> frozenset[str]:
        """The registers that are only read by additions, subtractions and multiplications of float32."""
        plain, others = set(), set()
        for item in self.flat.body:
            if isinstance(item, Instruction):
                (plain if item.opcode in ("add", "sub", "mul") and item.modifiers[-1:] == ("f32",) else others).update(
                    read(item)
                )
        return frozenset(plain - others)

    def constant(self, value) -> str:
        """Return the name of a constant in translated code."""
        key = (value.dtype, value.tobytes()) if isinstance(value, (np.generic, np.ndarray)) else (type(value), value)
        name = self._constants.get(key)
        if name is None:
            name = self._constants[key] = f"K{len(self._constants)}"
            self.namespace[name] = value
        return name

    def constants(self) -> dict[str, object]:
        """Return the constants of translated code by their names."""
        return {name: self.namespace[name] for name in self._constants.values()}

    def site(self, instruction: Instruction, space: str, verb: str, width: int) -> str:
        """Register a memory instruction; returns its name in translated code."""
        site = Site(len(self.sites), self.line_of(instruction.place), instruction.name, space, verb, width)
        self.sites.append(site)
        name = f"SITE{site.number}"
        self.namespace[name] = site
        return name


class Emitter:
    """The state of one block's translation."""

    def __init__(self, code: KernelCode, block: Block):
        self.code, self.block = code, block
        self.lines: list[str] = []
        self.inputs: dict[str, str] = {}
        self.current: dict[str, tuple[str, np.dtype]] = {}
        self.forms: dict[tuple[str, str], str] = {}
        self.count = 0
        self.bases: dict[tuple, str] = {}
        self.lowest = _lowest_offsets(block)
        self.origins: dict[str, tuple] = {}  # variable -> what a rule left about it for other rules
        self.optional: set[str] = set()
        self.sums: dict[int, tuple[int, int]] | None = None  # which instructions are one sum, once `floats` has looked
        self.shared_sums: dict[int, object] = {}  # and which of these sums share their factors
        self.scaled_sums: dict[int, object] = {}  # and which are sums of two products
        self.rows: dict[tuple[str, str], object] = {}  # address and dtype -> loads that are done at once
        # Variable of 64 bits -> the summands, and whether other instructions read one of these, too.
        self.sums_of_two: dict[str, tuple[str, str, bool]] = {}
        self.readers = Counter(name for instruction in block.instructions for name in read(instruction))
        self.products: dict[str, tuple[str, str]] = {}  # variable -> the factors that it is the product of

    # --- code ------------------------------------------------------------------------------------------------------

    def new(self, expression: str, only_if_used: bool = False) -> str:
        """Emit `v = expression` and return v; the line is left out again if nothing uses v and `only_if_used`."""
        self.count += 1
        name = f"v{self.count}"
        if only_if_used:
            self.optional.add(name)
        self.lines.append(f"{name} = {expression}")
        return name

    def line(self, statement: str) -> None:
        """Emit a statement."""
        self.lines.append(statement)

    def form(self, variable: str, key: str, expression: str) -> str:
        """Return a derived form of a value (a view, a wider copy), made once per block."""
        found = self.forms.get((variable, key))
        if found is None:
            found = self.forms[variable, key] = self.new(expression)
        return found

    # --- operands --------------------------------------------------------------------------------------------------

    def register(self, name: str) -> tuple[str, np.dtype]:
        """Return a register's variable and dtype at this point of the block."""
        found = self.current.get(name)
        if found is None:
            variable = f"r{self.code.graph.bit[name]}"
            self.inputs[name] = variable
            found = self.current[name] = (variable, self.code.dtypes[name])
        return found

    def use(self, operand, kind: str) -> str:
        """Return an operand as a value of a PTX type's dtype; a wider register gives its low bits."""
        dtype = DTYPES[kind]
        if isinstance(operand, Reg):
            variable, have = self.register(operand.name)
            return self.as_dtype(variable, have, dtype)
        if isinstance(operand, Imm):
            return self.literal(operand, dtype)
        if isinstance(operand, Not):
            variable, _ = self.register(operand.reg.name)
            return self.form(variable, "not", f"~{variable}")
        if isinstance(operand, Sym):
            return self.literal(Imm(self.address_of(operand), "int"), dtype)
        if isinstance(operand, Mem) and isinstance(operand.base, Sym):
            return self.literal(Imm(self.address_of(operand.base) + operand.offset, "int"), dtype)
        raise ValueError(f"PTX operand {operand} is not a value")

    def bits(self, operand, width: int) -> tuple[str, np.dtype]:
        """Return an operand of any type that is `width` bytes wide, in whatever dtype it is at hand."""
        if isinstance(operand, Reg):
            variable, have = self.register(operand.name)
            if have.itemsize == width:
                return variable, have
        if isinstance(operand, Imm) and operand.kind != "int" and width in (4, 8):
            dtype = np.dtype(f"f{width}")
            return self.literal(operand, dtype), dtype
        kind = f"b{8 * width}"
        return self.use(operand, kind), DTYPES[kind]

    def as_dtype(self, variable: str, have: np.dtype, want: np.dtype) -> str:
        """Reinterprets a value, or cuts it to its low bits."""
        if have == want:
            return variable
        name = dtype_name(want)
        if have.itemsize == want.itemsize:
            return self.form(variable, name, f"{variable}.view({name})")
        if have.itemsize < want.itemsize:
            raise ValueError(f"PTX reads {want.itemsize} bytes of a register of {have.itemsize}")
        low = f"u{want.itemsize}"
        if have.kind == "f":
            variable = self.as_dtype(variable, have, np.dtype(f"u{have.itemsize}"))
        cut = self.form(variable, "cut" + low, f"{variable}.astype({dtype_name(np.dtype(low))})")
        return self.as_dtype(cut, np.dtype(low), want)

    def literal(self, operand: Imm, dtype: np.dtype) -> str:
        """Return a literal as a constant of a dtype."""
        if dtype == np.dtype(bool):
            return self.code.constant(np.bool_(operand.value))
        value = operand.value
        if operand.kind == "f64" and dtype == np.dtype("f4"):
            return self.code.constant(np.array(value, np.uint64).view(np.float64).astype(np.float32)[()])
        if operand.kind == "int" and dtype.kind == "f":
            value = (
                operand.value if dtype.itemsize == 2 else int(np.array(float(value), dtype).view(f"u{dtype.itemsize}"))
            )
        raw = np.array(value & ((1 << (8 * dtype.itemsize)) - 1), f"u{dtype.itemsize}")
        return self.code.constant(raw.view(dtype)[()])

    def constant(self, value, kind: str) -> str:
        """Return a Python number as a constant of a PTX type."""
        return self.code.constant(DTYPES[kind].type(value))

    def address_of(self, symbol: Sym) -> int:
        """Return the address of a variable within its own space."""
        if symbol.name == "WARP_SZ":
            return 32
        found = self.code.symbols.get(symbol.name)
        if found is None:
            raise Refused(f"It takes the address of `{symbol.name}`, which is a function or is not defined.")
        return found[1]

    def set(self, operand, variable: str, kind: str) -> None:
        """Make a value the register's; one narrower than the register is extended by its own signedness."""
        if operand is None:
            return
        if not isinstance(operand, Reg):
            raise ValueError(f"PTX result {operand} is not a register")
        dtype = DTYPES[kind]
        width = TYPE_BYTES[self.code.kind(operand.name)]
        if dtype.itemsize < width and kind != "pred":
            if dtype.kind == "f":
                variable, dtype = (
                    self.as_dtype(variable, dtype, np.dtype(f"u{dtype.itemsize}")),
                    np.dtype(f"u{dtype.itemsize}"),
                )
            wide = np.dtype(f"{dtype.kind}{width}")
            variable, dtype = self.new(f"{variable}.astype({dtype_name(wide)})"), wide
        self.current[operand.name] = (variable, dtype)

    def set_expression(self, operand, expression: str, kind: str) -> None:
        """Emit an expression and make it the register's value."""
        self.set(operand, self.new(expression), kind)

    def lasts(self, register: Reg) -> bool:
        """Whether a register is read behind this block."""
        return bool(self.block.live_out >> self.code.graph.bit[register.name] & 1)

    @property
    def line_number(self) -> int:
        """Source line of the instruction being translated."""
        return self.code.line_of(self.instruction.place)

    # --- the whole block -------------------------------------------------------------------------------------------

    def run(self) -> tuple[str, list[str], list[str]]:
        """Translate; returns the function's source, and the registers it takes and gives."""
        for instruction in self.block.instructions:
            self.instruction = instruction
            found = RULES.get(instruction.opcode)
            if found is None:
                raise unsupported(instruction.name, self.line_number, instead_of(instruction.opcode))
            self._translate(found, instruction)
        if self.block.kind == "wait":
            self.instruction = self.block.last
            self._translate(WAIT_RULES.get(self.block.last.opcode, _refuse), self.block.last)
        outputs, values = [], []
        wanted = self.block.live_out | self._read_by_end()
        for name, (variable, dtype) in self.current.items():
            if wanted >> self.code.graph.bit[name] & 1 and variable != self.inputs.get(name):
                outputs.append(name)
                values.append(self.as_dtype(variable, dtype, self.code.dtypes[name]))
        self.line(f"return ({', '.join(values)}{',' if values else ''})")
        name = f"block_{self.block.index}"
        # The list is emptied, so that a register's memory is free for the next result once it has been read last.
        inputs = f"{', '.join(self.inputs.values())}, = taken; taken.clear()" if self.inputs else "pass"
        lines = _without_unused(self.lines, self.optional)
        return "\n    ".join([f"def {name}(m, L, taken):", inputs, *_with_deletions(lines)]), list(self.inputs), outputs

    def _translate(self, found: Rule, instruction: Instruction) -> None:
        try:
            if self.code.accumulators and instruction.opcode not in ("wgmma", "mov"):
                self._check_accumulators(instruction)
            found(self, instruction, Modifiers(instruction))
        except (Refused, ValueError) as error:
            raise unsupported(instruction.name, self.line_number, str(error)) from error

    def _check_accumulators(self, instruction: Instruction) -> None:
        """Emit a look at registers that may hold what wgmma has not finished."""
        names = [name for name in read(instruction) if name in self.code.accumulators]
        values = [self.register(name)[0] for name in names]
        values = [value for value in dict.fromkeys(values) if (value, "checked") not in self.forms]
        if values:
            site = self.code.site(instruction, "", instruction.opcode, 4)
            self.line(f"if m.warpgroups.accumulators: m.warpgroups.check(({', '.join(values)},), L, {site})")
            self.forms.update({(value, "checked"): value for value in values})

    def _read_by_end(self) -> int:
        """Return the registers that the block's end reads: a branch's predicate, a barrier's operands."""
        mask = 0
        if self.block.last is not None:
            for name in read(self.block.last):
                mask |= 1 << self.code.graph.bit[name]
        return mask


def _without_unused(lines: list[str], optional: set[str]) -> list[str]:
    """Leave out the definitions of optional variables that no line reads, or only lines that are left out."""
    kept, read = [], set()
    for line in reversed(lines):
        name, _, value = line.partition(" = ")
        if name in optional and name not in read:
            continue
        read.update(_VARIABLE.findall(value or line))
        kept.append(line)
    return kept[::-1]


def _with_deletions(lines: list[str]) -> Iterator[str]:
    """Add `del` after each variable's last use."""
    last: dict[str, int] = {}
    found = []
    for number, line in enumerate(lines):
        names = set(_VARIABLE.findall(line))
        found.append(names)
        for name in names:
            last[name] = number
    for number, line in enumerate(lines[:-1]):
        dead = sorted(name for name in found[number] if last[name] == number)
        yield f"{line}; del {', '.join(dead)}" if dead else line
    yield lines[-1]


def _lowest_offsets(block: Block) -> dict[str, int]:
    """For each base register of the block, the least constant offset it is used with (0 at most)."""
    lowest: dict[str, int] = {}
    for instruction in block.instructions:
        for operand in instruction.operands:
            if isinstance(operand, Mem) and isinstance(operand.base, Reg):
                lowest[operand.base.name] = min(lowest.get(operand.base.name, 0), operand.offset)
    return lowest


def _refuse(e: Emitter, instruction: Instruction, modifiers: Modifiers) -> None:
    modifiers.refuse()


def _accumulators(flat: Flat) -> dict[str, str]:
    """Return the registers that a wgmma's result may be in, and as what: f32, or u32 for two of float16."""
    found: dict[str, str] = {}
    moves: dict[str, list[str]] = {}
    for item in flat.body:
        if not isinstance(item, Instruction):
            continue
        if item.opcode == "wgmma" and "mma_async" in item.modifiers:
            kind = "f32" if "f32" in item.modifiers[4:5] else "u32"
            found.update({register.name: kind for register in item.operands[0].items})
        elif item.opcode == "mov" and all(isinstance(operand, Reg) for operand in item.operands):
            moves.setdefault(item.operands[1].name, []).append(item.operands[0].name)
    waiting = list(found)
    while waiting:
        name = waiting.pop()
        for target in moves.get(name, ()):
            if target not in found:
                found[target] = found[name]
                waiting.append(target)
    return found


def translate_block(code: KernelCode, block: Block) -> tuple[str, list[str], list[str]]:
    """Translate one block; returns the source of `block_<index>`, and the registers it takes and gives."""
    return Emitter(code, block).run()


def compile_block(code: KernelCode, block: Block, source: str) -> Callable:
    """Return the function of a translated block."""
    scope: dict[str, object] = {}
    exec(compile(source, f"<ptx {code.flat.name} block {block.index}>", "exec"), code.namespace, scope)
    return scope[f"block_{block.index}"]


__all__ = ["Emitter", "KernelCode", "Modifiers", "Pair", "compile_block", "helper", "rule", "translate_block"]
