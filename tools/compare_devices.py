"""Compare the emulator with a GPU: every kernel of the lessons, of cuda/ and of the probes, on the same data.

Contents
    hostile         data that find what random numbers hide
    Buffers         the arguments of one launch, between margins, to be copied to each device
    difference      two results, bit for bit
    compare         one kernel, at each of its sizes
    compare_all     every kernel, in this process
    outlived        the same in processes of their own: an error that costs one the card, or its life, hides no other
    main            the command line

kernel_sources.py finds the kernels, kernel_plans.py says how each is launched.

    python tools/compare_devices.py --json compare_devices.json
    python tools/compare_devices.py --from store_probes --only box_stores
    python tools/compare_devices.py --dry-run         # no GPU: the emulator alone, from the code of three architectures

The emulator executes the PTX that the GPU's code was made from. An exact kernel must give the same bits, all NaN being
alike; of an approximate one (`within`) the largest difference is shown and held to a bound. What the manual promises of
approximate instructions is held against float64, on the GPU and in the emulator (`approximations`). Margins around the
arrays are compared as well, so that a write outside is a difference. An exact kernel may not leave it to the compiler
either whether a product is rounded before it is added (`fusible`). A kernel that faults in the emulator is not run on
the GPU. One that faults there alone (an illegal instruction, an address) takes the card from its process: it is
reported, and a new process goes on with the next.
Exits with 1 where a kernel differs, fails or has no plan, with 2 without a GPU.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from approximations import Approximation, errors
from fusible import fusible
from kernel_plans import Plan, plan_of, whole_numbers
from kernel_sources import Source, sources
from tqdm import tqdm

from styleforge_lib.lab import records
from styleforge_lib.ops.cases import SPECIAL_VALUES, drawn_from, magnitudes, normal
from styleforge_lib.runtime import gpu
from styleforge_lib.runtime.kernel import Kernel
from styleforge_lib.runtime.tensor_maps import tensor_map

ARCHITECTURES = ("sm_80", "sm_75", "sm_90a")  # of a dry run: those of the library's tests; the first is the yardstick
MARGIN = 64  # elements before and behind every array
POISON = 0x7FF5  # as 16, 32 or 64 bits a NaN: what outputs hold before the launch
PIPE = "STYLEFORGE_COMPARE_PIPE"  # the file descriptor on which a process tells its rows
LOST = 75  # its exit status where it has lost the card
EXAMPLES = 3  # differing elements that a report shows


# ----------------------------------------------------------------------------------------------------------------------
# Data


def hostile(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Fill with a mixture: ordinary numbers, all magnitudes, each kind of special value, and random bits."""
    (count,) = shape
    if dtype.is_floating_point:
        fills = [normal(), normal(4000, 0.5), magnitudes, *SPECIAL_VALUES.values(), drawn_from(_ties), random_bits]
    else:
        info = torch.iinfo(dtype)
        ends = torch.tensor([info.min, info.min + 1, info.max - 1, info.max, 0, 1, 2, 31, 32, 33], dtype=_wide(dtype))
        fills = [lambda shape, generator, _: ends[torch.randint(0, len(ends), shape, generator=generator)].to(dtype)]
        fills += [whole_numbers(0, 40), random_bits, random_bits]
    each = -(-count // len(fills)) + 1
    pool = torch.cat([fill((each,), generator, dtype).view(_bits(dtype)) for fill in fills])
    return pool[torch.randperm(len(pool), generator=generator)[:count]].view(dtype)


def _ties(info: torch.finfo) -> list[float]:
    """Numbers that lie between two neighbours when they are rounded to integers, or added to ones of their size."""
    return [0.5, 1.5, 2.5, -0.5, -1.5, 1 + info.eps, 1 - info.eps / 2, 1 / info.eps, 255.5, 3.0, 1 / 3, 2.0**15 - 0.5]


def random_bits(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Fill with any bits at all."""
    signed = _bits(dtype)
    info = torch.iinfo(signed)
    return torch.randint(info.min, info.max, shape, generator=generator, dtype=signed).view(dtype)


def _bits(dtype: torch.dtype) -> torch.dtype:
    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.uint64 if dtype is torch.uint64 else torch.int64


class Buffers:
    """The arguments of one launch. Every array lies between margins of poison, which no kernel may touch."""

    def __init__(self, kernel: Kernel, plan: Plan, n: int, offset: int):
        generator, self._plan, self._n = torch.Generator().manual_seed(n), plan, n
        self.whole: dict[str, torch.Tensor] = {}
        self.part: dict[str, slice] = {}
        self._numbers: dict[str, float] = {}
        for parameter in kernel.parameters:
            name = parameter.name
            if name in plan.maps:
                continue
            if parameter.kind != "pointer":
                self._numbers[name] = n if name == "n" else plan.numbers[name]
                continue
            dtype, count = getattr(torch, parameter.dtype), plan.lengths.get(name, n * plan.rows.get(name, 1))
            words = (2 * MARGIN + offset + count) * dtype.itemsize
            words = torch.full((-(-words // 2),), POISON, dtype=torch.int16).view(torch.int8)
            whole = words[: len(words) - len(words) % dtype.itemsize].view(dtype)
            part = slice(MARGIN + offset, MARGIN + offset + count)
            if name in plan.start:
                whole[part] = plan.start[name]
            elif parameter.const:
                whole.view(_bits(dtype))[part] = plan.data.get(name, hostile)((count,), generator, dtype).view(
                    _bits(dtype)
                )
            self.whole[name], self.part[name] = whole, part
        self._order = [parameter.name for parameter in kernel.parameters]

    def run(self, launch: Callable, device: str) -> dict[str, torch.Tensor]:
        """Copy the arrays to a device, launch there, and return what they then hold, margins and all."""
        held = {name: whole.clone().to(device) for name, whole in self.whole.items()}
        values = {name: held[name][self.part[name]] for name in held} | self._numbers
        for name, about in self._plan.maps.items():
            values[name] = tensor_map(values[about.array].view(about.shape), about.box, **about.options)
        args = tuple(values[name] for name in self._order)
        options = {"shared_bytes": self._plan.shared_bytes, "cooperative": self._plan.cooperative}
        launch(self._plan.grid(self._n), self._plan.block, args, **options)
        if device != "cpu":
            torch.cuda.synchronize()
        return {name: whole.cpu() for name, whole in held.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Comparing


INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}


def difference(a: torch.Tensor, b: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return where two results differ, all NaN being alike, and by how many ulp (for a NaN and a number: by all)."""
    width = a.dtype.itemsize
    top = np.uint64(1 << (8 * width - 1))
    x, y = (t.view(_bits(a.dtype)).numpy().view(f"u{width}").astype(np.uint64) for t in (a, b))
    if not a.dtype.is_floating_point:
        return x != y, np.zeros(len(x))
    nan = [(bits & (top - np.uint64(1))) > np.uint64(INFINITY[a.dtype]) for bits in (x, y)]
    differs = (x != y) & ~(nan[0] & nan[1])
    everything = np.uint64(2 * int(top) - 1)
    keys = [np.where(bits & top, bits ^ everything, bits | top) for bits in (x, y)]  # in the order of the numbers
    ulp = (np.maximum(*keys) - np.minimum(*keys)).astype(float)
    ulp[nan[0] ^ nan[1]] = float(everything)
    return differs, np.where(differs, ulp, 0)


def too_far(a: torch.Tensor, b: torch.Tensor, within: float) -> np.ndarray:
    """Return where two results differ by more than an approximate kernel may."""
    x, y = (t.double().numpy() for t in (a, b))
    with np.errstate(invalid="ignore"):
        near = np.abs(x - y) <= within * np.maximum(1, np.abs(x))
    return ~(near | (x == y) | (np.isnan(x) & np.isnan(y)))


@dataclass
class Row:
    """The outcome of one kernel: elements compared, how many differ, the largest difference in ulp, the verdict.

    Of an approximate instruction also what is promised of it, and the largest error against float64, on the GPU (in a
    dry run: of the code for another architecture) and in the emulator, as a multiple of that.
    """

    kernel: str
    source: str
    elements: int = 0
    differing: int = 0
    largest_ulp: float = 0.0
    promised: str = ""
    largest_error: float = 0.0
    emulator_error: float = 0.0
    verdict: str = "same"
    said: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the devices agree as they should."""
        return self.verdict in ("same", "close", "skipped")

    def hold(self, plan: Plan, buffers: Buffers, n: int, one: dict, other: dict, who: str) -> None:
        """Compare what two devices made of the same arguments."""
        for name, a in one.items():
            differs, ulp = difference(a, other[name])
            self.elements += len(a) - 2 * MARGIN
            self.differing += int(differs.sum())
            self.largest_ulp = max(self.largest_ulp, float(ulp.max(initial=0)))
            wrong = differs if plan.within is None else too_far(a, other[name], plan.within)
            if plan.promise is not None:
                wrong = self._hold_promise(plan.promise, buffers, name, a, other[name])
            if differs.any() and self.passed:
                self.verdict = "close"
            if wrong.any():
                self.verdict = "DIFFERENT"
                self.said += self._examples(buffers, n, name, wrong, a, other[name], who)

    def _hold_promise(self, promise: Approximation, buffers: "Buffers", name: str, a, b) -> np.ndarray:
        """Note how far two devices are from the exact values; return where either breaks the promise."""
        if name != "out":
            return difference(a, b)[0]
        self.promised = f"{promise.instruction}: {promise.kind} {promise.promised:.4g}"
        x, part = buffers.whole["x"][buffers.part["x"]], buffers.part["out"]
        mine, others = (errors(promise, x, whole[part]) for whole in (a, b))
        self.emulator_error = max(self.emulator_error, float(mine.max()))
        self.largest_error = max(self.largest_error, float(others.max()))
        wrong = np.zeros(len(a), bool)
        wrong[part] = np.maximum(mine, others) > 1
        return wrong

    def _examples(self, buffers: Buffers, n: int, name: str, wrong: np.ndarray, a, b, who: str) -> str:
        start = buffers.part[name].start
        places = np.flatnonzero(wrong) - start
        rows = dict(zip(*np.unique(places // n, return_counts=True), strict=True))
        words = f"n={n}: {name} differs in {len(places)}, by row { ({int(k): int(v) for k, v in rows.items()}) }: "
        for at in [places[places // n == row][0] for row in list(rows)[:EXAMPLES]]:
            inputs = [
                f"{key}={_figure(whole[buffers.part[key]][at % n])}"
                for key, whole in buffers.whole.items()
                if key != name and whole[buffers.part[key]].numel() > at % n
            ]
            values = f"{_figure(a[at + start])} in the emulator, {_figure(b[at + start])} {who}"
            words += f"[row {at // n}, {at % n}] {values} ({', '.join(inputs)}); "
        return words


def _figure(value: torch.Tensor) -> str:
    bits = int(value.view(_bits(value.dtype))) & (1 << (8 * value.dtype.itemsize)) - 1
    return f"{value.item():.9g} 0x{bits:x}" if value.dtype.is_floating_point else f"{value.item()}"


def compare(source: Source, kernels: list[Kernel], dry: bool) -> Row:
    """Run a kernel at each of its sizes; what goes wrong is the row's verdict.

    kernels: the same one, compiled for each architecture; the first is the yardstick. dry: hold the emulator against
    itself, once more and with the code of the other architectures, else against the GPU.
    """
    began, row = time.perf_counter(), Row(kernels[0].name, source.place)
    try:
        plan, written = plan_of(kernels[0], source), False
        row.said = plan.why
        for n, offset in ((n, offset) for n in plan.sizes for offset in plan.offsets):
            buffers = Buffers(kernels[0], plan, n, offset)
            emulated = buffers.run(kernels[0].emulate, "cpu")
            written |= any(difference(emulated[name], whole)[0].any() for name, whole in buffers.whole.items())
            for kernel in kernels[1:] + kernels[:1] if dry else kernels:
                other = buffers.run(kernel.emulate, "cpu") if dry else buffers.run(kernel, "cuda")
                row.hold(plan, buffers, n, emulated, other, kernel.module.arch if dry else "on the GPU")
        exact = plan.within is None and plan.promise is None
        left_open = [pair for k in kernels for pair in fusible(k.module.ptx).get(k.name, ())] if exact else []
        if left_open and row.passed:
            row.verdict = "LEFT OPEN"
            row.said += (
                f"exact, but whoever compiles may fuse a product and a sum ({left_open[0]}): write fmaf or __fmul_rn"
            )
        if not written and kernels[0].parameters and not source.gap:
            raise ValueError("it wrote nothing, so nothing was compared: give it other arguments in PLANS")
        if not written:
            row.said = row.said or "an exercise: nothing is written yet"
    except Exception as error:  # whatever it is, the other kernels are still compared
        row.verdict, row.said = "ERROR", f"{type(error).__name__}: {error}"
    row.seconds = round(time.perf_counter() - began, 3)
    return row


# ----------------------------------------------------------------------------------------------------------------------
# The command line


def compare_all(found: list[Source], only: str, dry: bool, done: int = 0) -> Iterator[Row]:
    """Yield the row of each kernel but the first `done`; a text that does not compile is one row."""
    numbers = itertools.count()
    for source in found:
        try:
            modules = [source.compile(arch) for arch in (ARCHITECTURES if dry else (None,))]
            names = [name for name in modules[0].kernels if only in f"{source.place}:{name}"]
            skipped = source.arch and not dry and source.arch != gpu.card_arch()
            versions = {} if skipped else {name: [module.kernel(name) for module in modules] for name in names}
        except Exception as error:
            if next(numbers) >= done:
                yield Row("-", source.place, verdict="ERROR", said=f"{type(error).__name__}: {error}")
            continue
        for name in names:
            if next(numbers) < done:
                continue
            if skipped:
                said = f"it is for {source.arch}, and this card is {gpu.card_arch()}"
                yield Row(name, source.place, verdict="skipped", said=said)
            else:
                told(begun=f"{source.place}:{name}")
                yield compare(source, versions[name], dry)


def told(**what: object) -> None:
    """Tell the process that started this one, if one did, how far it is: a line of JSON on a pipe of its own."""
    if PIPE in os.environ:
        os.write(int(os.environ[PIPE]), (json.dumps(what) + "\n").encode())


def tell_all(found: list[Source], only: str, done: int) -> int:
    """Compare for another process: tell it each row; return LOST where an error took the card from this one."""
    for row in compare_all(found, only, False, done):
        told(row=asdict(row))
        if row.verdict == "ERROR" and lost():
            return LOST
    return 0


def lost() -> bool:
    """Return whether nothing can run on the card any more, in this process."""
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except RuntimeError:
        return True
    return False


def outlived(command: list[str]) -> Iterator[Row]:
    """Yield the row of each kernel from processes of `command`, to which the number of rows that are there is added.

    Where one is lost with the card, the next one goes on; where it ends in the middle of a kernel, that is its row.
    """
    done = 0
    while True:
        reading, writing = os.pipe()
        child = subprocess.Popen([*command, str(done)], env={**os.environ, PIPE: str(writing)}, pass_fds=[writing])
        os.close(writing)
        begun, before = None, done
        with open(reading, encoding="utf-8") as lines:
            for line in lines:
                message = json.loads(line)
                begun = message.get("begun")
                if "row" in message:
                    done += 1
                    yield Row(**message["row"])
        status = child.wait()
        if status == 0:
            return
        if begun is not None:
            place, _, name = begun.rpartition(":")
            done += 1
            yield Row(name, place, verdict="ERROR", said=f"its process ended in the middle of it, with status {status}")
        elif done == before:
            yield Row("-", "-", verdict="ERROR", said=f"a process ended with status {status} before any kernel")
            return


def table(rows: list[Row]) -> str:
    """Write the rows in columns."""
    lines = [f"{'kernel':26} {'elements':>9} {'differing':>9} {'ulp':>8}  {'verdict':10} source"]
    for row in rows:
        figures = f"{row.elements:9} {row.differing:9} {row.largest_ulp:8.3g}"
        lines.append(f"{row.kernel:26} {figures}  {row.verdict:10} {row.source}")
        if row.promised:
            figures = f"{row.largest_error:.3f} of it here, {row.emulator_error:.3f} in the emulator"
            lines.append(f"    promised {row.promised}; the largest error is {figures}")
        if row.said:
            lines.append(f"    {row.said}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Compare, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description="Do the emulator and a GPU give the same results?")
    parser.add_argument("--json", metavar="PATH", type=Path, help="write the table there, too")
    parser.add_argument("--only", metavar="WORD", default="", help='kernels whose "source:name" holds this word')
    parser.add_argument("--from", metavar="WORD", dest="place", default="", help="texts whose path holds this word")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help=f"without a GPU: collect and compile everything for {', '.join(ARCHITECTURES)}, and emulate it",
    )
    parser.add_argument("--tell-from", metavar="NUMBER", type=int, help=argparse.SUPPRESS)  # a process of `outlived`
    options = parser.parse_args(argv)
    if not options.dry_run and not gpu.available():
        print("no NVIDIA GPU here: add --dry-run to try the emulator alone", file=sys.stderr)
        return 2
    chosen = [source for source in sources() if options.place in source.place]
    if options.tell_from is not None:
        return tell_all(chosen, options.only, options.tell_from)
    command = [sys.executable, __file__, "--from", options.place, "--only", options.only, "--tell-from"]
    found = compare_all(chosen, options.only, True) if options.dry_run else outlived(command)
    rows = list(tqdm(found, unit=" kernels", file=sys.stderr))
    print(table(rows))
    failed = [f"{row.kernel} ({row.verdict})" for row in rows if not row.passed]
    against = "the emulator and itself" if options.dry_run else f"the emulator and {torch.cuda.get_device_name()}"
    print(f"{against}: {len(rows) - len(failed)} of {len(rows)} kernels agree")
    if failed:
        print(f"failed: {', '.join(failed)}")
    if options.json:
        content = {"machine": records.machine(), "dry_run": options.dry_run, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1), "utf-8")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
