"""PTX text to instructions.

Contents: operands, `Instruction`, `Variable`, `Function`, `Module`, and `parse_module`, which reads what NVRTC writes
(one statement may span lines, inline assembly opens scopes with registers and labels of its own, `.loc` lines end at
the line's end and have no semicolon). Nothing is interpreted here: types, spaces and legality belong to `translate`.

Source: PTX ISA 9, chapters "Syntax", "State Spaces, Types, and Variables" and "Directives".
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

TYPE_BYTES = {
    **{f"{kind}{bits}": bits // 8 for kind in "bus" for bits in (8, 16, 32, 64)},
    "f16": 2,
    "bf16": 2,
    "f16x2": 4,
    "bf16x2": 4,
    "f32": 4,
    "f64": 8,
    "pred": 1,
    "b128": 16,
}


class Reg(NamedTuple):
    """A register; scopes of inline assembly have been folded into its name."""

    name: str


class Imm(NamedTuple):
    """A literal: `value` is an int for kind "int" and the bit pattern for "f32" and "f64"."""

    value: int
    kind: str


class Sym(NamedTuple):
    """A variable, function or label."""

    name: str


class Mem(NamedTuple):
    """`[base + offset]`; base is a Reg, Sym or Imm."""

    base: Reg | Sym | Imm
    offset: int


class TensorMem(NamedTuple):
    """`[map, {x, y, ...}]`: a tensor map and the coordinates of a box in it."""

    base: Reg | Sym | Imm
    offset: int
    coordinates: tuple


class Vec(NamedTuple):
    """`{a, b, c, d}`."""

    items: tuple


class Pair(NamedTuple):
    """`d|p`; either may be None for `_`."""

    first: Reg | None
    second: Reg | None


class Not(NamedTuple):
    """`!p` as an operand."""

    reg: Reg


class Place(NamedTuple):
    """A source position: the file's number, the line, and the (file, line) of the calls it was inlined through."""

    file: int
    line: int
    callers: tuple[tuple[int, int], ...] = ()


NOWHERE = Place(0, 0)


@dataclass(slots=True)
class Instruction:
    """One instruction: `opcode.modifier.modifier operands`, maybe under a guard."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple
    guard: Reg | None = None
    guard_negated: bool = False
    place: Place = NOWHERE

    @property
    def name(self) -> str:
        """The opcode with every modifier, as PTX writes it."""
        return ".".join((self.opcode, *self.modifiers))


@dataclass(slots=True)
class Label:
    """A place to jump to, in the stream of a function's body."""

    name: str


@dataclass(slots=True)
class Variable:
    """A variable of the module or of a function; `size` is None for `extern __shared__ x[]`."""

    name: str
    space: str
    align: int
    size: int | None
    type: str
    initial: bytes = b""
    references: tuple[tuple[int, str], ...] = ()
    """(byte offset, symbol) for every address stored in the initial value."""


@dataclass(slots=True)
class Function:
    """A kernel (`entry`) or a device function; `body` holds Instructions and Labels."""

    name: str
    entry: bool
    parameters: list[Variable] = field(default_factory=list)
    results: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    body: list[Instruction | Label] = field(default_factory=list)
    branch_targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cells: dict[str, Variable] = field(default_factory=dict)
    """What call sequences declare to pass values in, by name and scope."""
    cluster: tuple[int, int, int] | None = None
    """Blocks of a cluster, where `__cluster_dims__` says so."""


@dataclass(slots=True)
class Module:
    """A parsed PTX module."""

    target: str
    functions: dict[str, Function]
    variables: dict[str, Variable]
    files: dict[int, str]


