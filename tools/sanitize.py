"""Run compute-sanitizer over the kernels of the library: memcheck, racecheck, initcheck, synccheck.

    python tools/sanitize.py                          # all four; compute-sanitizer comes with the CUDA toolkit
    python tools/sanitize.py --tools memcheck --numbers tf32
    python tools/sanitize.py --dry-run                # print the commands, and run what they look at in the emulator

What is watched is tools/check_convolutions.py --sanitize, which launches each kernel of a layer twice on a small ragged
picture, by few blocks, so that each goes through several tiles, a process for each layer and each kind of numbers, so
that what stops one hides no other, and once more what a card of Turing runs; tools/check_network.py, the whole network,
launch by launch and as a graph of launches that overlap, and the drop-in modules; tools/tune_residual_blocks.py
--sanitize (16-bit numbers on Hopper); tools/check_instance_norm.py --sanitize, forward and backward; and
tools/check_operators.py for the elementwise operators. References are computed on the CPU. racecheck looks at shared
memory alone: that kernels which overlap do not disturb each other in global memory, equal bits say, and no tool. As
many processes run at once as the machine has processors. A line for each run, with all that it said where it is not
clean. Exits with 1 where one is not, with 2 where compute-sanitizer or a GPU is missing.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date

import check_convolutions
from address import ROOT

from styleforge_lib.lab import records
from styleforge_lib.ops.layer import STORAGE
from styleforge_lib.runtime import gpu

# What a tool ends with: without it, it watched nothing.
CLEAN = ("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
LAYERS = tuple(check_convolutions.NETWORK)
OLDEST = ("--arch", "sm_75", "--numbers", "float16")  # its tensor cores take no others; no asynchronous copies


@dataclass(frozen=True)
class Watched:
    """A program under one tool: a script of tools/, and what it is given."""

    tool: str
    program: tuple[str, ...]

    def command(self) -> list[str]:
        """Return the command line."""
        script, *given = self.program
        options = ["--tool", self.tool, "--error-exitcode", "1", "--target-processes", "all"]
        return ["compute-sanitizer", *options, sys.executable, str(ROOT / "tools" / script), *given]

    def __str__(self) -> str:
        return f"{self.tool:10} {' '.join(self.program)}"


def watched(tools: Iterable[str], numbers: Iterable[str]) -> list[Watched]:
    """Return what is to run: each tool with norms, operators, and of each kind of numbers network, blocks, layers."""
    found = []
    for tool in tools:
        found.append(Watched(tool, ("check_instance_norm.py", "--sanitize")))  # the longest comes first
        found.append(Watched(tool, ("check_operators.py", "relu", "residual_add")))
        for kind in numbers:
            found.append(Watched(tool, ("check_network.py", "--numbers", kind)))
            given = ("--sanitize", "--numbers", kind)
            if kind in ("float16", "bfloat16"):
                found.append(Watched(tool, ("tune_residual_blocks.py", *given)))
            found += [Watched(tool, ("check_convolutions.py", *given, "--layer", layer)) for layer in LAYERS]
        found.append(Watched(tool, ("check_convolutions.py", "--sanitize", *OLDEST)))
    return found


def run(one: Watched) -> tuple[bool, str]:
    """Run one command; return whether it is clean, and what it said."""
    done = subprocess.run(
        one.command(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # for the references: each processor has a process already
    )
    return done.returncode == 0 and any(words in done.stdout for words in CLEAN), done.stdout


def main() -> int:
    """Run the tools, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", default=",".join(TOOLS), help="comma-separated")
    parser.add_argument("--numbers", default=",".join(STORAGE), help="comma-separated")
    parser.add_argument("--dry-run", action="store_true", help="print the commands; check in the emulator")
    options = parser.parse_args()
    tools, numbers = options.tools.split(","), options.numbers.split(",")
    for option, given, known in (("--tools", tools, TOOLS), ("--numbers", numbers, STORAGE)):
        if unknown := set(given) - set(known):
            parser.error(f"{option}: no {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    programs = watched(tools, numbers)
    if options.dry_run:
        print("\n".join(" ".join(one.command()) for one in programs))
        return max(check_convolutions.main(["--dry-run", "--numbers", kind]) for kind in numbers)
    if not gpu.available() or shutil.which("compute-sanitizer") is None:
        print("this needs an NVIDIA GPU and compute-sanitizer, of the CUDA toolkit, on the PATH", file=sys.stderr)
        return 2
    card = records.machine()
    print(f"compute-sanitizer on an {card['gpu']} (driver {card['driver']}, CUDA {card['cuda']}), {date.today()}\n")
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for one, (clean, said) in zip(programs, pool.map(run, programs), strict=True):
            print(f"{'clean' if clean else 'FAIL '} {one}" + ("" if clean else f"\n{said}"), flush=True)
            failed += not clean
    print("all clean" if not failed else f"{failed} of {len(programs)} are not clean")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
