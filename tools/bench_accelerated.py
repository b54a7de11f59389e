"""Measure the accelerated network beside its peers, all in one run, and each of its layers.

Contents
    CASES               batch and size of the pictures
    candidates          ours, then PyTorch's ways, on one batch of pictures
    peak_bytes          the memory of a call
    layers              each launch of our plan on its own
    overlapping         the plan with and without launches that overlap, side by side; records nothing
    accelerated         the part `accelerated` of tools/bench.py: measure, append the rows, print the ratios
    main                the command line

    python tools/bench.py --parts accelerated
    python tools/bench_accelerated.py --cases 1x1024x1024,8x512x512 --no-compile
    python tools/bench_accelerated.py --overlap off,on,late      # ours alone, by how its launches follow each other
    python tools/bench_accelerated.py --dry-run       # no GPU: every path once, tiny, in the emulator

Each candidate is timed twice. Cold: the L2 cache is flushed before one call. Graph: ten calls in a CUDA graph, back to
back (calls that hold a graph of their own, eager + graph and torch.compile's max-autotune: back to back, "warm").
Peak: what a call takes at most besides weights and pictures. That is what it allocates beyond what stood before it
(PyTorch's caching allocator counts), and of ours also the buffers that its plan keeps between calls. What such a call's
own graphs keep stands before the call and is not counted. A row of the operator
"transformer_net_memory" and the method "memory" holds the peak as `bytes`, beside the times of the cold call.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from styleforge_lib import acceleration
from styleforge_lib.acceleration import AcceleratedTransformerNet, Plan, accelerate
from styleforge_lib.lab import records
from styleforge_lib.lab.bench import CLOCKS, Candidate, bench, errors, graphed
from styleforge_lib.lab.peers import PHOTO, STYLE
from styleforge_lib.lab.photos import photo_tensor
from styleforge_lib.lab.profile import OPERATOR
from styleforge_lib.lab.records import Measurement
from styleforge_lib.models.checkpoints import load_style
from styleforge_lib.models.stages import stages
from styleforge_lib.ops import conv2d_hopper
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

# Should time end early, it is the last that are missing.
CASES = ((1, 1024, 1024), (1, 512, 512), (1, 1080, 1920), (1, 256, 256), (8, 512, 512))
TINY = ((1, 36, 40), (2, 16, 20))
# numbers, dtype, and whether products of float32 are taken in TF32
OURS = (
    ("float16", torch.float16, True),
    ("bfloat16", torch.bfloat16, True),
    ("tf32", torch.float32, True),
    ("float32", torch.float32, False),
)
LAYERS_AT, SMALLEST = (1, 1024, 1024), (1, 256, 256)
AUTOTUNED, REPLAYED = "compile max-autotune", "eager + graph"
NOT_CAPTURED = (AUTOTUNED, REPLAYED)  # they hold graphs of their own
COMPILED = (("compile", "default"), (AUTOTUNED, "max-autotune"))
# Whether launches overlap, and whether the kernel behind may begin early or late (cuda/conv2d_hopper.cu).
OVERLAPS = {"off": (False, True), "on": (True, True), "late": (True, False)}
ROUNDS = 3  # the ways take turns, so that a card that slows down slows all of them


def pictures(batch: int, height: int, width: int, device: str) -> torch.Tensor:
    """Return a batch of the photo, each a little darker than the one before, so that none is like another."""
    x = photo_tensor(PHOTO, height, width).to(device)
    return torch.cat([x * (1 - number / 16) for number in range(batch)])


def candidates(x: torch.Tensor, compiled: bool, dry: bool) -> Iterator[Candidate]:
    """Yield ours, then the peers, each with its error against float64."""
    net, shape = load_style(STYLE, x.device), (len(x), *x.shape[2:])
    flops = sum(stage.flops for stage in stages(net, tuple(x.shape)))
    reference = net.double()(x.double())
    net.float()

    def candidate(version: str, run: Callable, dtype: str, layout: str = "nhwc") -> Candidate:
        found = errors(run(), reference)
        return Candidate(version=version, run=run, dtype=dtype, layout=layout, flops=flops, **found)

    for numbers, dtype, tf32 in OURS[: 1 if dry else None]:
        fast = accelerate(net, dtype=dtype, tf32=tf32)
        yield candidate("accelerate", Painting(fast, fast, x), numbers)
    fast, bytes_in = accelerate(net), x.round().to(torch.uint8)
    yield candidate("accelerate uint8", Painting(fast, fast.paint, bytes_in), "float16")
    if dry:
        yield candidate("eager", lambda: net(x), "float32", "nchw")
        return
    half, x_half = load_style(STYLE, x.device).half().to(memory_format=torch.channels_last), x.half()
    x_half = x_half.to(memory_format=torch.channels_last)
    peers = (("tf32", "nchw", net, x), ("float32", "nchw", net, x), ("float16", "nhwc", half, x_half))
    # Those that a target names, as each takes the compiler up to a minute: tools/bench.py --parts network has all.
    modes = {"tf32": COMPILED[:1] if shape == LAYERS_AT else (), "float32": (), "float16": COMPILED[1:]}
    modes["float16"] = () if shape == SMALLEST else modes["float16"]
    before = torch.backends.cudnn.allow_tf32
    try:
        for dtype, layout, model, image in peers:
            torch.backends.cudnn.allow_tf32 = dtype != "float32"  # holds until the next candidate is asked for
            yield candidate("eager + benchmark", lambda m=model, i=image: m(i), dtype, layout)
            if dtype != "float32":
                yield candidate(REPLAYED, graphed(lambda m=model, i=image: m(i)), dtype, layout)
            for version, mode in modes[dtype] if compiled else ():
                torch._dynamo.reset()
                made = torch.compile(model, mode=mode, dynamic=False)
                yield candidate(version, lambda m=made, i=image: m(i), dtype, layout)
    finally:
        torch.backends.cudnn.allow_tf32 = before


@dataclass(frozen=True)
class Painting:
    """A call of the accelerated network, which also tells what its plans keep."""

    net: AcceleratedTransformerNet
    paint: Callable[[torch.Tensor], torch.Tensor]
    x: torch.Tensor

    def __call__(self) -> torch.Tensor:
        """Paint."""
        return self.paint(self.x)

    @property
    def kept_bytes(self) -> int:
        """Memory of the plans' buffers, statistics and scales, which stands between calls."""
        return sum(plan.bytes for plan in self.net._plans.values())


