"""Where kernels are found: the cells and strings of the notebooks, their solutions, cuda/*.cu, the probes.

Contents: `Source` (a text that has kernels), `sources` (all of them), `of_notebook` and `of_code` (those of a part).
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from address import ROOT
from IPython.core.magic_arguments import parse_argstring

from styleforge_lib.lab.magic import CudaMagic
from styleforge_lib.ops.elementwise import C_TYPES
from styleforge_lib.runtime.kernel import compile_cuda

PROBES = [ROOT / "tools" / name for name in ("device_probes.cu", "further_probes.cu", "approximate_probes.cu")]
HOPPER_PROBES = [ROOT / "tools" / name for name in ("hopper_probes.cu", "store_probes.cu")]
# Kernels of packed weights and many macros, which `check_convolutions.py` holds against float64 on either device.
ELSEWHERE = (
    "close_planes",
    "conv2d",
    "conv2d_hopper",
    "conv2d_hopper_persistent",
    "conv2d_hopper_pictures",
    "residual_blocks_hopper",
    "upsample_conv2d",
    "conv2d_from_picture",
    "conv2d_to_picture",
    "conv2d_cuda_cores",
)


@dataclass(frozen=True)
class Source:
    """CUDA text. gap: it is an exercise that is yet to be solved, and may write nothing.

    any_alignment: its kernels take arrays at any address, as those of cuda/ promise. name: what the compiler calls it;
    cells and files have the name that the lesson and the library give them, so that the cache holds them once.
    """

    place: str
    text: str | Path
    defines: tuple[tuple[str, str | bool], ...] = ()
    arch: str | None = None
    gap: bool = False
    any_alignment: bool = False
    name: str | None = None

    def compile(self, arch: str | None = None):
        """Compile for this architecture; None is the card's own."""
        return compile_cuda(self.text, defines=dict(self.defines), arch=self.arch or arch, name=self.name)


def sources() -> list[Source]:
    """Return every text that has kernels, in the order of the course."""
    found = [source for path in sorted((ROOT / "notebooks").glob("*.ipynb")) for source in of_notebook(path)]
    kernels = [path for path in sorted((ROOT / "cuda").glob("*.cu")) if path.stem not in ELSEWHERE]
    for path in kernels:
        hopper = path.stem.endswith("_hopper")  # whose copy engine takes multiples of 16 bytes
        about = {"arch": "sm_90a" if hopper else None, "any_alignment": not hopper}
        if "#define TYPE" in path.read_text("utf-8"):
            for dtype, c_type in C_TYPES.items():
                place = f"cuda/{path.name}#{str(dtype).removeprefix('torch.')}"
                found.append(Source(place, path, (("TYPE", c_type),), **about))
        else:
            found.append(Source(f"cuda/{path.name}", path, **about))
    found += [Source(f"tools/{path.name}", path) for path in PROBES]
    return found + [Source(f"tools/{path.name}", path, arch="sm_90a") for path in HOPPER_PROBES]


def of_notebook(path: Path) -> Iterator[Source]:
    """Yield the kernels of a notebook: of its cells, and of the code blocks in its Markdown, where solutions are."""
    for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
        text = "".join(cell["source"])
        place = f"notebooks/{path.name}#{cell.get('id', number)}"
        blocks = [text] if cell["cell_type"] == "code" else re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
        for block in blocks:
            yield from of_code(place, block)


def of_code(place: str, text: str) -> Iterator[Source]:
    """Yield the kernels of one block of code: a `%%cuda` cell, or strings of CUDA text in Python."""
    if text.startswith("%%cuda"):
        line, _, body = text.removeprefix("%%cuda").partition("\n")
        options = parse_argstring(CudaMagic.cuda, line)
        defines = tuple((macro, value if equals else True) for macro, equals, value in map(_parts, options.defines))
        gap = bool(re.search(r"▼[^\n]*\n\s*//\s*▲", body))
        text = f"// %%cuda {line.strip()}\n{body.rstrip()}\n"  # as the magic has it
        yield Source(place, text, defines, options.arch, gap, name=f"{options.name}.cu")
    elif "__global__" in text:
        python = "\n".join(f"# {line}" if line.lstrip()[:1] in ("%", "!") else line for line in text.split("\n"))
        for node in ast.walk(ast.parse(python)):
            if isinstance(node, ast.JoinedStr) and "__global__" in ast.unparse(node):
                raise ValueError(f"{place}: a kernel in an f-string is not found; write it with -D or defines=")
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "__global__" in node.value:
                yield Source(place, node.value)


def _parts(define: str) -> tuple[str, str, str]:
    return define.partition("=")
