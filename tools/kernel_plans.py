"""How each kernel is launched when devices are compared: sizes, lengths, data, and what its result is held to.

Contents
    Plan            how a kernel is launched
    Map             a tensor map among its arguments
    plan_of         a kernel's plan: of the table, or a guess
    PLANS           the table: every kernel whose plan cannot be guessed
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from approximations import APPROXIMATIONS, Approximation
from kernel_sources import Source

from styleforge_lib.ops import instance_norm_hopper as copies
from styleforge_lib.ops.cases import Fill, magnitudes, normal
from styleforge_lib.runtime.kernel import Kernel

BLOCK = 256
SIZES = (1, 257, 4099)
WHOLE = (256, 4096)  # sizes of whole blocks


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


def plan_of(kernel: Kernel, source: Source) -> Plan:
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
    """Yield the plans of cuda/instance_norm.cu, _nhwc, _hopper: 2 images of 8 channels, 300 pixels.

    In 3 pieces of 128 numbers or pixels; _nhwc in blocks of 8 channels and 32 rows that take 4 steps; _hopper NHWC.
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
    exchanged = {**common, "lengths": {**common["lengths"], "slots": 48 * 4}, "start": {"slots": 0}}
    for vectors in (8, 16):
        yield f"instance_norm_held{vectors}", Plan(grid=lambda n: 48, offsets=(0, 1), **exchanged)
    for step in ("statistics", "apply"):
        yield f"instance_norm_{step}", Plan(grid=lambda n: 48, offsets=(0, 4), **common)
    yield "instance_norm_nhwc", Plan(grid=lambda n: (2, 3), offsets=(0, 4), cooperative=True, **common)
    copied = {**common, "numbers": numbers | {"size": 2400, "length": 1024, "together": 8}, "start": {"words": 0}}
    copied["lengths"] = common["lengths"] | {"room": 4 * 2 * 8 * (1 + 3), "words": 2 * 6}
    block = {"block": copies.COPY_THREADS, "shared_bytes": copies.shared_bytes()}
    yield "instance_norm_hopper", Plan(grid=lambda n: 6, **block, **copied)


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


def stores(blocks: int, shape: tuple[int, ...] = (20, 24), box: tuple[int, ...] = (8, 16), **options) -> Plan:
    """Plan a probe of boxes that each block stores into a tensor of sevens."""
    return Plan(
        sizes=(128 * blocks,),
        grid=lambda n: blocks,
        block=128,
        lengths={"out": math.prod(shape)},
        start={"out": 7},
        maps={"map": Map("out", shape, box, options)},
    )


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
    for step in ("sums", "apply"):
        yield f"instance_norm_backward_{step}", Plan(**common)


SMALL = {"a": whole_numbers(-9, 9)}
AFFINE = Plan(  # 2 images of 8 channels, 300 pixels
    sizes=(2 * 8 * 300,),
    grid=lambda n: (2, 2),
    numbers={"channels": 8, "size": 300, "relu": 1},
    lengths={"affine": 2 * 8 * 2},
    data={"x": normal(40, 3), "residual": magnitudes},
)
PLANS = {
    "apply_affine": AFFINE,
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
    # Boxes that are stored: what a copy from shared memory may leave outside of its tensor
    "box_stores": stores(blocks=6),
    "box_stores_inside": stores(blocks=2),
    "box_stores_right": stores(blocks=2),
    "box_stores_below": stores(blocks=1),
    "box_stores_beyond": stores(blocks=4),
    "box_stores_read": stores(blocks=2),
    "box_stores_fenced_late": stores(blocks=2),
    "box_stores_by_warps": stores(blocks=2, box=(2, 16)),
    "box_stores_swizzled": stores(blocks=6, swizzle=64),
    "box_stores_of_three_axes": stores(blocks=12, shape=(3, 10, 16), box=(2, 4, 8)),
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
