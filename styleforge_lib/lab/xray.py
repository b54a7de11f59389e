"""`xray(kernel, grid, block, args)`: what a kernel did, source line by source line, as a profiler would tell it.

Contents
    xray            runs a launch on the emulator and looks
    XRay            what it saw: per line, races, faults, advice; as a table beside the source, and warp by warp
    sample_blocks   which blocks are looked at where the grid is large

Counts are those of PTX, the compiler's intermediate code: ptxas merges, vectorises and predicates instructions later,
so a profiler on a GPU counts others. Sectors and passes belong to the requests, which mostly stay as they are.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable

import numpy as np
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from styleforge_lib.lab.machine import Machine
from styleforge_lib.lab.roofline import Point, RooflineWidget, roofline
from styleforge_lib.lab.xray_findings import Finding, advice, of_fault, of_race
from styleforge_lib.lab.xray_table import as_html, as_text
from styleforge_lib.lab.xray_timeline import draw_timeline
from styleforge_lib.lab.xray_warp import draw_warp
from styleforge_lib.runtime import Kernel
from styleforge_lib.runtime.arguments import array, as_tuple
from styleforge_lib.runtime.emulator import EmulatorFault, LineMetrics
from styleforge_lib.runtime.emulator.program import skew
from styleforge_lib.runtime.emulator.timeline import TimelineTrace

# A look costs up to twenty times a plain run, so that a large grid is sampled.
SAMPLED_THREADS = 16384
SAMPLED_BLOCKS = 64
CACHES_MATTER = 0.05  # from here on the traffic with and without caches are two points of a roofline

Index3 = tuple[int, int, int]


def xray(
    kernel,
    grid,
    block,
    args,
    *,
    shared_bytes: int = 0,
    cooperative: bool = False,
    blocks: Iterable[int | tuple[int, ...]] | None = None,
) -> XRay:
    """Run a launch on the emulator, whatever the kernel's device is, and return what each line did.

    kernel: a Kernel, or a Module with one. grid, block, args, shared_bytes, cooperative: as for a launch. The arguments
    are copied first and keep their values; those that share memory share it in the copy too. blocks: which blocks to
    look at, as linear numbers (x fastest) or (x, y, z); left out, all of a small grid, and of a large one its corners
    and an even sample (all of them where blocks wait for each other). Blocks that are left out do not run.

    A fault of the kernel is not raised but recorded in `.faults`, and the counts end there. TypeError, ValueError: an
    argument or a launch that does not fit, as for a launch. NotImplementedError: an instruction that the emulator does
    not know.
    """
    kernel = kernel.only if hasattr(kernel, "only") else kernel
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel must be a Kernel, or a Module with one, not {type(kernel).__name__}")
    grid3, block3 = three_sizes(grid), three_sizes(block)
    total = grid3[0] * grid3[1] * grid3[2]
    copies = copied_arguments(kernel, args)
    if blocks is None:
        waits = any(step.polls for step in kernel.module.program.plan(kernel.entry).blocks)
        chosen = range(total) if waits or cooperative else sample_blocks(grid3, block3[0] * block3[1] * block3[2])
    else:
        chosen = [_linear(one, grid3) for one in blocks]
        if not chosen:
            raise ValueError("blocks is empty: name at least one block, or leave it out")
    trace, fault = TimelineTrace(), None
    try:
        options = {"shared_bytes": shared_bytes, "cooperative": cooperative}
        kernel.emulate(grid, block, copies, **options, blocks=chosen, trace=trace)
    except EmulatorFault as caught:
        fault = caught
    return XRay(kernel, grid3, block3, tuple(chosen), trace, fault)


def sample_blocks(grid: Index3, threads: int) -> list[int]:
    """Return the linear numbers of the blocks that are looked at: all of a small grid, else its corners and a sample.

    On each axis the two outermost blocks belong to the corners, so that neighbours are among them: a race between two
    blocks is mostly one between neighbours.
    """
    total = grid[0] * grid[1] * grid[2]
    most = max(SAMPLED_BLOCKS, SAMPLED_THREADS // threads)
    if total <= most:
        return list(range(total))
    ends = [sorted({0, min(1, n - 1), max(0, n - 2), n - 1}) for n in grid]
    corners = {x + grid[0] * (y + grid[1] * z) for x, y, z in itertools.product(*ends)}
    return sorted(corners | set(np.linspace(0, total - 1, most // 2).astype(int).tolist()))


class XRay:
    """What a launch did.

    kernel, grid, block: the launch. blocks: linear numbers of those looked at. source: the kernel's text.
    lines: {line: LineMetrics}, executed lines only; line 0 gathers what has no line of its own. total: their sum.
    dram_bytes: {"load": ..., "store": ...}, bytes of the different sectors that these blocks read and wrote: what DRAM
    moves at least, if every cache holds what it was given. intensity: floating-point operations for each such byte.
    races, faults: what is wrong. advice: what is right but asks for more than it needs. stopped: whether a fault ended
    the run, and the counts with it.
    """

    def __init__(self, kernel: Kernel, grid: Index3, block: Index3, blocks: tuple[int, ...], trace, fault):
        self.kernel, self.grid, self.block, self.blocks = kernel.name, grid, block, blocks
        self.source = kernel.module.text
        self.stopped = fault is not None
        self._trace = trace
        self.lines: dict[int, LineMetrics] = {}
        last = len(self.source.splitlines())
        for line, metrics in trace.lines().items():
            self.lines.setdefault(line if line <= last else 0, LineMetrics()).add(metrics)
        self.total = LineMetrics()
        for metrics in self.lines.values():
            self.total.add(metrics)
        self.dram_bytes: dict[str, int] = trace.distinct_bytes
        moved = sum(self.dram_bytes.values())
        self.intensity = sum(self.total.flops.values()) / moved if moved else 0.0
        self.races: tuple[Finding, ...] = tuple(map(of_race, trace.races))
        self.faults: tuple[Finding, ...] = tuple(map(of_fault, [*trace.faults, *([fault] if fault else [])]))
        self.advice: tuple[Finding, ...] = tuple(advice({n: m for n, m in self.lines.items() if n}))

    def show(self) -> None:
        """Show the source with what each line did beside it: a table in a notebook, text in a terminal."""
        if get_ipython() is None:
            print(self)
        else:
            display(self)

    def warp(self, line: int, *, block: int | tuple[int, ...] | None = None, warp: int | None = None) -> Figure:
        """Draw the addresses that one warp touched at a line, into sectors (global) or banks (shared memory).

        block: linear number or (x, y, z); warp: its number in the block; left out, the first that came by. Where a
        loop comes by often, its first turns are drawn as far as they differ. ValueError: no such warp was seen to
        touch memory there.
        """
        seen = self._trace.visits(line)
        if not seen:
            lines = ", ".join(map(str, self._trace.lines_with_addresses())) or "none"
            raise ValueError(f"line {line} touched no global or shared memory; lines that did: {lines}")
        wanted = None if block is None else _linear(block, self.grid)
        chosen = [(b, w) for b, w in seen if wanted in (None, b) and warp in (None, w)]
        if not chosen:
            where = f"block {block if block is not None else 'any'}, warp {warp if warp is not None else 'any'}"
            first = f"block {_index(seen[0][0], self.grid)}, warp {seen[0][1]}"
            raise ValueError(
                f"{where} touched no memory at line {line}, or was not looked at; {len(seen)} warps did, "
                f"for example {first}"
            )
        number, warp = chosen[0]
        text = self.source.splitlines()[line - 1].strip()
        return draw_warp(self._trace.warp(line, number, warp), text, _index(number, self.grid), warp)

    def roofline(self, gpu: str | Machine | None = None, *, milliseconds: float | None = None) -> RooflineWidget:
        """Show the kernel's place under the ceilings of a GPU: the most that its arithmetic intensity allows there.

        gpu: a part of a recorded GPU's name, such as "H200", or a Machine; left out, this machine's, else the recorded
        one. milliseconds: how long the whole launch takes; the point then stands at the rate that was reached. Where
        caches matter there are two points: every sector moved once, and every request moved (no cache at all).
        ValueError: no floating-point operation or no global memory; LookupError: no record of that GPU.
        """
        machine = gpu if isinstance(gpu, Machine) else Machine.measured() if gpu is None else Machine.named(gpu)
        count = sum(self.total.flops.values())
        if not self.intensity:
            lacks = "touched no global memory" if count else "executed no floating-point operation"
            raise ValueError(
                f"{self.kernel} {lacks}, so it has no place under a roofline; minimum, maximum, comparisons and "
                "conversions count none"
            )
        precision = max(self.total.flops, key=self.total.flops.get)
        dtype = "float16" if precision == "bfloat16" and precision not in machine.flops_per_s else precision
        if dtype not in machine.flops_per_s:
            raise ValueError(
                f"{self.kernel} computes in {precision}, and the record of {machine.name} has ceilings for "
                f"{', '.join(machine.flops_per_s)}"
            )
        whole = count * self.grid[0] * self.grid[1] * self.grid[2] / len(self.blocks)
        points = []
        uncached = count / (32 * self.total.sectors)
        both = abs(uncached / self.intensity - 1) > CACHES_MATTER
        for intensity, words in ((self.intensity, "each sector once"), (uncached, "no cache"))[: 1 + both]:
            most = min(machine.flops_per_s[dtype], intensity * machine.bytes_per_s)
            rate = most if milliseconds is None else whole / milliseconds * 1e3
            label = self.kernel + (" at most" if milliseconds is None else "") + (f", {words}" if both else "")
            points.append(Point(label, intensity, rate, dtype))
        return roofline(points, machine)

    def timeline(self, block: int | tuple[int, ...] | None = None) -> Figure:
        """Draw what the warps of a block did in turn: executed, waited at a barrier, waited for a copy.

        block: linear number or (x, y, z); left out, the first that was looked at. ValueError: it was not looked at.
        """
        number = self.blocks[0] if block is None else _linear(block, self.grid)
        if number not in self.blocks:
            raise ValueError(f"block {block} was not looked at: give xray(..., blocks=[{number}])")
        try:
            found = self._trace.timeline(number)
        except LookupError:
            raise ValueError(f"block {block} had not begun when the run ended at a fault") from None
        return draw_timeline(found, self.kernel, _index(number, self.grid))

    def __str__(self) -> str:
        return as_text(self)

    def __repr__(self) -> str:
        return (
            f"<XRay {self.kernel}: {len(self.blocks)} blocks, {len(self.races)} races, {len(self.faults)} faults; "
            "print it, or call show()>"
        )

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, str]:
        return {"text/html": as_html(self), "text/plain": as_text(self)}


def three_sizes(sizes) -> Index3:
    """Return up to three sizes as three; what is wrong with them is said by the launch itself."""
    try:
        given = tuple(operator.index(size) for size in (sizes if isinstance(sizes, (tuple, list)) else (sizes,)))
    except TypeError:
        return (1, 1, 1)
    return (*given, 1, 1, 1)[:3] if all(size > 0 for size in given) else (1, 1, 1)


def _linear(block, grid: Index3) -> int:
    try:
        index = tuple(operator.index(i) for i in block) if isinstance(block, (tuple, list)) else operator.index(block)
    except TypeError:
        raise TypeError(f"a block must be a number or (x, y, z), not {block!r}") from None
    if isinstance(index, int):
        if not 0 <= index < grid[0] * grid[1] * grid[2]:
            raise ValueError(f"block {index} is not in the grid: there are 0 to {grid[0] * grid[1] * grid[2] - 1}")
        return index
    x, y, z = (*index, 0, 0, 0)[:3]
    if len(index) > 3 or not all(0 <= i < n for i, n in zip((x, y, z), grid, strict=True)):
        raise ValueError(f"block {index} is not in the grid {grid}")
    return x + grid[0] * (y + grid[1] * z)


def _index(number: int, grid: Index3) -> Index3:
    return number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1])


def copied_arguments(kernel: Kernel, args) -> list:
    """Return the arguments with every array copied into NumPy memory, after the checks of a launch.

    Arrays that overlap are laid into one piece of memory as they were, and each keeps its alignment: an in-place kernel
    stays one.
    """
    args = list(as_tuple(kernel.name, kernel.parameters, args))
    found = []
    for position, (parameter, value) in enumerate(zip(kernel.parameters, args, strict=True)):
        if parameter.kind == "pointer":
            checked = array(kernel.name, parameter, value)
            if checked.value is not None:
                content, dtype = _bytes(checked.value)
                found.append((checked.device, checked.pointer, position, content, dtype, tuple(value.shape)))
    found.sort(key=lambda one: one[:3])
    pieces: list[list] = []
    for one in found:
        device, start, size = one[0], one[1], one[3].size
        if pieces and pieces[-1][0] == device and start < pieces[-1][2]:
            pieces[-1][2] = max(pieces[-1][2], start + size)
            pieces[-1][3].append(one)
        else:
            pieces.append([device, start, start + size, [one]])
    for _, start, end, members in pieces:
        first = next(args[position] for _, pointer, position, *_ in members if pointer == start)
        piece = _placed(end - start, skew(first) if isinstance(first, np.ndarray) else start % 32)
        for _, pointer, position, content, dtype, shape in members:
            part = piece[pointer - start : pointer - start + content.size]
            part[:] = content
            args[position] = part.view(dtype).reshape(shape)
    return args


def _bytes(value) -> tuple[np.ndarray, np.dtype]:
    """Return an array's bytes on the host and its NumPy dtype; bfloat16, which NumPy lacks, is uint16."""
    if isinstance(value, torch.Tensor):
        content = value.detach().reshape(-1).view(torch.uint8).cpu().numpy()
        name = "uint16" if value.dtype is torch.bfloat16 else str(value.dtype).removeprefix("torch.")
        return content, np.dtype(name)
    value = value if isinstance(value, np.ndarray) else value.get()
    return value.reshape(-1).view(np.uint8), value.dtype


def _placed(size: int, past: int) -> np.ndarray:
    """Return fresh bytes that begin `past` bytes past what the emulator takes for a multiple of 32."""
    return np.empty(size + past, np.uint8)[past:]
