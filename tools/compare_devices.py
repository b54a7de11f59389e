"""Compare the emulator with a GPU: every kernel of the lessons, of cuda/ and of the probes, on the same data.

Contents
    Plan            how a kernel is launched: PLANS for those that `guessed` cannot guess
    sources         CUDA text: the cells and strings of the notebooks, their solutions, cuda/*.cu, the probes
    hostile         data that find what random numbers hide
    Buffers         the arguments of one launch, between margins, to be copied to each device
    difference      two results, bit for bit
    compare         one kernel, at each of its sizes
    compare_all     every kernel, in this process
    outlived        the same in processes of their own: an error that costs one the card, or its life, hides no other
    main            the command line

    python tools/compare_devices.py --json compare_devices.json
    python tools/compare_devices.py --dry-run         # no GPU: the emulator alone, from the code of three architectures

The emulator executes the PTX that the GPU's code was made from. An exact kernel must give the same bits, all NaN being
alike; of an approximate one (`within`) the largest difference is shown and held to a bound. What the manual promises of
approximate instructions is held against float64, on the GPU and in the emulator (`approximations`). Margins around the
arrays are compared as well, so that a write outside is a difference. A kernel that faults in the emulator is not run on
the GPU. One that faults there alone (an illegal instruction, an address) takes the card from its process: it is
reported, and a new process goes on with the next.
Exits with 1 where a kernel differs, fails or has no plan, with 2 without a GPU.
"""

import argparse
import ast
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from address import ROOT
from approximations import APPROXIMATIONS, Approximation, errors
from IPython.core.magic_arguments import parse_argstring
from tqdm import tqdm

from styleforge_lib.lab import records
from styleforge_lib.lab.magic import CudaMagic
from styleforge_lib.ops.cases import SPECIAL_VALUES, Fill, drawn_from, magnitudes, normal
from styleforge_lib.runtime import gpu
from styleforge_lib.runtime.kernel import Kernel, compile_cuda
from styleforge_lib.runtime.tensor_maps import tensor_map

PROBES = ROOT / "tools" / "device_probes.cu"
FURTHER_PROBES = ROOT / "tools" / "further_probes.cu"
APPROXIMATE_PROBES = ROOT / "tools" / "approximate_probes.cu"
HOPPER_PROBES = ROOT / "tools" / "hopper_probes.cu"
ARCHITECTURES = ("sm_80", "sm_75", "sm_90")  # of a dry run; the first is the yardstick
BLOCK = 256
SIZES = (1, 257, 4099)
WHOLE = (256, 4096)  # sizes of whole blocks
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
    "apply_affine",
)
MARGIN = 64  # elements before and behind every array
POISON = 0x7FF5  # as 16, 32 or 64 bits a NaN: what outputs hold before the launch
PIPE = "STYLEFORGE_COMPARE_PIPE"  # the file descriptor on which a process tells its rows
LOST = 75  # its exit status where it has lost the card
EXAMPLES = 3  # differing elements that a report shows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to launch a kernel.

    sizes: the values of its parameter n. grid: of n; by default as many blocks as give each element a thread. rows: for
    each array, how many times n elements it has; left out, once. lengths: for each array, its length whatever n is.
    data: for each input, how it is filled; left out, with hostile data. start: for each array that the kernel reads and
    writes, the number that it starts with. numbers: the scalars besides n. offsets: how many elements past an aligned
    address the arrays begin. maps: the parameters that are tensor maps. within: None for an exact kernel, else
    |difference| / max(1, |value|) at most. promise: what the result is held against instead, each device by itself.
    why: what a reader should know.
    """

    sizes: tuple[int, ...] = SIZES
    grid: Callable[[int], object] = lambda n: -(-n // BLOCK)
    block: object = BLOCK
    shared_bytes: int = 0
    cooperative: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    data: dict[str, Fill] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    offsets: tuple[int, ...] = (0,)
    maps: dict[str, "Map"] = field(default_factory=dict)
    within: float | None = None
    promise: Approximation | None = None
    why: str = ""


@dataclass(frozen=True)
class Map:
    """A tensor map of one of the arrays, seen as a tensor of a shape."""

    array: str
    shape: tuple[int, ...]
    box: tuple[int, ...]
    options: dict[str, object] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------------------
# The table


def between(low: float, high: float) -> Fill:
    """Fill with numbers of a range, and with infinity and NaN."""

    def fill(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        values = (torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low).to(dtype)
        values[5:7] = torch.tensor([float("inf"), float("nan")])[: len(values[5:7])]
        return values

    return fill


def whole_numbers(low: int, high: int) -> Fill:
    """Fill with integers from `low` to `high`."""
    return lambda shape, generator, dtype: torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def approximate(low: float, high: float, within: float = 2.0**-20) -> Plan:
    """Plan a probe of a function whose last bits are the hardware's own."""
    return Plan(sizes=(4099,), data={"x": between(low, high)}, within=within)


