"""Run compute-sanitizer over every convolution kernel: memcheck, racecheck, initcheck, synccheck.

    python tools/sanitize.py                          # all four, float16; compute-sanitizer comes with the CUDA toolkit
    python tools/sanitize.py --tools memcheck --numbers tf32
    python tools/sanitize.py --dry-run                # print the commands, and run what they look at in the emulator

What is watched is tools/check_convolutions.py --sanitize, which launches each kernel of a layer twice on a small ragged
picture and holds it against float64, a process for each layer, so that what stops one hides no other; and
tools/tune_residual_blocks.py --sanitize (Hopper), which holds its kernel against those. Only our kernels are looked at,
by name, and others run at full speed; initcheck looks at all, since what a kernel that it does not see has written
counts as never written. As many processes run at once as the machine has processors. Exits with 1 where a tool
complains, with 2 where compute-sanitizer or a GPU is missing.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import check_convolutions
from address import ROOT

from styleforge_lib.ops.layer import STORAGE
from styleforge_lib.runtime import gpu

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SCRIPTS = ("check_convolutions", "tune_residual_blocks")
LAYERS = tuple(check_convolutions.NETWORK)
OURS = ("conv2d", "close_planes")  # parts of their names
BLOCKS = "residual_blocks"  # float16 and bfloat16


def commands(tools: list[str], numbers: str) -> list[list[str]]:
    """Return one command line for each tool, layer and kernel."""
    given = ["--sanitize", "--numbers", numbers]
    script = {name: [sys.executable, str(ROOT / "tools" / f"{name}.py"), *given] for name in SCRIPTS}
    watched = [(kernel, [*script["check_convolutions"], "--layer", layer]) for layer in LAYERS for kernel in OURS]
    if numbers in ("float16", "bfloat16"):
        watched.append((BLOCKS, script["tune_residual_blocks"]))
    lines: list[list[str]] = []
    for tool in tools:
        for kernel, program in watched:
            ours = [] if tool == "initcheck" else ["--kernel-name", f"kernel_substring={kernel}"]
            options = ["--error-exitcode", "1", "--target-processes", "all", *ours]
            line = ["compute-sanitizer", "--tool", tool, *options, *program]
            if line not in lines:  # initcheck sees all kernels of a layer at once
                lines.append(line)
    return lines


def run(line: list[str]) -> tuple[bool, str]:
    """Run one command; return whether it complains, and what it said."""
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode != 0, f"== {' '.join(line)}\n{done.stdout}"


def main() -> int:
    """Run the tools, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", default=",".join(TOOLS), help="comma-separated")
    parser.add_argument("--numbers", default="float16", choices=list(STORAGE))
    parser.add_argument("--dry-run", action="store_true", help="print the commands; check in the emulator")
    options = parser.parse_args()
    tools = options.tools.split(",")
    if unknown := set(tools) - set(TOOLS):
        parser.error(f"--tools: no {sorted(unknown)[0]!r}; there are {', '.join(TOOLS)}")
    lines = commands(tools, options.numbers)
    if options.dry_run:
        print("\n".join(" ".join(line) for line in lines))
        return check_convolutions.main(["--dry-run", "--numbers", options.numbers])
    if not gpu.available() or shutil.which("compute-sanitizer") is None:
        print("this needs an NVIDIA GPU and compute-sanitizer, of the CUDA toolkit, on the PATH", file=sys.stderr)
        return 2
    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for line, (complains, said) in zip(lines, pool.map(run, lines), strict=True):
            print(said, flush=True)
            failed += [line] if complains else []
    print("\n".join(["", *(f"complains: {' '.join(line)}" for line in failed)]))
    print("all clean" if not failed else f"{len(failed)} of {len(lines)} complain")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
