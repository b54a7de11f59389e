"""Products that whoever compiles PTX may fuse with a sum: then a kernel's last bits depend on the compiler.

`mul.f32` and `add.f32` without a rounding modifier leave open whether the product is rounded before it is added; NVRTC
writes them so where its own optimiser has not decided (a product that is *subtracted from*, a product of another block
of code). ptxas usually fuses them, the emulator never does. `fmaf(a, b, c)` or `__fmul_rn(a, b)` in the kernel decides.

    python tools/fusible.py                 # every kernel of the lessons, of cuda/ and of the probes
    python tools/fusible.py --arch sm_75

Source: PTX ISA, "Floating Point Instructions: mul, add, sub": "may be optimized to use fused-multiply-add".
"""

import argparse
import re
import sys
from functools import cache

from address import ROOT
from kernel_sources import Source, sources

_BODY = re.compile(r"^\s*(?:\.(?:visible|weak|extern)\s+)*\.(?:entry|func)\b([^{;]*)\{\n(.*?)^\}", re.M | re.S)
_TYPE = r"f32|f64|f32x2|f16|f16x2|bf16|bf16x2"
_INSTRUCTION = re.compile(
    rf"(?<![\w.])(mul|add|sub|neg|mov)((?:\.(?:rn|rz|rm|rp|ftz|sat))*)\.({_TYPE}|b16|b32|b64)\s+([^;]*);"
)


@cache  # who compares kernel by kernel asks for each module as often as it has kernels
def fusible(ptx: str) -> dict[str, list[str]]:
    """Return, for each kernel that has such pairs, the products and sums, as PTX writes them.

    Those of a function count for each kernel that may call it.
    """
    bodies, entries = {}, []
    for found in _BODY.finditer(ptx):
        head, body = found.groups()
        name = re.search(r"(?:^|\))\s*([\w$]+)\s*(?:\(|$)", head.strip())[1]
        bodies[name] = body
        if ".entry" in found[0].partition("{")[0]:
            entries.append(name)
    pairs = {name: _pairs(body) for name, body in bodies.items()}
    said = {}
    for entry in entries:
        reached, new = set(), {entry}
        while new:
            reached |= new
            new = {name for one in new for name in re.findall(r"[\w$]+", bodies[one]) if name in bodies} - reached
        if found := [pair for name in bodies if name in reached for pair in pairs[name]]:
            said[entry] = found
    return said


def _pairs(body: str) -> list[str]:
    """Return the pairs of one function."""
    instructions = [
        (verb, rounding, kind, re.findall(r"%\w+", operands), re.sub(r"\s+", " ", found[0]))
        for found in _INSTRUCTION.finditer(body)
        for verb, rounding, kind, operands in [found.groups()]
    ]
    products, before = {}, -1
    while len(products) > before:  # a copy, or the negative, of a product is still one; loops may copy backwards
        before = len(products)
        for verb, rounding, _, registers, text in instructions:
            if verb == "mul" and not re.search(r"\.r[nzmp]", rounding):
                products.setdefault(registers[0], text)
            elif verb in ("neg", "mov"):
                for source in registers[1:2]:
                    if source in products:
                        products.setdefault(registers[0], products[source])
    return [
        f"{products[source]} {text}"
        for verb, rounding, _, registers, text in instructions
        if verb in ("add", "sub") and not re.search(r"\.r[nzmp]", rounding)
        for source in registers[1:]
        if source in products
    ]


def main(argv: list[str] | None = None) -> int:
    """List the pairs of every kernel; return 1 where there are any."""
    parser = argparse.ArgumentParser(description="Which kernels leave it to the compiler to fuse a product and a sum?")
    parser.add_argument("--arch", default="sm_90", help="compile for this architecture (default: %(default)s)")
    options = parser.parse_args(argv)
    listed = {source.place for source in sources()}
    others = [path for path in sorted((ROOT / "cuda").glob("*.cu")) if f"cuda/{path.name}" not in listed]
    found = False
    for source in [*sources(), *(Source(f"cuda/{path.name}", path) for path in others)]:
        try:
            pairs = fusible(source.compile(options.arch).ptx)
        except Exception as error:  # a kernel of many macros: its operator compiles it
            print(f"{source.place}: not compiled ({type(error).__name__})")
            continue
        for name, several in pairs.items():
            found = True
            print(f"{source.place}: {name}: {len(several)}, such as {several[0]}")
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
