"""Write docs/coverage.md: which PTX instructions the emulator knows, and which test executes each.

    python tools/coverage_table.py              # run the emulator's tests (a minute or two), write record and page
    python tools/coverage_table.py --page       # the page alone, from records/emulator_coverage.json

The whitelist is the translator's own: its rules say which opcodes there are, and which words they ask for is noted
while the tests run. Tests are noted by what the emulator executes under them (tests/runtime/emulator/executed.py), not
by what their text mentions; of several, the one that executes the fewest other instructions. From then on each test
that the record names is held to it, whenever it runs; and tests/tools/test_coverage_table.py sees that no opcode and no
word is without a test, and that the page is up to date.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from address import ROOT

from styleforge_lib.runtime.emulator.translate import RULES

RECORD = ROOT / "records" / "emulator_coverage.json"
PAGE = ROOT / "docs" / "coverage.md"
TESTS = "tests/runtime/emulator"
TYPES = re.compile(r"[busf]\d+(x2)?$|bf16(x2)?$|tf32$|e4m3(x2)?$|e5m2(x2)?$|pred$")
CONTROL = ("brx", "exit", "ret")  # end a basic block: no rule translates them
TESTS_SHOWN = 3
GROUPS = {
    "moves": "Moves and addresses",
    "integers": "Integer arithmetic",
    "bits": "Logic, shifts, bit fields",
    "packed": "Bytes and half-words in a word",
    "floats": "Floating-point arithmetic",
    "special": "Approximate functions",
    "comparisons": "Comparisons and choices",
    "conversions": "Conversions",
    "memory": "Memory, atomics, fences",
    "async_copies": "Asynchronous copies",
    "hopper": "Hopper",
    "tensor_cores": "Tensor cores",
    "wmma": "Tensor cores as mma.h writes them",
    "warps": "Warps, barriers, system calls",
    "control": "Control flow",
}
REFUSED = (
    ("textures and surfaces (tex, tld4, suld, sust ...)", "read arrays through pointers; `__ldg` for read-only data"),
    ("malloc, free, new, delete inside a kernel", "arrays passed as arguments, shared memory, local arrays"),
    ("tcgen05 (sm_100a), multimem", "wgmma (sm_90a) or mma.sync; one GPU's memory"),
    ("im2col tensor maps, reductions of boxes, sparse or 8-bit wgmma", "boxes of the tiled mode; wgmma of 16 bits"),
    ("st.async, red.async and bulk copies of sm_100 and later", "stores and atomics, then an arrival"),
    (
        "video instructions other than vabsdiff2 and vabsdiff4",
        "the intrinsics (`__vadd4` ...), which are plain integers",
    ),
    ("e2m1, e2m3, e3m2, ue8m0 conversions, stochastic rounding", "e4m3, e5m2, and the header's software conversions"),
    (".xorsign.abs, .oob, min and max of halves as atomics", "plain instructions; a compare-and-swap loop"),
    ("redux of floats (sm_100a)", "shuffles"),
    ("cache policies (.L2::cache_hint) of ld, st, atom", "the same access without a policy"),
)


def words_of(name: str) -> tuple[str, list[str]]:
    """Return an instruction's opcode and what follows it."""
    opcode, *words = name.split(".")
    return opcode, words


def spelled(word: str) -> str:
    """Return a modifier as PTX spells it: the emulator writes `::` as `_`."""
    if word == "mbarrier_complete_tx_bytes":
        return "mbarrier::complete_tx::bytes"
    return re.sub(r"^(shared|param|L1|L2)_", r"\1::", word)


def group_of(opcode: str) -> str:
    """Return the file of the rule that translates an opcode."""
    return RULES[opcode].__module__.rpartition(".")[2] if opcode in RULES else "control"


def without_test(record: dict) -> list[str]:
    """Return the opcodes of the whitelist, and the words that its rules ask for, that no test executes."""
    executed: dict[str, set[str]] = {}
    for name in record["witnesses"]:
        opcode, words = words_of(name)
        executed.setdefault(opcode, set()).update(words)
    missing = [opcode for opcode in sorted({*RULES, *CONTROL}) if opcode not in executed]
    for opcode, words in record["asked"].items():
        missing += [f"{opcode}.{spelled(word)}" for word in words if word not in executed.get(opcode, set())]
    return missing


def page(record: dict) -> str:
    """Return docs/coverage.md."""
    forms: dict[str, dict[str, str]] = {}
    for name, test in record["witnesses"].items():
        forms.setdefault(words_of(name)[0], {})[name] = test
    lines = [
        "# What the emulator executes",
        "",
        "Written by `python tools/coverage_table.py` from the translator's rules and from what the emulator's tests",
        "execute; do not edit. An instruction is on this page because a test has run it and checked its result.",
        "Whatever is not here is refused when the kernel is translated, by its full name, with its source line.",
        "",
        f"**{len(forms)} opcodes, {len(record['witnesses'])} forms** (an opcode with its modifiers and type).",
        "",
        "`tools/compare_devices.py` runs the same instructions on a card and compares the bits;",
        "for approximate instructions it records the largest error beside what the manual promises",
        "(`records/compare_devices.json`).",
    ]
    for group, title in GROUPS.items():
        opcodes = sorted(opcode for opcode in forms if group_of(opcode) == group)
        if not opcodes:
            continue
        lines += ["", f"## {title}", "", "| opcode | types | modifiers | forms | tests |", "|---|---|---|---:|---|"]
        lines += [_row(opcode, forms[opcode]) for opcode in opcodes]
    lines += ["", "## Refused, and what to use instead", "", "| refused | instead |", "|---|---|"]
    lines += [f"| {what} | {instead} |" for what, instead in REFUSED]
    return "\n".join(lines) + "\n"


def _row(opcode: str, forms: dict[str, str]) -> str:
    words = {word for name in forms for word in words_of(name)[1]}
    types = sorted(
        (word for word in words if TYPES.match(word)), key=lambda word: (re.sub(r"\d.*", "", word), len(word), word)
    )
    others = sorted(spelled(word) for word in words if not TYPES.match(word))
    functions = sorted({re.sub(r"\[.*", "", test).removeprefix(f"{TESTS}/") for test in forms.values()})
    shown = [f"`{function.replace('.py::', '::')}`" for function in functions[:TESTS_SHOWN]]
    more = f" and {len(functions) - TESTS_SHOWN} more" if len(functions) > TESTS_SHOWN else ""
    return f"| `{opcode}` | {' '.join(types)} | {' '.join(others)} | {len(forms)} | {', '.join(shown)}{more} |"


def main(argv: list[str] | None = None) -> int:
    """Record, write the page, and return the exit status."""
    parser = argparse.ArgumentParser(description="Which instructions does the emulator know, and which test runs each?")
    parser.add_argument("--page", action="store_true", help="do not run the tests: the page alone, from the record")
    options = parser.parse_args(argv)
    if not options.page:
        command = [sys.executable, "-m", "pytest", "-q", TESTS, "--record-executed", str(RECORD)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status:
            return status
    record = json.loads(RECORD.read_text("utf-8"))
    Path(PAGE).write_text(page(record), "utf-8")
    missing = without_test(record)
    print(f"{PAGE.relative_to(ROOT)}: {len(record['witnesses'])} forms")
    if missing:
        print(f"without a test: {', '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
