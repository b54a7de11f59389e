"""Measure the peers on this GPU and append the rows to records/measurements.csv (`make bench`).

Parts: ceilings (copy and matrix product: what the card can do), profile (each stage inside the running network), layers
(each stage on its own), norms (instance norm and its peers, by tools/bench_instance_norm.py), accelerated (the whole
TransformerNet through our kernels, by tools/bench_accelerated.py), host (what our calls cost the CPU, by
tools/bench_host.py), network (the whole TransformerNet: eager, CUDA
graph, torch.compile, by size and precision). All rows of one call are one run.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from bench_accelerated import accelerated
from bench_host import host
from bench_instance_norm import norms
from tqdm import tqdm

from styleforge_lib.lab import records
from styleforge_lib.lab.bench import Candidate, bench
from styleforge_lib.lab.peers import PHOTO, STYLE, bench_peers
from styleforge_lib.lab.photos import photo_tensor
from styleforge_lib.lab.profile import OPERATOR, as_records, profile
from styleforge_lib.models.checkpoints import load_style
from styleforge_lib.models.stages import stages

SIZES = ((256, 256), (512, 512), (1024, 1024), (1080, 1920))
PARTS = ("ceilings", "profile", "layers", "norms", "accelerated", "host", "network")
METHODS = ("cold", "warm")


def ceilings(run: str) -> None:
    """Time a large copy (bytes read plus written) and square matrix products of random numbers."""
    source = torch.randn(1 << 29, device="cuda")  # 2 GiB: far beyond every L2
    target = torch.empty_like(source)
    copy = Candidate(version="copy", run=lambda: target.copy_(source), bytes=2 * source.nbytes)
    bench("ceiling", [copy], shape=str(source.numel()), run=run)
    n = 8192
    a, b = (torch.randn(n, n, device="cuda") for _ in range(2))
    for dtype, tf32 in (("float32", False), ("tf32", True), ("float16", False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x, y = (m.half() if dtype == "float16" else m for m in (a, b))
        product = Candidate(version="matmul", run=lambda x=x, y=y: x @ y, dtype=dtype, flops=2 * n**3)
        bench("ceiling", [product], shape=f"{n}x{n}x{n}", run=run)
    torch.backends.cuda.matmul.allow_tf32 = False


def network(run: str, sizes: list[tuple[int, int]], compiled: bool) -> None:
    """Time the whole network in every way of PyTorch, at each size."""
    for height, width in sizes:
        bench_peers(
            height, width, compiled=compiled, methods=METHODS, run=run, told=lambda line: print(line, flush=True)
        )
        torch.cuda.empty_cache()


def layers(run: str, size: tuple[int, int]) -> None:
    """Time each stage on its own with the L2 flushed: TF32 contiguous, and float16 channels_last."""
    net = load_style(STYLE, "cuda")
    shape = (1, 3, *size)
    for dtype, layout in (("tf32", "nchw"), ("float16", "nhwc")):
        if dtype == "float16":
            net = net.half().to(memory_format=torch.channels_last)
        for stage in tqdm(stages(net, shape), desc=f"layers {dtype}"):
            if stage.layer.startswith(("res2", "res3", "res4", "res5")):
                continue  # the same shapes as res1
            x = torch.randn(stage.in_shape, device="cuda")
            if dtype == "float16":
                x = x.half().to(memory_format=torch.channels_last)
            one = Candidate(
                version="eager + benchmark",
                run=lambda s=stage, x=x: s.run(x),
                dtype=dtype,
                layout=layout,
                bytes=stage.elements * x.element_size(),
                flops=stage.flops or None,
            )
            bench(f"{OPERATOR}.{stage.name}", [one], shape="x".join(map(str, shape)), run=run)


def profiles(run: str, sizes: list[tuple[int, int]]) -> None:
    """Time each stage inside the running network."""
    for height, width in sizes:
        x = photo_tensor(PHOTO, height, width).cuda()
        shape = f"1x3x{height}x{width}"
        net = load_style(STYLE, "cuda")
        records.append(as_records(profile(net, x, repeats=20), shape=shape, dtype="tf32", layout="nchw", run=run))
        net = net.half().to(memory_format=torch.channels_last)
        x = x.half().to(memory_format=torch.channels_last)
        records.append(as_records(profile(net, x, repeats=20), shape=shape, dtype="float16", layout="nhwc", run=run))


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: all)")
    parser.add_argument("--sizes", default=",".join(f"{h}x{w}" for h, w in SIZES), help="HEIGHTxWIDTH, comma-separated")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--records", type=Path, default=records.committed_path(), help="the CSV to append to")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        print("make bench measures, so it needs an NVIDIA GPU; without one the notebooks replay records/.")
        return 1
    os.environ["STYLEFORGE_RECORDS"] = str(arguments.records)
    sizes = [tuple(int(n) for n in size.split("x")) for size in arguments.sizes.split(",")]
    run = records.new_run()
    torch.backends.cudnn.benchmark = True  # the peers that are without it say so
    with torch.inference_mode():
        if "ceilings" in parts:
            ceilings(run)
        if "profile" in parts:
            profiles(run, sizes)
        if "layers" in parts:
            layers(run, (1024, 1024))
        if "norms" in parts:
            norms(run, compiled=not arguments.no_compile)
        if "accelerated" in parts:
            accelerated(run, compiled=not arguments.no_compile)
        if "host" in parts:
            host(run)
        if "network" in parts:
            network(run, sizes, compiled=not arguments.no_compile)
    print(
        f"\n{sum(row.run == run for row in records.read(arguments.records))} rows of run {run} in {arguments.records}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