def peak_bytes(run: Callable[[], object]) -> int:
    """Return what one call takes at most, once it has been called before: see the top of this file."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before + getattr(run, "kept_bytes", 0)


def layers(x: torch.Tensor) -> Iterator[tuple[str, Candidate]]:
    """Yield (operator, candidate) for each launch of our plan in float16; FLOPs as PyTorch would do the layer."""
    net = load_style(STYLE, x.device)
    costs = {stage.layer: stage.flops for stage in stages(net, tuple(x.shape)) if stage.kind == "conv"}
    fast = accelerate(net)
    plan = Plan(fast._prepared(x.shape, x.device, x.dtype, x.dtype), tuple(x.shape), x.device, x.dtype)
    out = plan.launch(x)
    for step, (source, target, ways) in zip(plan.steps, plan._ways, strict=True):
        source, target = (given if made is None else made for made, given in ((source, x), (target, out)))
        tensors = (source, target, step.kernel.weight, ways.get("residual"), ways.get("materialised"))
        yield (
            f"{OPERATOR}.{step.name}",
            Candidate(
                version=f"accelerate {type(step.kernel).__name__}",
                run=lambda k=step.kernel, s=source, t=target, w=ways: k(s, t, **w),
                dtype="float16",
                layout="nhwc",
                bytes=sum(t.nbytes for t in tensors if t is not None),
                flops=sum(costs[name] for name in step.layers),
            ),
        )


def accelerated(run: str, cases=CASES, *, compiled: bool = True, dry: bool = False) -> list[Measurement]:
    """Measure every case, append the rows to the records as `run`, and print times, errors, memory and ratios."""
    rows: list[Measurement] = []
    device = "cpu" if dry else "cuda"
    x = pictures(*(TINY[0] if dry else LAYERS_AT), device)
    shape = "x".join(map(str, x.shape))
    print(f"\nlayers at {shape:25} {'cold us':>9} {'graph us':>9} {'TFLOP/s':>8}")
    for operator, one in layers(x):
        times = once(one, shape, operator) if dry else timed(one, shape, run, operator)
        cold, warm = (row.median_ms for row in times)
        name = f"{operator.removeprefix(OPERATOR + '.')} {one.version.removeprefix('accelerate ')}"
        print(f"{name:35} {cold * 1e3:9.1f} {warm * 1e3:9.1f} {one.flops / warm / 1e9:8.0f}", flush=True)
        rows += times
    for batch, height, width in TINY if dry else cases:
        x, shape, found = pictures(batch, height, width, device), f"{batch}x3x{height}x{width}", []
        print(f"\n{shape:35} {'cold ms':>9} {'graph ms':>9} {'PSNR dB':>8} {'peak MiB':>9}", flush=True)
        for one in candidates(x, compiled, dry):
            times = once(one, shape) if dry else timed(one, shape, run)
            peak = getattr(one.run, "kept_bytes", 0) if dry else peak_bytes(one.run)
            times.append(replace(times[0], operator=f"{OPERATOR}_memory", method="memory", bytes=peak, flops=None))
            if not dry:
                records.append(times[-1:])
            name = f"{one.version} {one.dtype}"
            cold, warm, _ = (row.median_ms for row in times)
            print(f"{name:35} {cold:9.4f} {warm:9.4f} {one.psnr_db:8.1f} {peak / 2**20:9.1f}", flush=True)
            found.append((name, times, peak))
        ratios(found)
        rows += [row for _, times, _ in found for row in times]
        del x
        if not dry:
            torch._dynamo.reset()
            torch.cuda.empty_cache()
    return rows


def overlapping(cases, ways: list[str], *, dry: bool = False) -> None:
    """Print times of the float16 plan for each way of OVERLAPS, cold and in a graph: the least median of ROUNDS."""
    for batch, height, width in TINY if dry else cases:
        x, made, first = pictures(batch, height, width, "cpu" if dry else "cuda"), {}, None
        for way in ways:
            acceleration.OVERLAP, conv2d_hopper.DEPENDENTS_EARLY = OVERLAPS[way]
            made[way] = accelerate(load_style(STYLE, x.device))
            out = [made[way](x) for _ in range(1 if dry else 3)][-1]  # launched, captured, replayed
            first = out if first is None else first
            if not torch.equal(out, first):
                raise SystemExit(
                    f"{way}: other bits than {ways[0]}: an overlapping launch does not wait for its inputs"
                )
        print(f"\n{batch}x3x{height}x{width}, the same bits:", flush=True)
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(0 if dry else ROUNDS):
            for way, fast in made.items():
                acceleration.OVERLAP, conv2d_hopper.DEPENDENTS_EARLY = OVERLAPS[way]  # a graph's plans are made in it
                run = functools.partial(fast, x)
                for method in ("cold", "graph"):
                    times.setdefault((way, method), []).append(CLOCKS[method](run)[0])
        for way in ways:
            shown = [f"{method} {min(times.get((way, method), [0])):.4f} ms" for method in ("cold", "graph")]
            print(f"  {way:5} {', '.join(shown)}", flush=True)


def timed(one: Candidate, shape: str, run: str, operator: str = OPERATOR) -> list[Measurement]:
    """Return the rows of one candidate: cold, and in a graph where it can be captured."""
    methods = ("cold", "warm" if one.version in NOT_CAPTURED else "graph")
    return bench(
        operator, [one], shape=shape, methods=methods, run=run, peers="tools/bench.py --parts accelerated"
    ).rows


def once(one: Candidate, shape: str, operator: str = OPERATOR) -> list[Measurement]:
    """Return rows of one call by the clock on the wall, which say that it runs and nothing else."""
    start = time.perf_counter()
    one.run()
    ms = 1e3 * (time.perf_counter() - start)
    given = {key: value for key, value in vars(one).items() if key != "run"}
    row = Measurement(operator=operator, shape=shape, method="cold", median_ms=ms, p20_ms=ms, p80_ms=ms, **given)
    return [row, replace(row, method="graph")]


def ratios(found: list[tuple[str, list[Measurement], int]]) -> None:
    """Print how many times faster ours is than each peer, in the same precision and way of timing."""
    for dtype in ("float16", "tf32", "float32"):
        ours = next((times for name, times, _ in found if name == f"accelerate {dtype}"), None)
        for name, times, _ in found if ours else ():
            if times[0].version.startswith("accelerate") or times[0].dtype != dtype:
                continue
            cold, warm = (theirs.median_ms / mine.median_ms for theirs, mine in zip(times[:2], ours, strict=False))
            print(f"  accelerate {dtype} is {cold:.2f}x (cold), {warm:.2f}x (warm) as fast as {name}")


def main(argv: list[str] | None = None) -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join("x".join(map(str, case)) for case in CASES), help="BATCHxHxW, ...")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--overlap", help="only this: the plan by these ways, of off,on,late; nothing is recorded")
    parser.add_argument("--dry-run", action="store_true", help="tiny pictures in the emulator; nothing is recorded")
    arguments = parser.parse_args(argv)
    if arguments.dry_run:
        os.environ[DEVICE_VARIABLE] = "emulator"
    elif not torch.cuda.is_available():
        print("this measures, so it needs an NVIDIA GPU; --dry-run goes through it without one", file=sys.stderr)
        return 2
    else:
        torch.backends.cudnn.benchmark = True
    cases = [tuple(int(n) for n in case.split("x")) for case in arguments.cases.split(",")]
    if arguments.overlap:
        ways = arguments.overlap.split(",")
        if unknown := set(ways) - set(OVERLAPS):
            parser.error(f"--overlap: no way {sorted(unknown)[0]!r}; there are {', '.join(OVERLAPS)}")
        with torch.inference_mode():
            overlapping(cases, ways, dry=arguments.dry_run)
        return 0
    with torch.inference_mode():
        rows = accelerated(records.new_run(), cases, compiled=not arguments.no_compile, dry=arguments.dry_run)
    print(f"{len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
