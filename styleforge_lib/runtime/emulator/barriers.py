"""Barriers: who waits where, when a barrier opens, and what to say when it never does.

__syncthreads, its counting and voting forms, named barriers with and without counts, and __syncwarp. A set of lanes
that reaches a barrier is parked until its block (or warp) is complete there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .address_space import Site, triple
from .control_flow import Block
from .faults import EmulatorFault, plural, unsupported
from .lanes import Lanes, Universe
from .parse import Imm, Instruction, Reg

_WARP = "warp"


class Parked:
    """Lanes that wait at one barrier number (or at __syncwarp)."""

    def __init__(self, universe: Universe):
        shape = (universe.threads, universe.blocks)
        self.mask = np.zeros(shape, bool)
        self.arrived = np.zeros(universe.blocks, np.int64)  # by bar.arrive
        self.expected = np.full(universe.blocks, universe.threads, np.int64)
        self.places: dict[int, tuple[np.ndarray, int]] = {}  # where to go on: (mask, line)
        self.members = np.zeros(shape, np.int64)
        self.predicate = np.zeros(shape, bool)
        self.reduction: tuple[str, Reg] | None = None
        self.counted = False  # whether the barrier names how many threads it waits for


class Barriers:
    """The barriers of one batch."""

    def __init__(self, batch):
        self.batch = batch
        self.parked: dict = {}

    def _register(self, name: str, lanes: Lanes):
        """Return a register as a set of lanes sees it."""
        return lanes.gather(self.batch.values[self.batch.plan.graph.bit[name]])

    def _operand(self, operand, instruction: Instruction, lanes: Lanes) -> int:
        """Return a count, or the number of a barrier that votes; it must be the same in all lanes."""
        value = operand.value if isinstance(operand, Imm) else self._register(operand.name, lanes)
        if isinstance(value, np.ndarray):
            if (value != value.reshape(-1)[0]).any():
                line = self.batch.plan.line_of(instruction.place)
                raise unsupported(instruction.name, line, "Its number or thread count differs between threads.")
            value = value.reshape(-1)[0]
        return int(value)

    def _by_number(self, operand, lanes: Lanes) -> Iterator[tuple[int, Lanes]]:
        """Yield the numbers that lanes name, and the lanes of each."""
        if isinstance(operand, Imm):
            yield operand.value, lanes
            return
        value = self._register(operand.name, lanes)
        numbers = np.unique(value).tolist()
        for number in numbers:
            yield int(number), lanes if len(numbers) == 1 else lanes.split(value == number)[0]

    def reach(self, block: Block, lanes: Lanes) -> None:
        """Park a set of lanes at the barrier that ends a block, or let it through."""
        instruction, target = block.last, block.targets[0]
        line = self.batch.plan.line_of(instruction.place)
        if "warp" in instruction.modifiers:
            self._warp_barrier(instruction, target, line, lanes)
            return
        operands = list(instruction.operands)
        reduction = predicate = None
        if "red" in instruction.modifiers:
            reduction = (next(m for m in ("popc", "and", "or") if m in instruction.modifiers), operands.pop(0))
            predicate = self._predicate(operands.pop(), lanes)
        count = self._operand(operands[1], instruction, lanes) if len(operands) > 1 else None
        if reduction or not operands:
            number = self._operand(operands[0], instruction, lanes) if operands else 0
            self._wait(number, count, target, line, lanes, reduction, predicate)
            return
        for number, some in self._by_number(operands[0], lanes):
            self._wait(number, count, target, line, some)

    def _wait(self, number: int, count, target: int, line: int, lanes: Lanes, reduction=None, predicate=None) -> None:
        """Park a set of lanes at one barrier, or let it through."""
        if lanes.is_full and number not in self.parked and count in (None, self.batch.universe.threads):
            if self.batch.trace is not None:
                self.batch.trace.block_barrier(self.batch, None, None)
            if reduction:
                self._reduced(reduction, lanes.expand(predicate), self.batch.universe.full)
            self.batch.go(target, lanes)
            return
        parked = self.parked.setdefault(number, Parked(self.batch.universe))
        mask = lanes.mask()
        parked.mask |= mask
        if count is not None:
            parked.counted = True
            parked.expected[mask.any(axis=0)] = count
        if reduction:
            parked.reduction = reduction
            parked.predicate.reshape(-1)[lanes.positions()] = lanes.expand(predicate).reshape(-1)
        before = parked.places.get(target)
        parked.places[target] = (mask | before[0] if before else mask, line)
        self._open(number, parked)

    def _predicate(self, operand, lanes: Lanes):
        negated = not isinstance(operand, (Reg, Imm))
        if isinstance(operand, Imm):
            return np.bool_(operand.value)
        name = operand.reg.name if negated else operand.name
        value = self._register(name, lanes)
        return ~value if negated else value

    def _reduced(self, reduction, predicate: np.ndarray, lanes: Lanes) -> None:
        """Write what bar.red gives: a count, or whether all or any said yes, block by block."""
        operation, register = reduction
        bit = self.batch.plan.graph.bit[register.name]
        if operation == "popc":
            result = predicate.sum(axis=0, keepdims=True).astype(np.uint32)
        else:
            result = (predicate.all if operation == "and" else predicate.any)(axis=0, keepdims=True)
        result = np.asarray(result).astype(self.batch.plan.code.dtypes[register.name])
        if lanes.is_full:
            self.batch.values[bit] = result
            self.batch.owned.discard(bit)
        else:
            self.batch.values[bit] = lanes.scatter(self.batch.values[bit], lanes.gather(result), False)
            self.batch.owned.add(bit)

    def arrive(self, number, count, lanes: Lanes, site: Site) -> None:
        """bar.arrive: counts at a barrier and goes on."""
        parked = self.parked.setdefault(int(number), Parked(self.batch.universe))
        parked.arrived += lanes.mask().sum(axis=0)
        parked.expected[lanes.mask().any(axis=0)] = int(count)
        self._open(int(number), parked)

    def _open(self, number, parked: Parked) -> None:
        """Lets go the blocks that are complete at a barrier."""
        complete = parked.mask.sum(axis=0) + parked.arrived >= parked.expected
        complete &= parked.mask.any(axis=0) | (parked.arrived > 0)
        if not complete.any():
            return
        self._check_one_place(parked, complete)
        self.batch.polled = 0
        if parked.reduction:
            opened = self.batch.universe.from_mask(parked.mask & complete)
            self._reduced(parked.reduction, parked.predicate & parked.mask, opened)
        if self.batch.trace is not None:
            self.batch.trace.block_barrier(self.batch, complete, parked.mask & complete)
        places, parked.places = parked.places, {}
        parked.mask &= ~complete
        parked.arrived[complete] = 0
        for target, (mask, line) in places.items():
            if (rest := mask & ~complete).any():
                parked.places[target] = (rest, line)
        if not parked.places and not parked.arrived.any():
            del self.parked[number]
        for target, (mask, _) in places.items():
            lanes = self.batch.universe.from_mask(mask & complete)
            if lanes is not None:
                self.batch.go(target, lanes)

    def _check_one_place(self, parked: Parked, complete: np.ndarray) -> None:
        """Raise where threads of a block completed one barrier from two lines of the source: they have diverged."""
        if parked.counted or len(parked.places) < 2:
            return
        seen = sorted(((mask & complete, line) for mask, line in parked.places.values()), key=lambda one: one[1])
        for position, (mask, line) in enumerate(seen):
            for other, other_line in seen[position + 1 :]:
                both = mask.any(axis=0) & other.any(axis=0)
                if both.any() and line != other_line:
                    block = int(np.flatnonzero(both)[0])
                    self._raise_divergent(block, mask, line, other, other_line, "stopped at another barrier")

    def _raise_divergent(self, block: int, mask, line: int, other, other_line: int | None, what: str) -> None:
        first, second = int(np.flatnonzero(mask[:, block])[0]), int(np.flatnonzero(other[:, block])[0])
        block_index, thread = self.batch.coordinates(block, first)
        _, other_thread = self.batch.coordinates(block, second)
        count = int(other[:, block].sum())
        tail = f" at line {other_line}" if other_line else ""
        raise EmulatorFault(
            "divergent barrier",
            f"divergent barrier: in block {triple(block_index)}, thread {triple(thread)} waits at the barrier at "
            f"line {line}, while {plural(count, 'thread')}, e.g. thread {triple(other_thread)}, {what}{tail}. Every "
            "thread of a block must reach the same __syncthreads()",
            line=line,
            other_line=other_line,
            block=block_index,
            threads=(thread, other_thread),
        )

    def _warp_barrier(self, instruction, target: int, line: int, lanes: Lanes) -> None:
        operand = instruction.operands[0]
        literal = isinstance(operand, Imm)
        mask = np.uint32(operand.value & 0xFFFFFFFF) if literal else self._register(operand.name, lanes)
        full = not isinstance(mask, np.ndarray) and int(mask.view(np.uint32)) == 0xFFFFFFFF
        if _WARP not in self.parked and full and self.batch.warps.form(lanes).present is None:
            if self.batch.trace is not None:
                self.batch.trace.warp_barrier(self.batch, lanes)
            self.batch.go(target, lanes)
            return
        parked = self.parked.setdefault(_WARP, Parked(self.batch.universe))
        where = lanes.mask()
        parked.mask |= where
        wide = np.asarray(mask).astype(np.int64) & 0xFFFFFFFF
        parked.members.reshape(-1)[lanes.positions()] = lanes.expand(wide).reshape(-1)
        before = parked.places.get(target)
        parked.places[target] = (where | before[0] if before else where, line)
        self._open_warps(parked)

    def _open_warps(self, parked: Parked) -> None:
        """Lets go the lanes of every warp whose members have all come (those that have exited are not waited for)."""
        universe, form = self.batch.universe, self.batch.warps.form(self.batch.universe.full)
        present = form.present if form.present is not None else np.True_
        late = form.spread(~parked.mask & ~self.batch.warps.exited) & present
        lane = np.arange(32).reshape(1, 32, 1)
        missing = (late.astype(np.int64) << lane).sum(axis=1, keepdims=True)
        blocked = (form.spread(np.where(parked.mask, parked.members, 0)) & missing) != 0
        ready = ~form.collect(blocked).reshape(universe.threads, universe.blocks)
        places, parked.places = parked.places, {}
        for target, (mask, line) in places.items():
            if (rest := mask & ~ready).any():
                parked.places[target] = (rest, line)
        parked.mask &= ~ready
        if not parked.places:
            del self.parked[_WARP]
        for target, (mask, _) in places.items():
            lanes = self.batch.universe.from_mask(mask & ready)
            if lanes is not None:
                if self.batch.trace is not None:
                    self.batch.trace.warp_barrier(self.batch, lanes)
                self.batch.go(target, lanes)

    def stuck(self) -> None:
        """Nobody can run: says who waits for whom."""
        if _WARP in self.parked:
            before = len(self.batch.pending)
            self._open_warps(self.parked[_WARP])  # lanes may have exited since
            if len(self.batch.pending) > before:
                return
        for number, parked in sorted(
            self.parked.items(), key=lambda one: min((p[1] for p in one[1].places.values()), default=0)
        ):
            if not parked.mask.any():
                continue
            block = int(np.flatnonzero(parked.mask.any(axis=0))[0])
            mask, line = next((m, at) for m, at in parked.places.values() if m[:, block].any())
            for other_number, other in self.parked.items():
                if other_number == number or not other.mask[:, block].any():
                    continue
                other_mask, other_line = next((m, at) for m, at in other.places.values() if m[:, block].any())
                self._raise_deadlock(block, mask, line, other_mask, other_line)
            gone = self.batch.warps.exited & ~parked.mask
            if number != _WARP and gone[:, block].any() and not parked.counted:
                self._raise_divergent(block, mask, line, gone, None, "left the kernel without reaching it")
            self._raise_deadlock(block, mask, line, None, None)
        self.parked.clear()

    def _raise_deadlock(self, block: int, mask, line: int, other, other_line: int | None) -> None:
        first = int(np.flatnonzero(mask[:, block])[0])
        block_index, thread = self.batch.coordinates(block, first)
        threads, tail = (thread,), "and nobody is left to arrive"
        if other is not None:
            second = int(np.flatnonzero(other[:, block])[0])
            other_thread = self.batch.coordinates(block, second)[1]
            threads = (thread, other_thread)
            tail = f"thread {triple(other_thread)} at another one at line {other_line}: neither can go on"
        raise EmulatorFault(
            "deadlock",
            f"deadlock: in block {triple(block_index)}, thread {triple(thread)} waits at the barrier at line {line}, "
            f"{tail}",
            line=line,
            other_line=other_line,
            block=block_index,
            threads=threads,
        )