def promises() -> Iterator[tuple[str, Plan]]:
    """Yield the plans of tools/approximate_probes.cu."""
    types = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64, "float32": torch.float32}
    for name, promise in APPROXIMATIONS.items():
        x = promise.inputs(next(dtype for word, dtype in types.items() if f"_{word}" in name))
        yield name, Plan(sizes=(len(x),), data={"x": lambda shape, generator, dtype, x=x: x}, promise=promise)


def instance_norm() -> Iterator[tuple[str, Plan]]:
    """Yield the plans of cuda/instance_norm.cu and instance_norm_nhwc.cu: 2 images of 8 channels of 300 pixels.

    In 3 pieces of 128 numbers or pixels, the latter in blocks of 8 channels and 32 rows that take 4 steps.
    """
    numbers = {
        "channels": 8,
        "size": 300,
        "length": 128,
        "pieces": 3,
        "tile": 8,
        "rows": 32,
        "steps": 4,
        "eps": 1e-5,
        "relu": 1,
        "launch": 1,
        "patience": 4096,
        "lanes": 1,
    }
    moments = 2 * 8 * 3 * 4
    common = {
        "sizes": (2 * 8 * 300,),
        "numbers": numbers,
        "lengths": {"weight": 8, "bias": 8, "partial": moments, "saved": 48, "room": 4 + (4 + 2 * 3) * 2 * 8},
        "data": {"x": normal(40, 3), "residual": magnitudes, "partial": between(1, 9)},
    }
    for dtype in ("float32", "float16", "bfloat16"):
        exchanged = {**common, "lengths": {**common["lengths"], "slots": 48 * 4}, "start": {"slots": 0}}
        for vectors in (8, 16):
            yield f"instance_norm_held{vectors}_{dtype}", Plan(grid=lambda n: 48, offsets=(0, 1), **exchanged)
        for step in ("statistics", "apply"):
            yield f"instance_norm_{step}_{dtype}", Plan(grid=lambda n: 48, offsets=(0, 4), **common)
        yield f"instance_norm_nhwc_{dtype}", Plan(grid=lambda n: (2, 3), offsets=(0, 4), cooperative=True, **common)


