"""The batches of a launch, one after the other or in two threads, with the same results.

NumPy lets other threads run while it works on an array, but between two arrays they wait for the interpreter. So two
batches at a time gain where single calls last long: on two cores a convolution on the tensor cores took 0.8 of the
time, while one of plain float32 took 1.3 times as long and a float16 FFN 1.8 times. Two threads are therefore for
kernels with matrix instructions (`_gains`), and for those whose blocks have nothing to do with each other
(`may_run_apart`): no atomics on global memory, nothing that orders or polls it, no printf, and no array that is both
read and written.

Then a batch's result does not depend on those before it, except where two of them store to one place, and where one of
them is faulty. So a batch that has others before it keeps its stores (`Memory.later`), and they are done when its turn
comes: memory, the report of a fault, and what has been written when it is raised are those of one thread, whichever
thread is faster. How the blocks are cut into batches does not depend on the threads either, as faults count lanes.

Contents: `thread_count`, `may_run_apart`, `blocks_apart` (how large batches then are), `Batches`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np

from .parse import Instruction
from .schedule import Batch, Pulse
from .shared_globals import Placement, arrays_of, origins_of
from .translate.multiply_add import Underflow, forget_operands

VARIABLE = "STYLEFORGE_EMULATOR_THREADS"
MOST_THREADS = 2  # more wait for the interpreter
LEAST_LANES = 16384  # of a batch that is to gain from another beside it
_STORES = ("st", "wmma.store")
_LOADS = ("ld", "ldu", "cp", "wmma.load")
_TALKING = frozenset(("membar", "fence", "call", "multimem"))  # printf and assert are calls
_ORDERED = frozenset(("volatile", "relaxed", "acquire", "release", "mmio", "async"))
_OF_A_BLOCK = frozenset(("shared", "shared_cta", "local", "param"))
_BETWEEN_LOOKS = 0.05  # seconds


def thread_count(wish: int | None) -> int:
    """Return how many threads may run batches: as many as wished, else what the environment says, else two.

    Raises:
        ValueError: the wish, or the environment's, is no positive number.
    """
    text = os.environ.get(VARIABLE, "") if wish is None else str(wish)
    if not text:
        return min(MOST_THREADS, os.cpu_count() or 1)
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{VARIABLE if wish is None else 'threads'} must be a positive number; it is {text}")
    return int(text)


def may_run_apart(plan, launch, blocks: int) -> bool:
    """Whether a launch is large enough for two batches, and its blocks have nothing to do with each other."""
    if blocks * launch.threads < 2 * LEAST_LANES or launch.trace is not None:
        return False
    if launch.cooperative or launch.cluster != (1, 1, 1):
        return False
    if plan.traffic is None:
        plan.traffic = _traffic(plan)
    read, written = plan.traffic
    if written is None:
        return False
    pieces = Placement(launch.regions).of
    read, written = (
        {pieces[base][0] for base in arrays_of(names, plan, launch) if base in pieces} for names in (read, written)
    )
    return read.isdisjoint(written)


def _traffic(plan) -> tuple[set[str], set[str] | None]:
    """Return the parameters and variables that a kernel's global loads and stores go by; (..., None): one thread."""
    body = plan.flat.body
    talks = (
        plan.asynchronous or not _gains(body) or any(isinstance(item, Instruction) and _talks(item) for item in body)
    )
    if talks or any(step.polls for step in plan.blocks):
        return set(), None
    return origins_of(body, _LOADS), origins_of(body, _STORES)


def _gains(body: list) -> bool:
    """Whether a kernel multiplies matrices, which are long enough for two threads to work side by side."""
    return any(isinstance(item, Instruction) and item.opcode in ("mma", "wmma") for item in body)


def _talks(item: Instruction) -> bool:
    """Whether an instruction may order or combine what different blocks do."""
    words = set(item.modifiers)
    if item.opcode in _TALKING:
        return True
    if item.opcode in ("atom", "red"):
        return not words & _OF_A_BLOCK
    return item.opcode in ("ld", "st") and bool(words & _ORDERED) and not words & _OF_A_BLOCK


