"""Time residual blocks in one launch beside one launch for each convolution, and print the table that chooses.

    python tools/tune_residual_blocks.py                    # a table; nothing is recorded
    python tools/tune_residual_blocks.py --sanitize         # small, once, not timed: for compute-sanitizer
    python tools/tune_residual_blocks.py --dry-run          # no GPU: every path once, tiny, in the emulator

A row is a size, and so many residual blocks one after the other; their input is the raw output of a convolution with
scale and shift, as in the network. layers: two convolutions a block, each with the kernel that closes its planes, as
`accelerate` launches them; what the last block adds is left to the next layer. added: and one that adds, as
FusedResidualBlock has it. blocks: one launch a block. stage: one launch for all. cold: a replay of a CUDA graph of the
whole, the L2 cache flushed before. graph: ten in a graph, back to back. All in microseconds, for the whole. First the
ways are compared bit by bit.

The last lines are ONE_LAUNCH as this card would have it, for styleforge_lib/ops/residual_blocks_hopper.py: sizes where
both times say that one launch is faster (a block: than added; five: than layers and than blocks), from the least to the
most of neighbours in the table. Exits with 1 where bits
differ, with 2 without a Hopper card.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from styleforge_lib.lab.bench import graphed, time_cold, time_graph
from styleforge_lib.ops import residual_blocks_hopper
from styleforge_lib.ops.convolution import architecture, prepare
from styleforge_lib.ops.fused_convolution import apply_affine
from styleforge_lib.ops.layer import STORAGE, Layer, Norm, plane_sums
from styleforge_lib.ops.residual_blocks_hopper import CHANNELS, ResidualBlock, ResidualBlocks, sums_of
from styleforge_lib.runtime import gpu
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

ARCH = "sm_90a"
SIZES = ((1, 64, 64), (1, 128, 128), (1, 256, 256), (1, 270, 480), (8, 128, 128))  # pictures, height, width
SMALL = ((1, 5, 19), (2, 3, 3))
COMPARED = {1: ("layers", "added", "blocks"), 5: ("layers", "blocks", "stage")}  # residual blocks: ways; ours the last


@dataclass
class Ways:
    """The same residual blocks as launches, each way on buffers of its own. A way is called to launch all of it."""

    layers: Callable[[], None]
    added: Callable[[], None]
    blocks: Callable[[], None]
    stage: Callable[[], None]
    made: dict[str, Callable[[], torch.Tensor]]  # what came of it


def norm(device: str) -> Norm:
    """Return a norm that keeps the numbers of five blocks in range."""
    return Norm(torch.rand(CHANNELS, device=device) + 0.5, torch.randn(CHANNELS, device=device))


def blocks_of(count: int, dtype: torch.dtype, device: str) -> list[ResidualBlock]:
    """Draw residual blocks."""

    def weight() -> torch.Tensor:
        return (torch.randn(CHANNELS, CHANNELS, 3, 3, device=device) / (9 * CHANNELS) ** 0.5).to(dtype)

    return [ResidualBlock(weight(), norm(device), weight(), norm(device)) for _ in range(count)]


def ways_of(blocks: list[ResidualBlock], size: tuple[int, int, int], numbers: str, device: str) -> Ways:
    """Return the ways to compute these blocks at a size."""
    images, height, width = size
    dtype, shape = STORAGE[numbers], (images, height, width, CHANNELS)
    raw, affine = torch.randn(shape, device=device).to(dtype), torch.randn(images, CHANNELS, 2, device=device)

    def room(count: int) -> list[torch.Tensor]:
        return [torch.empty(shape, dtype=dtype, device=device) for _ in range(count)]

    quarter, inner, *kept = room(4)
    closed = [torch.empty_like(affine) for _ in range(2)]
    sums = plane_sums(images, affine.device)
    fused = {"c_in": CHANNELS, "c_out": CHANNELS, "numbers": numbers, "statistics": True, "affine": True}
    steps = []
    for number, block in enumerate(blocks):
        ways = {"relu_in": True} if number == 0 else {"residual": True}
        first = prepare(Layer(materialise=True, **ways, **fused), block.weight1, None, block.norm1, arch=ARCH)
        second = prepare(Layer(relu_in=True, **fused), block.weight2, None, block.norm2, arch=ARCH)
        steps.append((first, second))

    def layers() -> None:
        for number, (first, second) in enumerate(steps):
            source, scale = (raw, affine) if number == 0 else (quarter, closed[1])
            added = None if number == 0 else kept[(number - 1) % 2]
            given = {"residual": added, "materialised": kept[number % 2]}
            first(source, inner, affine=scale, sums=sums, affine_out=closed[0], **given)
            second(inner, quarter, affine=closed[0], sums=sums, affine_out=closed[1])

    def add(z: torch.Tensor) -> torch.Tensor:
        return apply_affine(z, closed[1], kept[(len(blocks) - 1) % 2])

    def added() -> None:
        layers()
        add(quarter)

    own_sums = sums_of(images, affine.device)
    block_inner, *turns = room(3)
    singles = [ResidualBlocks([block], numbers, ARCH) for block in blocks]

    def one_by_one() -> None:
        for number, kernel in enumerate(singles):
            source = raw if number == 0 else turns[(number - 1) % 2]
            scale = affine if number == 0 else None
            kernel(source, turns[number % 2], inner=block_inner, sums=own_sums, affine=scale)

    stage_inner, spare, out = room(3)
    whole = ResidualBlocks(blocks, numbers, ARCH)

    def stage() -> None:
        whole(raw, out, inner=stage_inner, spare=spare, sums=own_sums, affine=affine)

    made = {"layers": lambda: add(quarter.clone()), "added": lambda: quarter, "stage": lambda: out}
    made["blocks"] = lambda: turns[(len(blocks) - 1) % 2]
    return Ways(layers, added, one_by_one, stage, made)


def measure(count: int, size: tuple[int, int, int], numbers: str, device: str, timed: bool) -> tuple[bool, dict]:
    """Return whether all ways give the same bits twice, and {way: (cold, graph)} in microseconds."""
    torch.manual_seed(0)
    ways = ways_of(blocks_of(count, STORAGE[numbers], device), size, numbers, device)
    bits, times = [], {}
    for name in COMPARED[count]:
        for _ in range(2):
            getattr(ways, name)()
            bits.append(ways.made[name]().clone().view(torch.int16))
        if timed:
            run = getattr(ways, name)
            times[name] = 1e3 * time_cold(graphed(run))[0], 1e3 * time_graph(run)[0]
    return all(torch.equal(one, bits[0]) for one in bits), times


def table(rows: dict[tuple[int, int], dict[str, tuple[float, float]]]) -> str:
    """Return ONE_LAUNCH for what was measured: {(blocks, pixels): {way: (cold, graph)}}."""
    found = {}
    for count, ways in COMPARED.items():
        ranges, begun = [], None
        for (_, pixels), times in sorted(row for row in rows.items() if row[0][0] == count):
            ours, others = times[ways[-1]], [times[way] for way in (ways[1:-1] if count == 1 else ways[:-1])]
            if all(mine < theirs for other in others for mine, theirs in zip(ours, other, strict=True)):
                begun = begun or pixels
                ranges = [*(one for one in ranges if one[0] != begun), (begun, pixels)]
            else:
                begun = None
        found[count] = tuple(ranges)
    return f"ONE_LAUNCH: dict[int, tuple[tuple[int, int], ...]] = {found}"


def report(sizes: tuple, numbers: str, device: str, timed: bool) -> Iterator[bool]:
    """Print a line for each size and number of blocks, and the table; yield whether the bits were right."""
    rows = {}
    if timed:
        print("us, cold and in a graph:")
    for size in sizes:
        for count in COMPARED:
            same, times = measure(count, size, numbers, device, timed)
            rows[count, size[0] * size[1] * size[2]] = times
            name = f"{count} x {'x'.join(map(str, size))} {numbers}"
            figures = "".join(f"   {way} {cold:.1f} {warm:.1f}" for way, (cold, warm) in times.items())
            print(f"{name:24} {'same' if same else 'WRONG':5}{figures}", flush=True)
            yield same
    if timed:
        print(table(rows))


def main(argv: list[str] | None = None) -> int:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", default="float16", choices=["float16", "bfloat16"])
    parser.add_argument("--sizes", default=",".join("x".join(map(str, size)) for size in SIZES), help="BATCHxHxW, ...")
    parser.add_argument("--sanitize", action="store_true", help="small sizes once, compared, not timed")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: small sizes in the emulator")
    options = parser.parse_args(argv)
    if options.dry_run:
        os.environ[DEVICE_VARIABLE] = "emulator"
    elif not gpu.available() or architecture(torch.device("cuda")) != ARCH:
        print("this needs a Hopper card: add --dry-run to try the emulator", file=sys.stderr)
        return 2
    timed = not (options.dry_run or options.sanitize)
    if options.sanitize:  # as on a card of one multiprocessor: a block has several tiles
        residual_blocks_hopper.multiprocessors = lambda _: 1
    sizes = tuple(tuple(int(n) for n in size.split("x")) for size in options.sizes.split(",")) if timed else SMALL
    with torch.inference_mode():
        right = list(report(sizes, options.numbers, "cpu" if options.dry_run else "cuda", timed))
    print("all right" if all(right) else "WRONG bits")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