_PIECE = re.compile(
    r"//[^\n]*|/\*.*?\*/|\.(?:loc|file|version|target|address_size)\b[^\n]*|\"(?:[^\"\\]|\\.)*\"|[{};]"
    r"|(?:[^{};/\".]|\.(?!(?:loc|file|version|target|address_size)\b))+|.",
    re.DOTALL,
)
_LINE_DIRECTIVE = re.compile(r"\.(?:loc|file|version|target|address_size)\b")
_LABEL = re.compile(r"\s*([\w$%]+)\s*:(?!:)")
_NAME = re.compile(r"[%$A-Za-z_][\w$.%]*$")
_BRACKET = re.compile(r"[\[{(]")
_NUMBERED = re.compile(r"(.*?)(\d+)$")
_HEADER = re.compile(r"^(?:\.(?:visible|extern|weak|common)\s+)*\.(entry|func)\b")


def parse_module(text: str) -> Module:
    """Parse a PTX module. Raises ValueError, with the statement, where the text is not PTX."""
    return _Parser(text).module


class _Parser:
    """Cuts the text into statements and keeps the scopes that names are looked up in."""

    def __init__(self, text: str):
        self.module = Module("", {}, {}, {})
        self.function: Function | None = None
        self.scopes: list[int] = []
        self.scope_count = 0
        self.ranges: dict[tuple[int, str], str] = {}
        self.singles: dict[tuple[int, str], str] = {}
        self.labels: dict[tuple[int, str], str] = {}
        self.found: dict[tuple[int, str], Reg] = {}  # what was looked up, until a scope declares more
        self.jumps: list[tuple[int, tuple[int, ...]]] = []
        self.tables: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = []
        self.place = NOWHERE
        self.inlined: dict[tuple[int, int, int], tuple] = {}
        self._read(text.rstrip("\0"))

    def _read(self, text: str) -> None:
        statement, vector_depth, skip_depth = "", 0, 0
        for match in _PIECE.finditer(text):
            piece = match.group()
            if piece.startswith(("//", "/*")):
                continue
            if skip_depth:
                skip_depth += (piece == "{") - (piece == "}")
                continue
            if _LINE_DIRECTIVE.match(piece):
                self._line_directive(piece)
                continue
            if piece == "{":
                head = statement.strip()
                label = _LABEL.match(head + " ")
                if head.startswith(".section"):
                    skip_depth, statement = 1, ""
                elif _HEADER.match(head):
                    self._open_function(head)
                    statement = ""
                elif not head or (label and label.end() >= len(head)):
                    self._labels(head)
                    self._open_scope()
                    statement = ""
                else:
                    vector_depth += 1
                    statement += piece
            elif piece == "}":
                if vector_depth:
                    vector_depth -= 1
                    statement += piece
                else:
                    self._labels(statement)
                    statement = ""
                    self._close_scope()
            elif piece == ";":
                self._statement(statement.strip())
                statement = ""
            else:
                statement += piece

    # --- line directives -------------------------------------------------------------------------------------------

    def _line_directive(self, text: str) -> None:
        words = text.split()
        if words[0] == ".file":
            name = re.search(r'"(.*?)"', text)
            self.module.files[int(words[1])] = name.group(1) if name else ""
        elif words[0] == ".target":
            self.module.target = words[1].rstrip(",")
        elif words[0] == ".loc":
            numbers = re.findall(r"\b\d+\b", text.split(",")[0])
            key = (int(numbers[0]), int(numbers[1]), int(numbers[2]))
            site = re.search(r"inlined_at\s+(\d+)\s+(\d+)\s+(\d+)", text)
            callers: tuple = ()
            if site:
                outer = tuple(int(number) for number in site.groups())
                callers = ((outer[0], outer[1]), *self.inlined.get(outer, ()))
            self.inlined[key] = callers
            if key[1]:
                self.place = Place(key[0], key[1], callers)

    # --- scopes ----------------------------------------------------------------------------------------------------

    def _open_scope(self) -> None:
        self.scope_count += 1
        self.scopes.append(self.scope_count)

    def _open_function(self, head: str) -> None:
        self.function = _function_header(head)
        self.scopes, self.scope_count = [], 0
        self.ranges, self.singles, self.labels = {}, {}, {}
        self.found = {}
        self.jumps, self.tables = [], []
        self.place = NOWHERE
        self.inlined = {}
        self._open_scope()

    def _close_scope(self) -> None:
        self.scopes.pop()
        if not self.scopes and self.function is not None:
            self._resolve_labels()
            self.module.functions[self.function.name] = self.function
            self.function = None

    def _resolve_labels(self) -> None:
        """Labels may stand after the jump, so they are looked up when the function is complete."""
        function = self.function

        def resolve(name: str, scopes: tuple[int, ...]) -> str:
            for scope in reversed(scopes):
                if (scope, name) in self.labels:
                    return self.labels[scope, name]
            raise ValueError(f"PTX jumps to an unknown label {name}")

        for position, scopes in self.jumps:
            jump = function.body[position]
            jump.operands = tuple(
                Sym(resolve(operand.name, scopes)) if isinstance(operand, Sym) else operand for operand in jump.operands
            )
        for name, targets, scopes in self.tables:
            function.branch_targets[resolve(name, scopes)] = tuple(resolve(target, scopes) for target in targets)

    # --- statements ------------------------------------------------------------------------------------------------

    def _labels(self, text: str) -> str:
        """Take the labels off a statement's front; returns the rest."""
        while self.function is not None and (match := _LABEL.match(text)):
            name = match.group(1)
            unique = name if self.scopes[-1] == 1 else f"{name}@{self.scopes[-1]}"
            self.labels[self.scopes[-1], name] = unique
            self.function.body.append(Label(unique))
            text = text[match.end() :]
        return text.strip()

    def _statement(self, text: str) -> None:
        if self.function is None:
            if _HEADER.match(text):
                declared = _function_header(text)
                self.module.functions.setdefault(declared.name, declared)
            elif text.startswith("."):
                self._variable(text)
            return
        text = self._labels(text)
        if not text:
            return
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith(".branchtargets"):
            name = self.function.body[-1].name
            targets = tuple(part.strip() for part in text[len(".branchtargets") :].split(","))
            self.tables.append((name.split("@")[0], targets, tuple(self.scopes)))
        elif text.startswith((".pragma", ".callprototype", ".calltargets", ".alias")):
            return
        elif text.startswith(".param"):
            variable = parse_variable(text)
            self.function.cells[self._cell(variable.name).name] = variable
        elif text.startswith("."):
            self._variable(text)
        else:
            self._instruction(text)

    def _variable(self, text: str) -> None:
        if text.startswith((".alias", ".pragma")):
            return
        variable = parse_variable(text)
        if self.function is not None:
            self.function.variables.append(variable)
        else:
            self.module.variables[variable.name] = variable

    def _registers(self, text: str) -> None:
        match = re.match(r"\.reg\s*\.(\w+)\s+(.*)$", text, re.DOTALL)
        if match is None or match.group(1) in ("v2", "v4"):
            raise ValueError(f"PTX registers are not understood: {text}")
        kind, names = match.groups()
        scope = self.scopes[-1]
        self.found.clear()
        for name in (part.strip() for part in names.split(",")):
            if name.endswith(">"):
                self.ranges[scope, name[: name.index("<")]] = kind
            else:
                self.singles[scope, name] = kind

    def _register(self, name: str) -> Reg | None:
        found = self.found.get((self.scopes[-1], name))
        return self._looked_up(name) if found is None else found

    def _looked_up(self, name: str) -> Reg | None:
        prefix = numbered.group(1) if (numbered := _NUMBERED.match(name)) else None
        for scope in reversed(self.scopes):
            kind = self.singles.get((scope, name)) or (self.ranges.get((scope, prefix)) if prefix else None)
            if kind:
                unique = name if scope == 1 else f"{name}@{scope}"
                self.function.registers[unique] = kind
                self.found[self.scopes[-1], name] = register = Reg(unique)
                return register
        return None

    def _instruction(self, text: str) -> None:
        guard, negated = None, False
        if text.startswith("@"):
            word, text = text.split(None, 1)
            negated = word[1] == "!"
            guard = self._register(word[1 + negated :])
            if guard is None:
                raise ValueError(f"PTX guard is not a register: {word}")
        words = text.split(None, 1)
        opcode, *modifiers = words[0].split(".")
        modifiers = [modifier.replace("::", "_") for modifier in modifiers]
        rest = words[1] if len(words) > 1 else ""
        if opcode == "call":
            operands = self._call_operands(rest)
        else:
            operands = tuple(self._operand(part) for part in _split(rest))
        instruction = Instruction(opcode, tuple(modifiers), operands, guard, negated, self.place)
        if opcode in ("bra", "brx"):
            self.jumps.append((len(self.function.body), tuple(self.scopes)))
        self.function.body.append(instruction)

    def _call_operands(self, text: str) -> tuple:
        """Read a call, which becomes (results, callee, arguments); the cells' names carry the scope they live in."""
        parts = _split(text)
        results: tuple = ()
        if parts and parts[0].startswith("("):
            results = tuple(self._cell(name) for name in _split(parts.pop(0)[1:-1]))
        callee = self._operand(parts.pop(0))
        arguments: tuple = ()
        if parts and parts[0].startswith("("):
            arguments = tuple(self._cell(name) for name in _split(parts.pop(0)[1:-1]))
        return (Vec(results), callee, Vec(arguments), *(Sym(part) for part in parts))

    def _cell(self, name: str) -> Sym:
        return Sym(f"{name}@{self.scopes[-1]}")

    def _operand(self, text: str):
        text = text.strip()
        if text.startswith("["):
            return self._memory(text[1:-1].strip())
        if text.startswith("{"):
            return Vec(tuple(None if part == "_" else self._operand(part) for part in _split(text[1:-1])))
        if text.startswith("!"):
            return Not(self._register(text[1:].strip()))
        if "|" in text:
            first, second = (part.strip() for part in text.split("|"))
            return Pair(
                None if first == "_" else self._register(first), None if second == "_" else self._register(second)
            )
        if text == "_":
            return None
        if text[0] in "-0123456789":
            return _literal(text)
        if register := self._register(text):
            return register
        if "+" in text:
            base, offset = text.split("+")
            return Mem(self._operand(base), int(offset, 0))
        if text.startswith("%"):
            return Reg(text)
        return Sym(text)

    def _memory(self, text: str) -> Mem:
        if "," in text:
            where, coordinates = _split(text)
            return TensorMem(*self._memory(where), self._operand(coordinates).items)
        base, offset = text, 0
        if match := re.match(r"^(.*?)\s*\+\s*(-?\w+)$", text):
            base, offset = match.group(1), int(match.group(2), 0)
        elif match := re.match(r"^([%$\w.]+?)\s*-\s*(\d+)$", text):
            base, offset = match.group(1), -int(match.group(2))
        operand = self._operand(base)
        if isinstance(operand, Sym) and len(self.scopes) > 1 and operand.name.startswith(("param", "retval")):
            operand = self._cell(operand.name)
        return Mem(operand, offset)