def blocks_apart(size: int, blocks: int) -> int:
    """Return how many blocks a batch has, at most `size`, that two threads have work."""
    return size if blocks > size else -(-blocks // 2)


class _Stopped(BaseException):
    """Another batch has ended the launch."""


class _Look:
    """What a batch that runs before its turn does between steps, in the place of a `Pulse`."""

    def __init__(self, batches: Batches, pulse: Pulse | None = None, turn: int = 0):
        self.batches, self.pulse, self.turn = batches, pulse, turn

    def beat(self, _batch: Batch | None = None) -> None:
        """Raise if the launch is at an end; report on the batch whose turn it is."""
        if self.batches.over:
            raise _Stopped
        if self.pulse is not None and (batch := self.batches.running.get(self.turn)) is not None:
            self.pulse.beat(batch)


class Batches:
    """The batches of one launch. `done` blocks have been finished, and their results are in memory."""

    def __init__(self, plan, launch, numbers: np.ndarray, size: int, progress: Callable[[int, int], None] | None):
        self.plan, self.launch, self.total, self.progress = plan, launch, numbers.size, progress
        self.parts = [numbers[start : start + size] for start in range(0, numbers.size, size)]
        self.done = 0
        self.news = threading.Condition()  # of what follows
        self.begun = 1  # how many batches a thread has taken: the caller's has the first
        self.running: dict[int, Batch] = {}
        self.ended: dict[int, BaseException | None] = {}
        self.over = False

    def run(self, threads: int) -> None:
        """Run them all; raises what the first faulty one raises."""
        others = [threading.Thread(target=self._help, daemon=True) for _ in range(threads - 1)]
        for other in others:
            other.start()
        try:
            with np.errstate(all="ignore", under="call", call=Underflow.note):
                for turn in range(len(self.parts)):
                    self._finish(turn)
        finally:
            self.over = True
            for other in others:
                other.join()
            forget_operands()

    def _finish(self, turn: int) -> None:
        """Bring the results of the batch whose turn it is into memory."""
        pulse = Pulse(self.progress, self.done, self.total) if self.progress is not None else None
        if turn == 0 or self._take(only=turn) is not None:
            Batch(self.plan, self.launch, self.parts[turn]).run(pulse)
        else:
            look = _Look(self, pulse, turn)
            while turn not in self.ended and (following := self._take()) is not None:
                self._run_ahead(following, look)
            with self.news:
                while turn not in self.ended:
                    self.news.wait(_BETWEEN_LOOKS)
                    look.beat()
            batch, error = self.running.pop(turn, None), self.ended.pop(turn)
            if pulse is not None and error is None:
                pulse.beat(batch)
            if batch is not None:
                batch.memory.store_now()
            if error is not None:
                raise error
        self.done += self.parts[turn].size

    def _help(self) -> None:
        """Run batches until there are none left: what another thread does."""
        look = _Look(self)
        with np.errstate(all="ignore", under="call", call=Underflow.note):
            while (turn := self._take()) is not None:
                self._run_ahead(turn, look)

    def _take(self, only: int | None = None) -> int | None:
        """Take the next batch; None if there is none, or another than the one that is asked for."""
        with self.news:
            turn = self.begun
            if turn == len(self.parts) or self.over or only not in (None, turn):
                return None
            self.begun += 1
            return turn

    def _run_ahead(self, turn: int, look: _Look) -> None:
        """Run a batch before its turn: it keeps its stores, and what it raises is raised in its turn."""
        error = None
        try:
            batch = self.running[turn] = Batch(self.plan, self.launch, self.parts[turn])
            batch.memory.later = []
            batch.run(look)
        except KeyboardInterrupt:  # the user's, which ends the launch
            raise
        except BaseException as raised:
            error = raised
        with self.news:
            self.ended[turn] = error
            self.news.notify_all()


__all__ = ["LEAST_LANES", "VARIABLE", "Batches", "blocks_apart", "may_run_apart", "thread_count"]
