"""What a kernel may spend, counted on the emulator whatever device it runs on: `check(..., budget=Budget(...))`.

Contents
    Budget      the limits
    Spending    what the launches of one call spent
    spending    counts a call
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from styleforge_lib.lab.xray import copied_arguments, three_sizes
from styleforge_lib.lab.xray_findings import figure
from styleforge_lib.runtime import Kernel
from styleforge_lib.runtime.emulator import LineMetrics, Trace
from styleforge_lib.runtime.kernel import watching

ROUNDING = 1e-9  # of a quotient of two counts


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a kernel may spend in each case; None is no limit.

    loads_per_thread: loads from global memory that a thread executes (a float4 is one), on average over the warps.
    barriers: barriers that a thread of a block comes to, __syncthreads() and its kin, on average over the warps.
    bytes_read_per_output: bytes that the threads ask of global memory for each element of the outputs.
    local_memory: whether arrays and spilled registers may live in memory. Counts are those of PTX.
    """

    loads_per_thread: float | None = None
    barriers: float | None = None
    bytes_read_per_output: float | None = None
    local_memory: bool = True

    def __post_init__(self):
        for name in ("loads_per_thread", "barriers", "bytes_read_per_output"):
            limit = getattr(self, name)
            if limit is not None and not limit >= 0:
                raise ValueError(f"budget: {name} must be a number that is not negative, or None, got {limit!r}")

    def overspent(self, spent: "Spending") -> str:
        """Return in words what is over the budget, with the line that spends most; "" if nothing is."""
        if not spent.launches:
            return "no kernel was launched, and a budget is for kernels"
        reads = ("global", "load")
        for spends, limit, unit, of_line in (
            (spent.loads_per_thread, self.loads_per_thread, "global load", lambda m: _requests(m, reads)),
            (spent.barriers, self.barriers, "barrier", lambda m: m.barriers),
        ):
            if limit is not None and spends > limit + ROUNDING:
                return f"{_count(spends, unit)} a thread, {figure(limit)} allowed{spent.most(of_line)}"
        limit = self.bytes_read_per_output
        if limit is not None and spent.bytes_read_per_output > limit + ROUNDING:
            line = spent.most(lambda m: m.accesses[reads].bytes if reads in m.accesses else 0)
            return f"{figure(spent.bytes_read_per_output)} bytes read for each output, {figure(limit)} allowed{line}"
        if not self.local_memory and spent.local_bytes:
            line = spent.most(lambda m: m.bytes.get("local", 0))
            return f"{spent.local_bytes:,} bytes of local memory used, none allowed{line}"
        return ""


class Spending:
    """What the launches of one call spent. lines: metrics by (kernel, line)."""

    def __init__(self, outputs: int):
        self.outputs, self.launches, self.warps = outputs, 0, 0
        self.lines: dict[tuple[str, int], LineMetrics] = {}
        self.total = LineMetrics()

    def add(self, kernel: Kernel, grid, block, args, *, shared_bytes: int, cooperative: bool) -> None:
        """Run a launch on the emulator, on copies of its arguments, and count."""
        trace = Trace(races=False)
        copies = copied_arguments(kernel, args)
        kernel.emulate(grid, block, copies, shared_bytes=shared_bytes, cooperative=cooperative, trace=trace)
        blocks, threads = math.prod(three_sizes(grid)), math.prod(three_sizes(block))
        self.launches += 1
        self.warps += blocks * -(-threads // 32)
        for line, metrics in trace.lines().items():
            self.lines.setdefault((kernel.name, line), LineMetrics()).add(metrics)
            self.total.add(metrics)

    @property
    def loads_per_thread(self) -> float:
        """Global loads for each thread, on average over the warps."""
        return _requests(self.total, ("global", "load")) / self.warps

    @property
    def barriers(self) -> float:
        """Barriers for each thread, on average over the warps."""
        return self.total.barriers / self.warps

    @property
    def bytes_read_per_output(self) -> float:
        """Bytes asked of global memory for each element of the outputs."""
        asked = self.total.accesses.get(("global", "load"))
        return asked.bytes / self.outputs if asked else 0.0

    @property
    def local_bytes(self) -> int:
        """Bytes asked of local memory."""
        return self.total.bytes.get("local", 0)

    def most(self, of_line: Callable[[LineMetrics], float]) -> str:
        """Name the line that spends most."""
        kernel, line = max(self.lines, key=lambda key: of_line(self.lines[key]))
        return f"; most at line {line} of {kernel}" if line else ""


def spending(call: Callable[[], object], outputs: list[torch.Tensor]) -> Spending:
    """Run a call and count what its launches spend."""
    spent = Spending(sum(out.numel() for out in outputs))
    with watching(spent.add):
        call()
    return spent


def _requests(metrics: LineMetrics, access: tuple[str, str]) -> int:
    return metrics.accesses[access].requests if access in metrics.accesses else 0


def _count(value: float, unit: str) -> str:
    return f"{figure(value)} {unit}{'s' * (value != 1)}"