def _split(text: str) -> list[str]:
    """Split at commas outside brackets, braces and parentheses."""
    if not _BRACKET.search(text):
        parts = [part.strip() for part in text.split(",")]
        return parts if parts[-1] else parts[:-1]
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        if char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and not depth:
            parts.append(text[start:position].strip())
            start = position + 1
    if tail := text[start:].strip():
        parts.append(tail)
    return parts


def _literal(text: str) -> Imm:
    if text[:2] in ("0f", "0F"):
        return Imm(int(text[2:], 16), "f32")
    if text[:2] in ("0d", "0D"):
        return Imm(int(text[2:], 16), "f64")
    text = text.rstrip("U")
    if "." in text or (("e" in text or "E" in text) and not text.lower().startswith("0x")):
        return Imm(struct.unpack("<Q", struct.pack("<d", float(text)))[0], "f64")
    if len(text) > 1 and text[0] == "0" and text.isdigit():
        return Imm(int(text, 8), "int")
    return Imm(int(text, 0), "int")


def parse_variable(text: str) -> Variable:
    """Parse one variable declaration, with its initial value if there is one."""
    declaration, _, initial = text.partition("=")
    declaration = re.sub(r"\.attribute\s*\([^)]*\)", "", declaration)
    space, align, kind, count = "", None, "", 1
    words = declaration.replace("[", " [").split()
    name, dimensions = "", []
    position = 0
    while position < len(words):
        word = words[position]
        if word == ".align":
            align = int(words[position + 1])
            position += 1
        elif word in (".global", ".const", ".shared", ".local", ".param"):
            space = word[1:]
        elif word in (".v2", ".v4"):
            count = int(word[2:])
        elif word.startswith(".") and word[1:] in TYPE_BYTES:
            kind = word[1:]
        elif word.startswith("["):
            dimensions.append(word[1:].rstrip("]"))
        elif not word.startswith("."):
            name = word
        elif word not in (".visible", ".extern", ".weak", ".common", ".managed", ".ptr", ".global", ".noalias"):
            raise ValueError(f"PTX declaration is not understood: {text[:200]}")
        position += 1
    if not kind or not name:
        raise ValueError(f"PTX declaration is not understood: {text[:200]}")
    width = TYPE_BYTES[kind]
    size: int | None = width * count
    for dimension in dimensions:
        size = None if not dimension else size * int(dimension)
    data, references = _initial_value(initial.strip(), kind)
    if size is None and space != "shared":
        size = len(data)
    return Variable(name, space, align or width * count, size, kind, data, references)


