"""What a kernel asks of the system: printf, assert, trap."""

from __future__ import annotations

import re

import numpy as np

from .address_space import Site, triple
from .faults import EmulatorFault, plural
from .lanes import Lanes

CLOCKS = ("clock", "clock_hi", "clock64", "globaltimer", "globaltimer_lo", "globaltimer_hi")
_TICKS = 100  # that the clock advances at each reading: a loop that waits for it comes to its end
_CONVERSION = re.compile(r"%[-+ #0]*(?:\*|\d+)?(?:\.(?:\*|\d+))?(?:hh|h|ll|l|j|z|t|L)?[diouxXeEfFgGaAcsp%]")


class System:
    """The system calls of one batch."""

    def __init__(self, batch):
        self.batch = batch
        self.now = 0

    def _text(self, address: int) -> str:
        """Return a NUL-terminated string in global or constant memory."""
        region = self.batch.memory.regions.get(address >> 40)
        if region is None:
            return "(null)"
        data = region.data[address - region.base :].tobytes()
        return data.split(b"\0", 1)[0].decode("utf-8", "replace")

    def ticks(self) -> np.uint64:
        """Return what clock() reads: time means nothing here, but it passes each time that it is read."""
        self.now += _TICKS
        return np.uint64(self.now)

    def printf(self, text, arguments, lanes: Lanes, site: Site) -> None:
        """Print one line per thread, in the order of blocks and threads."""
        texts = lanes.expand(text).reshape(-1)
        pieces = {address: self._text(address) for address in np.unique(texts).tolist()}
        values = {address: self._arguments(pieces[address], arguments, lanes, site) for address in pieces}
        block, thread = lanes.expand(lanes.block).reshape(-1), lanes.expand(lanes.thread).reshape(-1)
        for place in np.lexsort((thread, block)).tolist():
            address = int(texts[place])
            print(_formatted(pieces[address], [value[place] for value in values[address]], self._text), end="")

    def _arguments(self, text: str, arguments, lanes: Lanes, site: Site) -> list[np.ndarray]:
        """Return the values that a format asks for: each is aligned to its own size in the thread's buffer."""
        result, offset = [], 0
        for conversion in _CONVERSION.findall(text):
            for dtype in _dtypes(conversion):
                offset = -(-offset // dtype.itemsize) * dtype.itemsize
                at = self.batch.memory.locate(arguments, 0, "generic", lanes, site)
                (value,) = self.batch.memory.load(at, offset, dtype, 1, site)
                result.append(lanes.expand(value).reshape(-1))
                offset += dtype.itemsize
        return result

    def assertion_failed(self, message, file, line, function, lanes: Lanes, site: Site) -> None:
        """`assert` found its condition false."""

        def first(value):
            return int(lanes.expand(value).reshape(-1)[0])

        text = self._text(first(message))
        raise self._stop("assertion", lanes, site, f"assertion `{text}` failed", first(line))

    def trap(self, lanes: Lanes, site: Site, pointer: bool) -> None:
        """`__trap()`; cooperative groups trap where a grid is to wait that was not launched cooperatively."""
        what = "a call through a pointer that leads to no function" if pointer else "trap"
        if "%envreg2" in self.batch.plan.graph.bit and not self.batch.launch.cooperative:
            what = "this_grid().sync() needs a cooperative launch, cooperative=True: trap"
        raise self._stop("trap", lanes, site, what, site.line)

    def _stop(self, kind: str, lanes: Lanes, site: Site, what: str, line: int) -> EmulatorFault:
        block, thread = lanes.expand(lanes.block).reshape(-1), lanes.expand(lanes.thread).reshape(-1)
        first = int(np.lexsort((thread, block))[0])
        block_index, thread_index = self.batch.coordinates(int(block[first]), int(thread[first]))
        return EmulatorFault(
            kind,
            f"{what} at line {line}: {plural(lanes.count, 'thread')}, e.g. block {triple(block_index)} thread "
            f"{triple(thread_index)}",
            line=line,
            block=block_index,
            threads=(thread_index,),
        )


def _dtypes(conversion: str) -> list[np.dtype]:
    """Return what one conversion takes from the buffer: a `*` takes an int first."""
    if conversion == "%%":
        return []
    stars = [np.dtype(np.int32)] * conversion.count("*")
    kind = conversion[-1]
    if kind in "eEfFgGaA":
        return [*stars, np.dtype(np.float64)]
    wide = kind in "sp" or any(mark in conversion for mark in ("l", "j", "z", "t"))
    signed = kind in "dic"
    return [*stars, np.dtype(f"{'i' if signed else 'u'}{8 if wide else 4}")]


def _narrowed(conversion: str, value: int) -> int:
    """Return a number cut to a char (hh) or a short (h), as C does."""
    length = re.search(r"hh?", conversion)
    if length is None:
        return value
    bits = 16 // len(length.group())
    value &= (1 << bits) - 1
    return value - (1 << bits) if conversion[-1] in "di" and value >> (bits - 1) else value


def _formatted(text: str, values: list, string_at) -> str:
    remaining = iter(values)

    def one(match: re.Match) -> str:
        conversion = match.group()
        if conversion == "%%":
            return "%"
        while "*" in conversion:
            conversion = conversion.replace("*", str(int(next(remaining))), 1)
        kind = conversion[-1]
        conversion = re.sub(r"hh|h|ll|l|j|z|t|L", "", conversion[:-1]) + kind
        value = next(remaining)
        if kind == "s":
            return conversion % string_at(int(value))
        if kind == "p":
            return f"{int(value):#x}"
        if kind == "c":
            return conversion % chr(int(value) & 255)
        if kind in "aA":
            return float(value).hex()
        if kind in "eEfFgG":
            return conversion % float(value)
        value = _narrowed(match.group(), int(value))
        if kind == "u":
            return (conversion[:-1] + "d") % value
        if "#" in conversion and (value == 0 or kind == "o"):  # C writes 0 for Python's 0x0, and 017 for 0o17
            if value:
                return (conversion.replace("#", "")[:-1] + "s") % f"0{value:o}"
            conversion = conversion.replace("#", "")
        return conversion % value

    return _CONVERSION.sub(one, text)