def lessons_of_instance_norm() -> Iterator[tuple[str, Plan]]:
    """Yield the plans of notebooks 03 and 04: 16 planes of 300 numbers, whole or in 3 pieces of 128."""
    numbers = {"planes": 16, "channels": 8, "size": 300, "length": 128, "pieces": 3, "aligned": 1}
    numbers |= {"blocks_reversed": 1, "from_end": 1, "eps": 1e-5, "relu": 1}
    lengths = {"mean": 16, "variances": 16, "partial": 16 * 3 * 4, "weight": 8, "bias": 8}
    data = {"x": normal(40, 3), "residual": magnitudes, "partial": between(1, 9)}
    common = {"sizes": (16 * 300,), "numbers": numbers, "lengths": lengths, "data": data}
    yield "norm_thread", Plan(grid=lambda n: 1, block=32, **common)
    for name in ("tree", "shuffle", "vector", "two_pass", "one_pass", "shifted", "merged"):
        yield f"norm_{name}", Plan(grid=lambda n: 16, block=128, **common)
    for name in ("plane_moments", "norm_average"):
        yield name, Plan(grid=lambda n: 16, **common)
    why = "in one warp: its threads, which lack a barrier, then run in step"
    for name in ("plane_mean", "norm_hasty"):
        yield name, Plan(grid=lambda n: 16, block=32, why=why, **common)
    for name in ("piece_moments", "piece_apply", "fused_apply"):
        yield name, Plan(grid=lambda n: 48, block=64, **common)
    yield "warp_sums", Plan(sizes=(256,), grid=lambda n: n // 32, block=32, lengths={"sums": 8})
    nhwc = {"channels": 32, "size": 150}
    yield "plane_sum_nhwc", Plan(sizes=(32 * 150,), grid=lambda n: 32, block=64, numbers=nhwc, lengths={"sums": 2048})


def hopper(rows: int, block: int = 128) -> Plan:
    """Plan a probe of whole warpgroups on small whole numbers, whose sums are exact in any order."""
    return Plan(sizes=(256, 1024), grid=lambda n: n // block, block=block, rows={"out": rows}, data=SMALL)


def boxes(rows: int = 8, **options) -> Plan:
    """Plan a probe of boxes of a matrix of 60 by 200 halves."""
    about = Map("x", (60, 200), (8, 64), options)
    common = {"sizes": (1024,), "grid": lambda n: n // 128, "block": 128, "lengths": {"x": 12000}}
    return Plan(**common, rows={"out": rows}, maps={"map": about}, data={"x": whole_numbers(-99, 99)})


def instance_norm_backward() -> Iterator[tuple[str, Plan]]:
    """Yield the plans of cuda/instance_norm_backward.cu, on the planes and pieces of `instance_norm`."""
    common = {
        "sizes": (2 * 8 * 300,),
        "grid": lambda n: 48,
        "offsets": (0, 1),
        "numbers": {"channels": 8, "size": 300, "length": 128, "pieces": 3},
        "lengths": {"weight": 8, "saved": 48, "partial": 96, "sums": 32},
        "data": {"x": normal(40, 3), "dout": magnitudes, "out": normal(), "saved": between(1, 9)},
    }
    for dtype in ("float32", "float16", "bfloat16"):
        for step in ("sums", "apply"):
            yield f"instance_norm_backward_{step}_{dtype}", Plan(**common)


SMALL = {"a": whole_numbers(-9, 9)}
PLANS = {
    **dict(instance_norm()),
    **dict(promises()),
    **dict(instance_norm_backward()),
    # The lessons
    **dict(lessons_of_instance_norm()),
    "relu_unguarded": Plan(sizes=WHOLE, why="no guard: right in whole blocks only"),
    "relu_vector": Plan(why="aligned arrays only, as its launcher sees to"),
    "nothing": Plan(sizes=(256,), why="has no parameters: it is launched, and there is nothing to compare"),
    # The probes: integers
    "integer_arithmetic": Plan(rows={"out": 14}),
    "integer_bits": Plan(rows={"out": 9}),
    "shifts": Plan(rows={"out": 10}),
    "wide_integers": Plan(rows={"out": 12}),
    "packed_bytes": Plan(rows={"out": 4}),
    # Floats, conversions, halves
    "float_arithmetic": Plan(rows={"out": 11}),
    "float_rounding": Plan(rows={"out": 18}),
    "double_arithmetic": Plan(rows={"out": 7}),
    "float_functions": Plan(rows={"out": 12}),
    "minimum_maximum": Plan(rows={"out": 6}),
    "denormals": Plan(rows={"out": 8}),
    "float_to_int": Plan(rows={"out": 9}),
    "float_to_wide": Plan(rows={"out": 6}),
    "double_to_int": Plan(rows={"out": 6, "narrow": 3}),
    "int_to_float": Plan(rows={"out": 9, "wide": 3}),
    "half_conversions": Plan(rows={"out": 7, "whole": 4}),
    "bfloat16_conversions": Plan(rows={"out": 2}),
    "half_arithmetic": Plan(rows={"out": 8}),
    "half_comparisons": Plan(rows={"out": 8}),
    "half2_arithmetic": Plan(rows={"a": 2, "b": 2, "c": 2, "out": 20}),
    # Warps and blocks
    "shuffles": Plan(sizes=WHOLE, rows={"out": 10}),
    "shuffles_partial": Plan(sizes=WHOLE, rows={"out": 2}),
    "votes": Plan(sizes=WHOLE, rows={"out": 4}, data=SMALL),
    "matches": Plan(sizes=WHOLE, rows={"out": 4}),
    "active_mask": Plan(sizes=WHOLE, rows={"out": 2}),
    "warp_reductions": Plan(sizes=WHOLE, rows={"out": 2, "sums": 3}, data={"x": magnitudes}),
    "warp_reduce_instructions": Plan(sizes=WHOLE, rows={"out": 4}),
    "block_tree": Plan(data={"x": magnitudes}),
    "block_votes": Plan(sizes=WHOLE, rows={"out": 2}, data=SMALL),
    "dynamic_shared": Plan(shared_bytes=4 * BLOCK),
    "shared_transpose": Plan(sizes=WHOLE),
    "bank_of_bytes": Plan(sizes=WHOLE),
    # Atomics
    "atomics_integer": Plan(lengths={"out": 16}, start={"out": 0}),
    "atomics_shared": Plan(lengths={"out": 16}, start={"out": 0}, grid=lambda n: 3),
    "atomics_cas": Plan(lengths={"out": 16}, start={"out": 0}),
    "atomics_float": Plan(lengths={"out": 9, "wide": 8}, start={"out": 0, "wide": 0}),
    "atomics_wide": Plan(lengths={"out": 8}, start={"out": 0}),
    # Memory and control
    "vectors_mixed": Plan(rows={"a": 2, "b": 2, "c": 4, "out": 2, "s": 4}),
    "vectors_or_scalars": Plan(offsets=(0, 1)),
    "constant_table": Plan(),
    "calls_and_structs": Plan(rows={"out": 3}),
    # Tensor cores and asynchronous copies
    "matrix_loads": Plan(sizes=WHOLE, rows={"x": 4, "out": 8}),
    "tensor_products": Plan(sizes=WHOLE, rows={"out": 8}, data=SMALL),
    "fragments_of_mma": Plan(sizes=WHOLE, rows={"out": 8}, data=SMALL),
    "async_copies": Plan(sizes=WHOLE, rows={"x": 2, "out": 4}),
    # Hopper: wgmma, mbarrier, bulk copies
    "wgmma_rows": hopper(128),
    "wgmma_columns_of_a": hopper(128),
    "wgmma_columns_of_b": hopper(128),
    "wgmma_columns": hopper(128),
    "wgmma_wide": hopper(256),
    "wgmma_registers": hopper(128),
    "wgmma_bfloat16": hopper(64),
    "wgmma_tf32": hopper(128),
    "wgmma_into_halves": hopper(32),
    "wgmma_groups": hopper(64, 256),
    "mbarrier_phases": hopper(6),
    "mbarrier_counts": hopper(8),
    "bulk_pipeline": hopper(1),
    "bulk_stores": hopper(4),
    "copies_counted": hopper(1),
    "cluster_exchange": hopper(3),
    "cluster_multicast": hopper(2),
    "box_plain": boxes(),
    "box_swizzled": boxes(swizzle=128),
    "box_filled": boxes(rows=16, fill="nan"),
    "box_of_three_axes": Plan(
        sizes=(1024,),
        grid=lambda n: n // 128,
        block=128,
        lengths={"x": 480},
        maps={"map": Map("x", (3, 10, 16), (2, 4, 8))},
    ),
    "box_stores": Plan(
        sizes=(1024,),
        grid=lambda n: n // 128,
        block=128,
        lengths={"out": 20 * 24},
        start={"out": 7},
        maps={"map": Map("out", (20, 24), (8, 16))},
    ),
    # Further probes
    "eight_bits": Plan(rows={"out": 4}),
    "eight_bits_of_halves": Plan(sizes=(65536,), rows={"out": 2}),
    "bfloat16_rounding": Plan(rows={"out": 5}),
    "bfloat16_of_integers": Plan(rows={"out": 7}),
    "packed_pairs": Plan(rows={"out": 10}),
    "permutations": Plan(rows={"out": 8}),
    "flushed_arithmetic": Plan(rows={"out": 13}),
    "divisors_of_any_size": Plan(rows={"out": 2}),
    "atomics_found": Plan(rows={"out": 13}, start={"out": 5}),
    "atomics_found_wide": Plan(rows={"out": 10}, start={"out": 5}),
    "atomics_narrow": Plan(rows={"out": 3}, start={"out": 7}),
    "atomics_halves": Plan(
        lengths=dict.fromkeys(("h", "pairs", "b", "brains"), 512),
        start=dict.fromkeys(("h", "pairs", "b", "brains"), 0),
    ),
    "atomics_subnormal": Plan(rows={"out": 2}, start={"out": 1e-39, "wide": 1e-310}),
    "atomics_vectors": Plan(lengths={"fours": 64, "twos": 32}, start={"fours": 0, "twos": 0}),
    "atomics_of_scopes": Plan(lengths={"out": 12}, start={"out": 0}),
    "group_masks": Plan(sizes=WHOLE, rows={"out": 6}, data=SMALL),
    "recursion": Plan(),
    "recursive_sort": Plan(rows={"out": 8}),
    "pointers_to_functions": Plan(),
    "virtual_functions": Plan(),
    "switch_of_many_cases": Plan(),
    "tiles": Plan(sizes=WHOLE, rows={"out": 7}),
    "coalesced": Plan(sizes=WHOLE, rows={"out": 3}),
    "grid_sync": Plan(rows={"out": 3}, grid=lambda n: min(-(-n // BLOCK), 16), cooperative=True),
    # Approximate functions, and the range of each in which no result overflows
    "approximate_expf": approximate(-100, 80),
    "approximate_fast_expf": approximate(-80, 8),
    "approximate_exp2f": approximate(-140, 120),
    "approximate_logf": approximate(0, 1000),
    "approximate_log2f": approximate(0, 1000),
    "approximate_fast_log2f": approximate(0, 1000),
    "approximate_rsqrtf": approximate(0, 1000),
    "approximate_tanhf": approximate(-10, 10),
    "approximate_erff": approximate(-5, 5),
    "approximate_sinf": approximate(-1000, 1000),
    "approximate_cosf": approximate(-1000, 1000),
    "approximate_fast_sinf": approximate(-3.14, 3.14),
    "approximate_fast_cosf": approximate(-3.14, 3.14),
    "approximate_powf": approximate(0, 100, 2.0**-19),
    "approximate_division": approximate(-1000, 1000),
    "approximate_tanh": approximate(-6, 6, 2.0**-10),
    "approximate_hexp": approximate(-8, 8, 2.0**-10),
    "approximate_hdiv": approximate(-100, 100, 2.0**-10),
}


def plan_of(kernel: Kernel, source: "Source") -> Plan:
    """Return the kernel's plan from the table, else a guess; LookupError where there is neither."""
    if kernel.name in PLANS:
        return PLANS[kernel.name]
    scalars = [p for p in kernel.parameters if p.kind != "pointer"]
    pointers = [p for p in kernel.parameters if p.kind == "pointer"]
    plain = all(p.dtype and p.alignment == getattr(torch, p.dtype).itemsize for p in pointers)
    counted = [p.name for p in scalars] == ["n"] and scalars[0].dtype in ("int32", "uint32", "int64", "uint64")
    if not (plain and counted and {p.const for p in pointers} == {True, False}):
        raise LookupError(
            f"no plan for {kernel!r}: only inputs, outputs and their length n can be guessed; add it to PLANS"
        )
    return Plan(offsets=(0, 1) if source.any_alignment else (0,))


# ----------------------------------------------------------------------------------------------------------------------
# Where kernels are found


@dataclass(frozen=True)
class Source:
    """CUDA text. gap: it is an exercise that is yet to be solved, and may write nothing.

    any_alignment: its kernels take arrays at any address, as those of cuda/ promise.
    """

    place: str
    text: str | Path
    defines: tuple[tuple[str, str | bool], ...] = ()
    arch: str | None = None
    gap: bool = False
    any_alignment: bool = False

    def compile(self, arch: str | None = None):
        """Compile for this architecture; None is the card's own."""
        return compile_cuda(self.text, defines=dict(self.defines), arch=self.arch or arch, name=self.place)


def sources() -> list[Source]:
    """Return every text that has kernels, in the order of the course."""
    found = [source for path in sorted((ROOT / "notebooks").glob("*.ipynb")) for source in of_notebook(path)]
    kernels = [path for path in sorted((ROOT / "cuda").glob("*.cu")) if path.stem not in ELSEWHERE]
    found += [Source(f"cuda/{path.name}", path, any_alignment=True) for path in kernels]
    found += [Source(f"tools/{path.name}", path) for path in (PROBES, FURTHER_PROBES, APPROXIMATE_PROBES)]
    return [*found, Source(f"tools/{HOPPER_PROBES.name}", HOPPER_PROBES, arch="sm_90a")]


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
        yield Source(place, f"// %%cuda{line}\n{body}", defines, options.arch, gap)
    elif "__global__" in text:
        python = "\n".join(f"# {line}" if line.lstrip()[:1] in ("%", "!") else line for line in text.split("\n"))
        for node in ast.walk(ast.parse(python)):
            if isinstance(node, ast.JoinedStr) and "__global__" in ast.unparse(node):
                raise ValueError(f"{place}: a kernel in an f-string is not found; write it with -D or defines=")
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "__global__" in node.value:
                yield Source(place, node.value)


def _parts(define: str) -> tuple[str, str, str]:
    return define.partition("=")


# ----------------------------------------------------------------------------------------------------------------------
# Data


def hostile(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Fill with a mixture: ordinary numbers, all magnitudes, each kind of special value, and random bits."""
    (count,) = shape
    if dtype.is_floating_point:
        fills = [normal(), normal(4000, 0.5), magnitudes, *SPECIAL_VALUES.values(), drawn_from(_ties), random_bits]
    else:
        info = torch.iinfo(dtype)
        ends = torch.tensor([info.min, info.min + 1, info.max - 1, info.max, 0, 1, 2, 31, 32, 33], dtype=_wide(dtype))
        fills = [lambda shape, generator, _: ends[torch.randint(0, len(ends), shape, generator=generator)].to(dtype)]
        fills += [whole_numbers(0, 40), random_bits, random_bits]
    each = -(-count // len(fills)) + 1
    pool = torch.cat([fill((each,), generator, dtype).view(_bits(dtype)) for fill in fills])
    return pool[torch.randperm(len(pool), generator=generator)[:count]].view(dtype)


def _ties(info: torch.finfo) -> list[float]:
    """Numbers that lie between two neighbours when they are rounded to integers, or added to ones of their size."""
    return [0.5, 1.5, 2.5, -0.5, -1.5, 1 + info.eps, 1 - info.eps / 2, 1 / info.eps, 255.5, 3.0, 1 / 3, 2.0**15 - 0.5]


def random_bits(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Fill with any bits at all."""
    signed = _bits(dtype)
    info = torch.iinfo(signed)
    return torch.randint(info.min, info.max, shape, generator=generator, dtype=signed).view(dtype)


def _bits(dtype: torch.dtype) -> torch.dtype:
    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.uint64 if dtype is torch.uint64 else torch.int64


class Buffers:
    """The arguments of one launch. Every array lies between margins of poison, which no kernel may touch."""

    def __init__(self, kernel: Kernel, plan: Plan, n: int, offset: int):
        generator, self._plan, self._n = torch.Generator().manual_seed(n), plan, n
        self.whole: dict[str, torch.Tensor] = {}
        self.part: dict[str, slice] = {}
        self._numbers: dict[str, float] = {}
        for parameter in kernel.parameters:
            name = parameter.name
            if name in plan.maps:
                continue
            if parameter.kind != "pointer":
                self._numbers[name] = n if name == "n" else plan.numbers[name]
                continue
            dtype, count = getattr(torch, parameter.dtype), plan.lengths.get(name, n * plan.rows.get(name, 1))
            words = (2 * MARGIN + offset + count) * dtype.itemsize
            words = torch.full((-(-words // 2),), POISON, dtype=torch.int16).view(torch.int8)
            whole = words[: len(words) - len(words) % dtype.itemsize].view(dtype)
            part = slice(MARGIN + offset, MARGIN + offset + count)
            if name in plan.start:
                whole[part] = plan.start[name]
            elif parameter.const:
                whole.view(_bits(dtype))[part] = plan.data.get(name, hostile)((count,), generator, dtype).view(
                    _bits(dtype)
                )
            self.whole[name], self.part[name] = whole, part
        self._order = [parameter.name for parameter in kernel.parameters]

    def run(self, launch: Callable, device: str) -> dict[str, torch.Tensor]:
        """Copy the arrays to a device, launch there, and return what they then hold, margins and all."""
        held = {name: whole.clone().to(device) for name, whole in self.whole.items()}
        values = {name: held[name][self.part[name]] for name in held} | self._numbers
        for name, about in self._plan.maps.items():
            values[name] = tensor_map(values[about.array].view(about.shape), about.box, **about.options)
        args = tuple(values[name] for name in self._order)
        options = {"shared_bytes": self._plan.shared_bytes, "cooperative": self._plan.cooperative}
        launch(self._plan.grid(self._n), self._plan.block, args, **options)
        if device != "cpu":
            torch.cuda.synchronize()
        return {name: whole.cpu() for name, whole in held.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Comparing


INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}


def difference(a: torch.Tensor, b: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return where two results differ, all NaN being alike, and by how many ulp (for a NaN and a number: by all)."""
    width = a.dtype.itemsize
    top = np.uint64(1 << (8 * width - 1))
    x, y = (t.view(_bits(a.dtype)).numpy().view(f"u{width}").astype(np.uint64) for t in (a, b))
    if not a.dtype.is_floating_point:
        return x != y, np.zeros(len(x))
    nan = [(bits & (top - np.uint64(1))) > np.uint64(INFINITY[a.dtype]) for bits in (x, y)]
    differs = (x != y) & ~(nan[0] & nan[1])
    everything = np.uint64(2 * int(top) - 1)
    keys = [np.where(bits & top, bits ^ everything, bits | top) for bits in (x, y)]  # in the order of the numbers
    ulp = (np.maximum(*keys) - np.minimum(*keys)).astype(float)
    ulp[nan[0] ^ nan[1]] = float(everything)
    return differs, np.where(differs, ulp, 0)


def too_far(a: torch.Tensor, b: torch.Tensor, within: float) -> np.ndarray:
    """Return where two results differ by more than an approximate kernel may."""
    x, y = (t.double().numpy() for t in (a, b))
    with np.errstate(invalid="ignore"):
        near = np.abs(x - y) <= within * np.maximum(1, np.abs(x))
    return ~(near | (x == y) | (np.isnan(x) & np.isnan(y)))


@dataclass
class Row:
    """The outcome of one kernel: elements compared, how many differ, the largest difference in ulp, the verdict.

    Of an approximate instruction also what is promised of it, and the largest error against float64, on the GPU (in a
    dry run: of the code for another architecture) and in the emulator, as a multiple of that.
    """

    kernel: str
    source: str
    elements: int = 0
    differing: int = 0
    largest_ulp: float = 0.0
    promised: str = ""
    largest_error: float = 0.0
    emulator_error: float = 0.0
    verdict: str = "same"
    said: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the devices agree as they should."""
        return self.verdict in ("same", "close", "skipped")

    def hold(self, plan: Plan, buffers: Buffers, n: int, one: dict, other: dict, who: str) -> None:
        """Compare what two devices made of the same arguments."""
        for name, a in one.items():
            differs, ulp = difference(a, other[name])
            self.elements += len(a) - 2 * MARGIN
            self.differing += int(differs.sum())
            self.largest_ulp = max(self.largest_ulp, float(ulp.max(initial=0)))
            wrong = differs if plan.within is None else too_far(a, other[name], plan.within)
            if plan.promise is not None:
                wrong = self._hold_promise(plan.promise, buffers, name, a, other[name])
            if differs.any() and self.passed:
                self.verdict = "close"
            if wrong.any():
                self.verdict = "DIFFERENT"
                self.said += self._examples(buffers, n, name, wrong, a, other[name], who)

    def _hold_promise(self, promise: Approximation, buffers: "Buffers", name: str, a, b) -> np.ndarray:
        """Note how far two devices are from the exact values; return where either breaks the promise."""
        if name != "out":
            return difference(a, b)[0]
        self.promised = f"{promise.instruction}: {promise.kind} {promise.promised:.4g}"
        x, part = buffers.whole["x"][buffers.part["x"]], buffers.part["out"]
        mine, others = (errors(promise, x, whole[part]) for whole in (a, b))
        self.emulator_error = max(self.emulator_error, float(mine.max()))
        self.largest_error = max(self.largest_error, float(others.max()))
        wrong = np.zeros(len(a), bool)
        wrong[part] = np.maximum(mine, others) > 1
        return wrong

    def _examples(self, buffers: Buffers, n: int, name: str, wrong: np.ndarray, a, b, who: str) -> str:
        start = buffers.part[name].start
        places = np.flatnonzero(wrong) - start
        rows = dict(zip(*np.unique(places // n, return_counts=True), strict=True))
        words = f"n={n}: {name} differs in {len(places)}, by row { ({int(k): int(v) for k, v in rows.items()}) }: "
        for at in [places[places // n == row][0] for row in list(rows)[:EXAMPLES]]:
            inputs = [
                f"{key}={_figure(whole[buffers.part[key]][at % n])}"
                for key, whole in buffers.whole.items()
                if key != name and whole[buffers.part[key]].numel() > at % n
            ]
            values = f"{_figure(a[at + start])} in the emulator, {_figure(b[at + start])} {who}"
            words += f"[row {at // n}, {at % n}] {values} ({', '.join(inputs)}); "
        return words


def _figure(value: torch.Tensor) -> str:
    bits = int(value.view(_bits(value.dtype))) & (1 << (8 * value.dtype.itemsize)) - 1
    return f"{value.item():.9g} 0x{bits:x}" if value.dtype.is_floating_point else f"{value.item()}"


def compare(source: Source, kernels: list[Kernel], dry: bool) -> Row:
    """Run a kernel at each of its sizes; what goes wrong is the row's verdict.

    kernels: the same one, compiled for each architecture; the first is the yardstick. dry: hold the emulator against
    itself, once more and with the code of the other architectures, else against the GPU.
    """
    began, row = time.perf_counter(), Row(kernels[0].name, source.place)
    try:
        plan, written = plan_of(kernels[0], source), False
        row.said = plan.why
        for n, offset in ((n, offset) for n in plan.sizes for offset in plan.offsets):
            buffers = Buffers(kernels[0], plan, n, offset)
            emulated = buffers.run(kernels[0].emulate, "cpu")
            written |= any(difference(emulated[name], whole)[0].any() for name, whole in buffers.whole.items())
            for kernel in kernels[1:] + kernels[:1] if dry else kernels:
                other = buffers.run(kernel.emulate, "cpu") if dry else buffers.run(kernel, "cuda")
                row.hold(plan, buffers, n, emulated, other, kernel.module.arch if dry else "on the GPU")
        if not written and kernels[0].parameters and not source.gap:
            raise ValueError("it wrote nothing, so nothing was compared: give it other arguments in PLANS")
        if not written:
            row.said = row.said or "an exercise: nothing is written yet"
    except Exception as error:  # whatever it is, the other kernels are still compared
        row.verdict, row.said = "ERROR", f"{type(error).__name__}: {error}"
    row.seconds = round(time.perf_counter() - began, 3)
    return row


# ----------------------------------------------------------------------------------------------------------------------
# The command line


def compare_all(found: list[Source], only: str, dry: bool, done: int = 0) -> Iterator[Row]:
    """Yield the row of each kernel but the first `done`; a text that does not compile is one row."""
    numbers = itertools.count()
    for source in found:
        try:
            modules = [source.compile(arch) for arch in (ARCHITECTURES if dry else (None,))]
            names = [name for name in modules[0].kernels if only in f"{source.place}:{name}"]
            skipped = source.arch and not dry and source.arch != gpu.card_arch()
            versions = {} if skipped else {name: [module.kernel(name) for module in modules] for name in names}
        except Exception as error:
            if next(numbers) >= done:
                yield Row("-", source.place, verdict="ERROR", said=f"{type(error).__name__}: {error}")
            continue
        for name in names:
            if next(numbers) < done:
                continue
            if skipped:
                said = f"it is for {source.arch}, and this card is {gpu.card_arch()}"
                yield Row(name, source.place, verdict="skipped", said=said)
            else:
                told(begun=f"{source.place}:{name}")
                yield compare(source, versions[name], dry)


def told(**what: object) -> None:
    """Tell the process that started this one, if one did, how far it is: a line of JSON on a pipe of its own."""
    if PIPE in os.environ:
        os.write(int(os.environ[PIPE]), (json.dumps(what) + "\n").encode())


def tell_all(only: str, done: int) -> int:
    """Compare for another process: tell it each row; return LOST where an error took the card from this one."""
    for row in compare_all(sources(), only, False, done):
        told(row=asdict(row))
        if row.verdict == "ERROR" and lost():
            return LOST
    return 0


def lost() -> bool:
    """Return whether nothing can run on the card any more, in this process."""
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except RuntimeError:
        return True
    return False


def outlived(command: list[str]) -> Iterator[Row]:
    """Yield the row of each kernel from processes of `command`, to which the number of rows that are there is added.

    Where one is lost with the card, the next one goes on; where it ends in the middle of a kernel, that is its row.
    """
    done = 0
    while True:
        reading, writing = os.pipe()
        child = subprocess.Popen([*command, str(done)], env={**os.environ, PIPE: str(writing)}, pass_fds=[writing])
        os.close(writing)
        begun, before = None, done
        with open(reading, encoding="utf-8") as lines:
            for line in lines:
                message = json.loads(line)
                begun = message.get("begun")
                if "row" in message:
                    done += 1
                    yield Row(**message["row"])
        status = child.wait()
        if status == 0:
            return
        if begun is not None:
            place, _, name = begun.rpartition(":")
            done += 1
            yield Row(name, place, verdict="ERROR", said=f"its process ended in the middle of it, with status {status}")
        elif done == before:
            yield Row("-", "-", verdict="ERROR", said=f"a process ended with status {status} before any kernel")
            return


def table(rows: list[Row]) -> str:
    """Write the rows in columns."""
    lines = [f"{'kernel':26} {'elements':>9} {'differing':>9} {'ulp':>8}  {'verdict':10} source"]
    for row in rows:
        figures = f"{row.elements:9} {row.differing:9} {row.largest_ulp:8.3g}"
        lines.append(f"{row.kernel:26} {figures}  {row.verdict:10} {row.source}")
        if row.promised:
            figures = f"{row.largest_error:.3f} of it here, {row.emulator_error:.3f} in the emulator"
            lines.append(f"    promised {row.promised}; the largest error is {figures}")
        if row.said:
            lines.append(f"    {row.said}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Compare, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description="Do the emulator and a GPU give the same results?")
    parser.add_argument("--json", metavar="PATH", type=Path, help="write the table there, too")
    parser.add_argument("--only", metavar="WORD", default="", help='kernels whose "source:name" holds this word')
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help=f"without a GPU: collect and compile everything for {', '.join(ARCHITECTURES)}, and emulate it",
    )
    parser.add_argument("--tell-from", metavar="NUMBER", type=int, help=argparse.SUPPRESS)  # a process of `outlived`
    options = parser.parse_args(argv)
    if not options.dry_run and not gpu.available():
        print("no NVIDIA GPU here: add --dry-run to try the emulator alone", file=sys.stderr)
        return 2
    if options.tell_from is not None:
        return tell_all(options.only, options.tell_from)
    command = [sys.executable, __file__, "--only", options.only, "--tell-from"]
    found = compare_all(sources(), options.only, True) if options.dry_run else outlived(command)
    rows = list(tqdm(found, unit=" kernels", file=sys.stderr))
    print(table(rows))
    failed = [f"{row.kernel} ({row.verdict})" for row in rows if not row.passed]
    against = "the emulator and itself" if options.dry_run else f"the emulator and {torch.cuda.get_device_name()}"
    print(f"{against}: {len(rows) - len(failed)} of {len(rows)} kernels agree")
    if failed:
        print(f"failed: {', '.join(failed)}")
    if options.json:
        content = {"machine": records.machine(), "dry_run": options.dry_run, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1), "utf-8")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