def _initial_value(text: str, kind: str) -> tuple[bytes, tuple[tuple[int, str], ...]]:
    width = TYPE_BYTES[kind]
    data, references = bytearray(), []
    for item in re.sub(r"[{}]", " ", text).split(",") if text else ():
        item = item.strip()
        if not item:
            continue
        if item[0] in "-0123456789":
            literal = _literal(item)
            data += (literal.value & ((1 << (8 * width)) - 1)).to_bytes(width, "little")
        else:
            match = re.match(r"^(?:generic\()?\s*([\w$]+)\s*\)?(?:\s*\+\s*(\d+))?$", item)
            if not match or width != 8:
                raise ValueError(f"PTX initial value is not understood: {item}")
            references.append((len(data), match.group(1)))
            data += int(match.group(2) or 0).to_bytes(8, "little")
    return bytes(data), tuple(references)


def _function_header(head: str) -> Function:
    entry = bool(re.search(r"\.entry\b", head))
    rest = re.split(r"\.entry\b|\.func\b", head, maxsplit=1)[1].strip()
    results: list[Variable] = []
    if rest.startswith("(") and not entry:
        close = rest.index(")")
        results = [parse_variable(part) for part in _split(rest[1:close])]
        rest = rest[close + 1 :].strip()
    name = re.match(r"[\w$%.]+", rest).group()
    rest = rest[len(name) :].strip()
    parameters: list[Variable] = []
    if rest.startswith("("):
        parameters = [_parameter(part) for part in _split(rest[1 : _closing(rest)])]
    cluster = re.search(r"\.reqnctapercluster\s+([\d, ]+)", rest)
    sizes = tuple(int(size) for size in cluster.group(1).split(",")) if cluster else ()
    return Function(name, entry, parameters, results, cluster=(*sizes, 1, 1)[:3] if sizes else None)


def _closing(text: str) -> int:
    """Return the position of the parenthesis that closes the first one."""
    depth = 0
    for position, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if not depth:
            return position
    raise ValueError(f"PTX parameter list is not closed: {text[:200]}")


def _parameter(text: str) -> Variable:
    """Parse a parameter; `.ptr .global .align 4` describes what it points to and is not its own alignment."""
    return parse_variable(re.sub(r"\.ptr(\s+\.(global|const|shared|local))?(\s+\.align\s+\d+)?", "", text))
