"""Run compute-sanitizer over every convolution kernel: memcheck, racecheck, initcheck, synccheck.

    python tools/sanitize.py                          # all four, float16; compute-sanitizer comes with the CUDA toolkit
    python tools/sanitize.py --tools memcheck --numbers tf32
    python tools/sanitize.py --dry-run                # print the commands, and run what they look at in the emulator

Each tool watches the launches of our kernels alone (by name) in tools/check_convolutions.py --sanitize, which launches
each kernel of each layer twice on a small ragged picture and holds it against float64, or in
tools/tune_residual_blocks.py --sanitize (Hopper), which holds it against those kernels. Exits with 1 where a tool
complains, with 2 where compute-sanitizer or a GPU is missing.
"""

import argparse
import shutil
import subprocess
import sys

import check_convolutions
from address import ROOT

from styleforge_lib.ops.layer import STORAGE
from styleforge_lib.runtime import gpu

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
KERNELS = {  # parts of their names, and the tool that launches them
    "conv2d": "check_convolutions.py",
    "close_planes": "check_convolutions.py",
    "residual_blocks": "tune_residual_blocks.py",
}
HALVES_ALONE = ("residual_blocks",)  # float16 and bfloat16


def commands(tools: list[str], numbers: str) -> list[list[str]]:
    """Return one command line for each tool and kernel."""
    options = ["--error-exitcode", "1", "--target-processes", "all", "--kernel-name"]
    watched = {kernel: [sys.executable, str(ROOT / "tools" / script)] for kernel, script in KERNELS.items()}
    names = ["--sanitize", "--numbers", numbers]
    return [
        ["compute-sanitizer", "--tool", tool, *options, f"kernel_substring={kernel}", *watched[kernel], *names]
        for tool in tools
        for kernel in KERNELS
        if numbers in ("float16", "bfloat16") or kernel not in HALVES_ALONE
    ]


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
    failed = 0
    for line in lines:
        print(f"== {' '.join(line)}", flush=True)
        failed += subprocess.run(line, check=False).returncode != 0
    print("all clean" if not failed else f"{failed} of {len(lines)} complain")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
