"""The parameters of a kernel: their names, and their types as the compiler understood them.

Contents
    Parameter           one parameter: name, C type, what it accepts, how it is packed for a launch
    parse_signature     mangled name + PTX + source text -> the parameters of one kernel
    base_name           `_Z4blurPfi` -> `blur`

Three sources, each for what it knows best. The mangled name (Itanium C++ ABI, section 5.1) has the types, with macros
and typedefs resolved; the PTX has the sizes, and must agree; the text has the names, which serve messages alone. A type
that is not understood is refused here, by name, before anything is launched with it.
"""

import re
from dataclasses import dataclass, replace

# Mangled type -> (C name, dtype name). `long` is 64 bits wide on the platforms that NVRTC's wheels serve through LP64.
_BUILTIN = {
    "f": ("float", "float32"),
    "d": ("double", "float64"),
    "i": ("int", "int32"),
    "j": ("unsigned int", "uint32"),
    "l": ("long", "int64"),
    "m": ("unsigned long", "uint64"),
    "x": ("long long", "int64"),
    "y": ("unsigned long long", "uint64"),
    "s": ("short", "int16"),
    "t": ("unsigned short", "uint16"),
    "a": ("signed char", "int8"),
    "c": ("char", "int8"),
    "h": ("unsigned char", "uint8"),
    "b": ("bool", "bool"),
    "v": ("void", None),
}
_CLASSES = {
    "__half": ("float16", 2),
    "__half2": ("float16", 4),
    "__nv_bfloat16": ("bfloat16", 2),
    "__nv_bfloat162": ("bfloat16", 4),
}
for _base, _dtype, _size in (
    ("char", "int8", 1),
    ("uchar", "uint8", 1),
    ("short", "int16", 2),
    ("ushort", "uint16", 2),
    ("int", "int32", 4),
    ("uint", "uint32", 4),
    ("float", "float32", 4),
    ("longlong", "int64", 8),
    ("ulonglong", "uint64", 8),
    ("double", "float64", 8),
):
    for _count in (1, 2, 3, 4):
        # Three elements are aligned as one; more than 16 bytes are aligned to 16.
        _CLASSES[f"{_base}{_count}"] = (_dtype, min(_size * _count, 16) if _count != 3 else _size)

