"""Where the time of a TransformerNet goes: every stage timed inside the running network, by torch.profiler.

Contents: profiling (profile), the record of it (as_records, recorded), summing up (by_kind, by_layer, merge_residual).
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median, quantiles

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from styleforge_lib.lab import records
from styleforge_lib.lab.records import Measurement
from styleforge_lib.models.stages import stages
from styleforge_lib.models.transformer_net import TransformerNet

OPERATOR = "transformer_net"
KINDS = ("conv", "norm", "pad", "upsample", "relu", "add")
# The operators that TransformerNet calls, in torch's names; each call is one stage, and they come in the stages' order.
_STAGE_OF = {
    "aten::pad": "pad",
    "aten::reflection_pad2d": "pad",
    "aten::conv2d": "conv",
    "aten::instance_norm": "norm",
    "aten::relu": "relu",
    "aten::add": "add",
    "aten::upsample_nearest2d": "upsample",
}


@dataclass(frozen=True)
class StageTime:
    """Milliseconds of one stage: median and the 20 % and 80 % quantiles over the repeats."""

    layer: str
    kind: str
    ms: float
    p20_ms: float
    p80_ms: float
    flops: int
    bytes: int


@torch.inference_mode()
def profile(net: TransformerNet, x: torch.Tensor, *, repeats: int = 10) -> list[StageTime]:
    """Time each stage of ``net(x)``: on a GPU the time of its kernels, on a CPU the time of its calls."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes its own start and stop to stderr
    device = x.device.type
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    for _ in range(2):
        net(x)
    with torch_profile(activities=activities, acc_events=True) as profiler:  # else newer versions warn
        for _ in range(repeats):
            net(x)
        if device == "cuda":
            torch.cuda.synchronize()
    calls = [event for event in profiler.events() if event.name in _STAGE_OF and not _inside_a_stage(event)]
    calls.sort(key=lambda event: event.time_range.start)
    plan = stages(net, tuple(x.shape))
    kinds = [_STAGE_OF[call.name] for call in calls]
    if kinds != [stage.kind for stage in plan] * repeats:
        raise RuntimeError("torch ran other operators than stages() lists: this profile cannot be told apart by layer")
    total = "device_time_total" if device == "cuda" else "cpu_time_total"
    times = []
    for i, stage in enumerate(plan):
        ms = [getattr(call, total) / 1e3 for call in calls[i :: len(plan)]]
        low, high = (quantiles(ms, n=5, method="inclusive")[j] for j in (0, 3)) if len(ms) > 1 else (ms[0], ms[0])
        bytes_ = stage.elements * x.element_size()
        times.append(StageTime(stage.layer, stage.kind, median(ms), low, high, stage.flops, bytes_))
    return times


def _inside_a_stage(event: object) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name in _STAGE_OF:
            return True
        parent = parent.cpu_parent
    return False


def as_records(times: Iterable[StageTime], *, shape: str, dtype: str, layout: str, run: str) -> list[Measurement]:
    """Turn a profile into rows, one a stage, with ``operator`` "transformer_net.LAYER.KIND"."""
    return [
        Measurement(
            operator=f"{OPERATOR}.{t.layer}.{t.kind}",
            version="eager + benchmark",
            shape=shape,
            dtype=dtype,
            layout=layout,
            method="inside",
            median_ms=t.ms,
            p20_ms=t.p20_ms,
            p80_ms=t.p80_ms,
            flops=t.flops,
            bytes=t.bytes,
            run=run,
            **records.machine(),
        )
        for t in times
    ]


def recorded(*, shape: str, dtype: str, layout: str = "nchw", method: str = "inside") -> tuple[list[StageTime], str]:
    """Return the newest recorded profile and where it was measured ("NVIDIA H200, 2026-11-22").

    ``method`` "inside" has the stages within the running network, "cold" each one alone with the L2 flushed.
    """
    wanted = {"version": "eager + benchmark", "shape": shape, "dtype": dtype, "layout": layout, "method": method}
    rows = records.latest(operator=OPERATOR + ".*", **wanted)
    if not rows:
        raise LookupError(f"no recorded profile of {shape} in {dtype} {layout}: `make bench` on a GPU writes one")
    times = []
    for row in rows:
        layer, _, kind = row.operator.removeprefix(OPERATOR + ".").rpartition(".")
        times.append(StageTime(layer, kind, row.median_ms, row.p20_ms, row.p80_ms, row.flops or 0, row.bytes or 0))
    return times, rows[0].where


def by_kind(times: Iterable[StageTime]) -> dict[str, float]:
    """Sum milliseconds by kind, the largest first."""
    sums: dict[str, float] = defaultdict(float)
    for time in times:
        sums[time.kind] += time.ms
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def by_layer(times: Iterable[StageTime]) -> dict[str, float]:
    """Sum milliseconds by layer, in the network's order."""
    sums: dict[str, float] = defaultdict(float)
    for time in times:
        sums[time.layer] += time.ms
    return dict(sums)


def merge_residual(times: Iterable[StageTime]) -> list[StageTime]:
    """Sum the ten layers of the five residual blocks, which are alike, into one layer "residual x10"."""
    merged: dict[tuple[str, str], StageTime] = {}
    for time in times:
        layer = "residual x10" if time.layer.startswith("res") else time.layer
        have = merged.get((layer, time.kind))
        added = replace(time, layer=layer)
        if have:
            sums = {name: getattr(have, name) + getattr(time, name) for name in ("ms", "p20_ms", "p80_ms")}
            added = replace(added, flops=have.flops + time.flops, bytes=have.bytes + time.bytes, **sums)
        merged[layer, time.kind] = added
    return list(merged.values())