_SIZES = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2}
_SIZES |= {"int32": 4, "uint32": 4, "float32": 4, "int64": 8, "uint64": 8, "float64": 8}
SCALAR_FORMATS = {"bool": "B", "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I"}
SCALAR_FORMATS |= {"int64": "q", "uint64": "Q", "float16": "e", "bfloat16": "H", "float32": "f", "float64": "d"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    kind: "pointer", "scalar" or "struct" (passed by value). dtype: of the scalar or of what the pointer points to
    ("float32", "bfloat16", ...); None for `void*`, which takes every dtype, and for a struct. const: the kernel only
    reads through the pointer. alignment: of the address, in bytes. size: of the parameter itself, in bytes.
    """

    index: int
    name: str
    c_type: str
    kind: str
    dtype: str | None
    const: bool
    alignment: int
    size: int

    @property
    def format(self) -> str:
        """How `struct` packs the value: eight bytes, or a whole number of eight for a struct."""
        code = {"pointer": "Q", "struct": f"{self.size}s"}.get(self.kind) or SCALAR_FORMATS[self.dtype]
        return f"{code}{-self.size % 8}x"

    def __str__(self) -> str:
        return f"parameter {self.index + 1}, '{self.name}' ({self.c_type})"


@dataclass(frozen=True)
class _Type:
    text: str
    pointer: bool = False
    pointee: "_Type | None" = None
    dtype: str | None = None
    const: bool = False
    alignment: int = 1
    known: bool = True


class _Demangler:
    """Reads the types of a mangled name. Keeps its place, the substitutions (S_, S0_) and template arguments (T_)."""

    def __init__(self, text: str):
        self.text, self.place, self.substitutions, self.arguments = text, 0, [], []

    def take(self, expected: str) -> bool:
        if self.text.startswith(expected, self.place):
            self.place += len(expected)
            return True
        return False

    def source_name(self) -> str:
        digits = re.compile(r"\d+").match(self.text, self.place)
        if not digits:
            raise ValueError(self.text[self.place :])
        start = digits.end()
        self.place = start + int(digits[0])
        return self.text[start : self.place]

    def types_until(self, end: str) -> list[_Type]:
        found = []
        while self.place < len(self.text) and not (end and self.take(end)):
            found.append(self.type())
        return found

    def type(self) -> _Type:
        letter = self.text[self.place]
        if letter in _BUILTIN:
            self.place += 1
            text, dtype = _BUILTIN[letter]
            return _Type(text, dtype=dtype, alignment=_SIZES.get(dtype, 1), known=letter != "v")
        if letter == "S" and (match := re.compile(r"S([0-9A-Z]*)_").match(self.text, self.place)):
            self.place = match.end()
            return self.substitutions[int(match[1], 36) + 1 if match[1] else 0]
        result = self._compound(letter)
        self.substitutions.append(result)
        return result

    def _compound(self, letter: str) -> _Type:
        if self.take("P"):
            inner = self.type()
            return _Type(f"{inner.text}*", pointer=True, pointee=inner, dtype="uint64", alignment=8)
        if qualifiers := re.compile(r"r?V?K?(?=.)").match(self.text, self.place)[0]:
            self.place += len(qualifiers)
            inner = self.type()
            words = {"r": "", "V": "volatile ", "K": "const "}
            text = "".join(words[q] for q in qualifiers) + inner.text if not inner.pointer else f"{inner.text} const"
            return replace(inner, text=text, const=inner.const or "K" in qualifiers)
        if match := re.compile(r"T(\d*)_").match(self.text, self.place):
            self.place = match.end()
            return self.arguments[int(match[1]) + 1 if match[1] else 0]
        if letter.isdigit():
            name = self.source_name()
            dtype, alignment = _CLASSES.get(name, (None, 1))
            return _Type(name, dtype=dtype, alignment=alignment, known=name in _CLASSES)
        raise ValueError(self.text[self.place :])


def base_name(entry: str) -> str:
    """Return the name that the source gives the kernel of this PTX entry."""
    if entry.startswith("_Z") and entry[2:3].isdigit():
        demangler = _Demangler(entry)
        demangler.place = 2
        return demangler.source_name()
    return entry


def parse_signature(entry: str, mangled: str, ptx: str, text: str) -> tuple[Parameter, ...]:
    """Return the parameters of the kernel `entry`.

    mangled: a C++ name that spells its types (Compiled.signatures). TypeError where a type is not understood.
    """
    sizes = _sizes(entry, ptx)
    names = _names(base_name(entry), text, len(sizes))
    try:
        types = _types(mangled)
    except (ValueError, IndexError) as error:
        raise TypeError(
            f"kernel '{base_name(entry)}': the type at '{error}' in '{mangled}' is not understood. A parameter may be "
            "a number, a plain struct by value, or a pointer to numbers or to one of CUDA's vector types."
        ) from None
    if len(types) != len(sizes):
        raise TypeError(f"kernel '{base_name(entry)}': '{mangled}' has {len(types)} parameters, its PTX {len(sizes)}")
    return tuple(
        _parameter(base_name(entry), *item) for item in zip(range(len(types)), names, types, sizes, strict=True)
    )


def _parameter(kernel: str, index: int, name: str, c_type: _Type, size: int) -> Parameter:
    if c_type.pointer:
        to = c_type.pointee
        if not to.known and not to.text.endswith("void"):
            raise TypeError(
                f"kernel '{kernel}': parameter '{name}' points to {to.text}, which no array has. "
                "Declare it as a pointer to numbers (or unsigned char*) and cast inside the kernel."
            )
        return Parameter(index, name, c_type.text, "pointer", to.dtype, to.const, to.alignment, size)
    if c_type.dtype and _SIZES[c_type.dtype] == size:
        return Parameter(index, name, c_type.text, "scalar", c_type.dtype, True, 1, size)
    return Parameter(index, name, c_type.text, "struct", None, True, 1, size)


def _types(mangled: str) -> list[_Type]:
    """Return the parameter types in a mangled name: of the probe `f<0, void (types)>`, or of a C++ kernel itself."""
    demangler = _Demangler(mangled)
    demangler.take("_Z")
    if demangler.source_name() == "styleforge_signature":
        demangler.substitutions.append(_Type("styleforge_signature", known=False))
        template = re.compile(r"ILi\d+EFY?v").match(mangled, demangler.place)
        if not template:
            raise ValueError(mangled[demangler.place :])
        demangler.place = template.end()
        types = demangler.types_until("E")
    else:
        if demangler.text[demangler.place] == "I":  # a template: its arguments, then the return type
            demangler.substitutions.append(_Type(base_name(mangled), known=False))
            _template_arguments(demangler)
            demangler.take("v")
        types = demangler.types_until("")
    return [] if [t.text for t in types] == ["void"] else types


def _template_arguments(demangler: _Demangler) -> None:
    """Read `I ... E`: types, and integer literals, which only hold their place among the arguments."""
    demangler.take("I")
    while not demangler.take("E"):
        if literal := re.compile(r"L[a-z]n?\d+E").match(demangler.text, demangler.place):
            demangler.place = literal.end()
            demangler.arguments.append(_Type(literal[0], known=False))
        else:
            demangler.arguments.append(demangler.type())


def _sizes(entry: str, ptx: str) -> list[int]:
    header = re.search(rf"\.entry\s+{re.escape(entry)}\s*\(([^)]*)\)", ptx)
    declared = re.findall(
        r"\.param\s+(?:\.align\s+\d+\s+)?\.([a-z])(\d+)[^,\[]*(?:\[(\d+)\])?", header[1] if header else ""
    )
    return [int(bits) // 8 * int(count or 1) for _, bits, count in declared]


def _names(kernel: str, text: str, count: int) -> list[str]:
    """Return the parameters' names from the declaration in `text`; where it cannot be read, their numbers."""
    fallback = [f"#{index + 1}" for index in range(count)]
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    start = re.search(rf"__global__\b[^;{{}}]*?\b{re.escape(kernel)}\s*\(", text)
    if not start:
        return fallback
    depth, pieces = 0, [""]
    for letter in text[start.end() :]:
        if letter == ")" and depth == 0:
            break
        depth += (letter in "(<[{") - (letter in ")>]}")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    found = [re.search(r"([A-Za-z_]\w*)\s*(?:\[[^\]]*\]\s*)*$", piece.partition("=")[0]) for piece in pieces]
    if len(found) != count:
        return fallback
    types = {"int", "float", "double", "char", "short", "long", "unsigned", "bool", "const", "__restrict__"}
    return [m[1] if m and m[1] not in types else name for m, name in zip(found, fallback, strict=True)]
