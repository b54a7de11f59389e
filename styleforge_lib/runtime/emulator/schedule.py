"""Runs a batch of blocks: sets of lanes move through the basic blocks of a kernel.

The set in the lowest numbered block runs next, and sets that meet in one block merge: with the order of `control_flow`
that is reconvergence. A set that reaches a barrier is parked until its block of threads is complete there. When nobody
can run and somebody is parked, that is a divergent barrier or a deadlock, and it is reported with both lines.
"""

from __future__ import annotations

import numpy as np

from .control_flow import Block
from .faults import EmulatorFault, plural
from .lanes import Lanes, Universe, merge
from .memory import POISON, Bank, Located, Memory, Site, _triple
from .parse import Imm, Reg
from .system import System
from .warps import Warps

LANES_PER_BATCH = 65536  # fewer pay NumPy's cost per call, more leave the cache
PATIENCE = 50  # turns a polling loop gets before the lanes that it may be waiting for are let forward
POLLING_LIMIT = 100_000  # turns of polling in which nobody leaves the kernel or passes a barrier: they wait for ever
_MEMO_SIZE = 64
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


class Batch:
    """Some blocks of a launch, from first instruction to last."""

    def __init__(self, plan, launch, block_numbers: np.ndarray):
        self.plan, self.launch = plan, launch
        self.block_numbers = block_numbers
        self.trace = launch.trace
        threads = launch.threads
        self.universe = Universe(threads, block_numbers.size)
        self.memory = Memory(launch.regions, self.coordinates, self.trace)
        self._allocate()
        self.warps = Warps(self.memory, threads, block_numbers.size)
        self.system = System(self)
        self.values: list = [None] * len(plan.graph.registers)
        self.owned: set[int] = set()
        self.pending: dict[int, Lanes] = {}
        self.parked: dict = {}
        self.polled = 0
        self._parameters: dict = {}
        self._memo: dict[tuple, tuple] = {}
        memory, warps, system = self.memory, self.warps, self.system
        # What translated code calls.
        self.locate, self.load, self.store, self.atomic = memory.locate, memory.load, memory.store, memory.atomic
        self.shuffle, self.vote, self.match, self.reduce = warps.shuffle, warps.vote, warps.match, warps.reduce
        self.active_mask, self.elect = warps.active_mask, warps.elect
        self.printf, self.assertion_failed, self.trap = system.printf, system.assertion_failed, system.trap

    # --- the machine's state ---------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        plan, universe = self.plan, self.universe
        for slot, (name, base, size) in plan.shared_layout.items():
            size = self.launch.shared_bytes if size is None else size
            self.memory.shared[slot] = Bank(name, "shared", base, size, universe.blocks)
        for slot, (name, base, size) in plan.local_layout.items():
            self.memory.local[slot] = Bank(name, "local", base, size, universe.size)

    def coordinates(self, block: int, thread: int):
        """Block and thread indices (x, y, z) of a block and thread of the batch."""
        return _unravel(int(self.block_numbers[block]), self.launch.grid), _unravel(thread, self.launch.block)

    def _start(self) -> None:
        plan = self.plan
        live = plan.graph.blocks[0].live_in
        for name, bit in plan.graph.bit.items():
            if not live >> bit & 1:
                continue
            special = self._special(name) if name.startswith("%") and name not in plan.flat.registers else None
            if special is None:
                special = _poison(plan.code.dtypes[name])
            elif not isinstance(special, np.ndarray) or special.size > 1:
                special = special.astype(plan.code.dtypes[name])
            else:
                special = special.astype(plan.code.dtypes[name]).reshape(-1)[0]
            self.values[bit] = special

    def _special(self, name: str):
        """Return a special register as a value of the universe."""
        launch = self.launch
        thread = np.arange(self.universe.threads).reshape(-1, 1)
        numbers = self.block_numbers.reshape(1, -1)
        base, _, axis = name[1:].partition(".")
        if axis in ("x", "y", "z"):
            position = "xyz".index(axis)
            if base == "ntid":
                return np.uint32(launch.block[position])
            if base == "nctaid":
                return np.uint32(launch.grid[position])
            if base == "tid":
                return _axis(thread, launch.block, position)
            if base == "ctaid":
                return _axis(numbers, launch.grid, position)
        lane = (thread & 31).astype(np.int64)
        one = np.int64(1)
        table = {
            "laneid": lambda: lane,
            "warpid": lambda: thread >> 5,
            "nwarpid": lambda: np.uint32(-(-launch.threads // 32)),
            "smid": lambda: numbers,
            "nsmid": lambda: np.uint32(launch.grid[0] * launch.grid[1] * launch.grid[2]),
            "gridid": lambda: np.uint64(1),
            "lanemask_eq": lambda: one << lane,
            "lanemask_lt": lambda: (one << lane) - one,
            "lanemask_le": lambda: (one << (lane + 1)) - one,
            "lanemask_gt": lambda: 0xFFFFFFFF & ~((one << (lane + 1)) - one),
            "lanemask_ge": lambda: 0xFFFFFFFF & ~((one << lane) - one),
            "clock": lambda: np.uint32(0),
            "clock64": lambda: np.uint64(0),
            "globaltimer": lambda: np.uint64(0),
            "dynamic_smem_size": lambda: np.uint32(launch.shared_bytes),
            "total_smem_size": lambda: np.uint32(launch.shared_bytes + self.plan.static_shared),
        }
        if base in table:
            return table[base]()
        if name == "%carry":
            return np.uint32(0)
        raise NotImplementedError(f"the emulator does not know the special register `{name}`.")

    def parameter(self, offset: int, dtype: np.dtype):
        """Return a kernel parameter, as a scalar."""
        found = self._parameters.get((offset, dtype))
        if found is None:
            data = self.launch.parameters[offset : offset + dtype.itemsize]
            found = self._parameters[offset, dtype] = np.frombuffer(data, dtype)[0]
        return found

    def locate_again(self, address, low: int, space: str, lanes: Lanes, site: Site):
        """`locate` of a register that the block did not make: a loop meets the same array again."""
        if not isinstance(address, np.ndarray):
            return self.memory.locate(address, low, space, lanes, site)
        key = (id(address), low, space)
        found = self._memo.get(key)
        if found is not None and found[0] is address and found[1].lanes is lanes:
            return found[1]
        located = self.memory.locate(address, low, space, lanes, site)
        if lanes.is_full and isinstance(located, Located):
            if len(self._memo) >= _MEMO_SIZE:
                self._memo.clear()
            self._memo[key] = (address, located)
        return located

    # --- running ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Execute the batch. Raises EmulatorFault."""
        self._start()
        self.pending[0] = self.universe.full
        pending, blocks, trace = self.pending, self.plan.blocks, self.trace
        while True:
            if not pending:
                if not self.parked:
                    break
                self._stuck()
            number = min(pending) if len(pending) > 1 else next(iter(pending))
            step = blocks[number]
            if step.polls:
                self.polled += 1
                if self.polled > POLLING_LIMIT:
                    self._raise_endless(step, pending[number])
                if self.polled % PATIENCE == 0 and len(pending) > 1:
                    number = sorted(pending)[1]
                    step = blocks[number]
            lanes = pending.pop(number)
            if trace is not None:
                trace.executed(self, number, lanes)
            self._step(step, lanes)

    def _step(self, step, lanes: Lanes) -> None:
        values = self.values
        if lanes.is_full:
            if self.owned:
                self.owned.difference_update(step.inputs)
            outputs = step.function(self, lanes, *[values[bit] for bit in step.inputs])
            for bit in step.dead:
                values[bit] = None
            for bit, value in zip(step.outputs, outputs, strict=True):
                values[bit] = value
            if self.owned:
                self.owned.difference_update(step.outputs)
        else:
            gather = lanes.gather
            outputs = step.function(self, lanes, *[gather(values[bit]) for bit in step.inputs])
            self._scatter(step, lanes, outputs)
        block = step.block
        kind = block.kind
        if kind == "jump":
            self._go(block.targets[0], lanes)
        elif kind == "branch":
            predicate = outputs[step.chooser] if step.chooser is not None else lanes.gather(values[step.choice])
            taken, passed = lanes.split(predicate)
            if block.negated:
                taken, passed = passed, taken
            if self.trace is not None and taken is not None and passed is not None:
                self.trace.parted(block.index, lanes, taken, passed)
            if taken is not None:
                self._go(block.targets[0], taken)
            if passed is not None:
                self._go(block.targets[1], passed)
        elif kind == "exit":
            self._leave(lanes)
        elif kind == "barrier":
            self._barrier(block, step, lanes)
        else:
            self._switch(block, step, lanes, outputs)

    def _scatter(self, step, lanes: Lanes, outputs: tuple) -> None:
        elsewhere = self._live_elsewhere()
        values, owned = self.values, self.owned
        if not lanes.is_flat:
            # A view may show a register that is about to be overwritten.
            outputs = [o.copy() if isinstance(o, np.ndarray) and o.base is not None else o for o in outputs]
        for bit, value in zip(step.outputs, outputs, strict=True):
            needed = elsewhere >> bit & 1
            if not needed and not isinstance(value, np.ndarray):
                values[bit] = value
                owned.discard(bit)
                continue
            old = values[bit]
            reuse = bit in owned
            values[bit] = lanes.scatter(old if needed or reuse else None, value, reuse)
            owned.add(bit)

    def _live_elsewhere(self) -> int:
        blocks = self.plan.graph.blocks
        live = 0
        for number in self.pending:
            live |= blocks[number].live_in
        for parked in self.parked.values():
            for number in parked.places:
                live |= blocks[number].live_in
        return live

    def _go(self, target: int, lanes: Lanes) -> None:
        step = self.plan.blocks[target]
        if step.only_exits:
            if self.trace is not None:
                self.trace.executed(self, target, lanes)
            self._leave(lanes)
            return
        other = self.pending.get(target)
        self.pending[target] = lanes if other is None else merge(other, lanes)

    def _leave(self, lanes: Lanes) -> None:
        self.warps.exited |= lanes.mask()
        self.polled = 0

    def _switch(self, block: Block, step, lanes: Lanes, outputs: tuple) -> None:
        choice = outputs[step.chooser] if step.chooser is not None else lanes.gather(self.values[step.choice])
        if not isinstance(choice, np.ndarray):
            self._go(block.targets[int(choice)], lanes)
            return
        by_target: dict[int, list[int]] = {}
        for case in np.unique(choice).tolist():
            by_target.setdefault(block.targets[case], []).append(case)
        mask, full = lanes.mask(), lanes.expand(choice)
        where = np.zeros((self.universe.threads, self.universe.blocks), np.int64)
        where.reshape(-1)[lanes.positions()] = full.reshape(-1)
        for target, cases in by_target.items():
            self._go(target, self.universe.from_mask(mask & np.isin(where, cases)))

    # --- barriers --------------------------------------------------------------------------------------------------

    def _operand(self, operand, lanes: Lanes) -> int:
        """Return a barrier's number or count; it must be the same in all lanes."""
        value = (
            operand.value if isinstance(operand, Imm) else lanes.gather(self.values[self.plan.graph.bit[operand.name]])
        )
        if isinstance(value, np.ndarray):
            if (value != value.reshape(-1)[0]).any():
                raise NotImplementedError("a barrier whose number or thread count differs between threads")
            value = value.reshape(-1)[0]
        return int(value)

    def _barrier(self, block: Block, step, lanes: Lanes) -> None:
        instruction, target = block.last, block.targets[0]
        line = self.plan.line_of(instruction.place)
        if "warp" in instruction.modifiers:
            self._warp_barrier(instruction, target, line, lanes)
            return
        operands = list(instruction.operands)
        reduction = predicate = None
        if "red" in instruction.modifiers:
            reduction = (next(m for m in ("popc", "and", "or") if m in instruction.modifiers), operands.pop(0))
            predicate = self._predicate(operands.pop(), lanes)
        number = self._operand(operands[0], lanes) if operands else 0
        count = self._operand(operands[1], lanes) if len(operands) > 1 else None
        if lanes.is_full and number not in self.parked and count in (None, self.universe.threads):
            if self.trace is not None:
                self.trace.block_barrier(self, None)
            if reduction:
                self._reduced(reduction, lanes.expand(predicate), self.universe.full)
            self._go(target, lanes)
            return
        parked = self.parked.setdefault(number, Parked(self.universe))
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
        value = lanes.gather(self.values[self.plan.graph.bit[name]])
        return ~value if negated else value

    def _reduced(self, reduction, predicate: np.ndarray, lanes: Lanes) -> None:
        """Write what bar.red gives: a count, or whether all or any said yes, block by block."""
        operation, register = reduction
        bit = self.plan.graph.bit[register.name]
        if operation == "popc":
            result = predicate.sum(axis=0, keepdims=True).astype(np.uint32)
        else:
            result = (predicate.all if operation == "and" else predicate.any)(axis=0, keepdims=True)
        result = np.asarray(result).astype(self.plan.code.dtypes[register.name])
        if lanes.is_full:
            self.values[bit] = result
            self.owned.discard(bit)
        else:
            self.values[bit] = lanes.scatter(self.values[bit], lanes.gather(result), False)
            self.owned.add(bit)

    def arrive(self, number, count, lanes: Lanes, site: Site) -> None:
        """bar.arrive: counts at a barrier and goes on."""
        parked = self.parked.setdefault(int(number), Parked(self.universe))
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
        self.polled = 0
        if parked.reduction:
            opened = self.universe.from_mask(parked.mask & complete)
            self._reduced(parked.reduction, parked.predicate & parked.mask, opened)
        if self.trace is not None:
            self.trace.block_barrier(self, complete)
        places, parked.places = parked.places, {}
        parked.mask &= ~complete
        parked.arrived[complete] = 0
        for target, (mask, line) in places.items():
            if (rest := mask & ~complete).any():
                parked.places[target] = (rest, line)
        if not parked.places and not parked.arrived.any():
            del self.parked[number]
        for target, (mask, _) in places.items():
            lanes = self.universe.from_mask(mask & complete)
            if lanes is not None:
                self._go(target, lanes)

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
        block_index, thread = self.coordinates(block, first)
        _, other_thread = self.coordinates(block, second)
        count = int(other[:, block].sum())
        tail = f" at line {other_line}" if other_line else ""
        raise EmulatorFault(
            "divergent barrier",
            f"divergent barrier: in block {_triple(block_index)}, thread {_triple(thread)} waits at the barrier at "
            f"line {line}, while {plural(count, 'thread')}, e.g. thread {_triple(other_thread)}, {what}{tail}. Every "
            "thread of a block must reach the same __syncthreads()",
            line=line,
            other_line=other_line,
            block=block_index,
            threads=(thread, other_thread),
        )

    def _warp_barrier(self, instruction, target: int, line: int, lanes: Lanes) -> None:
        operand = instruction.operands[0]
        mask = (
            np.uint32(operand.value & 0xFFFFFFFF)
            if isinstance(operand, Imm)
            else lanes.gather(self.values[self.plan.graph.bit[operand.name]])
        )
        full = not isinstance(mask, np.ndarray) and int(mask.view(np.uint32)) == 0xFFFFFFFF
        if _WARP not in self.parked and full and self.warps.form(lanes).present is None:
            if self.trace is not None:
                self.trace.warp_barrier(self, lanes)
            self._go(target, lanes)
            return
        parked = self.parked.setdefault(_WARP, Parked(self.universe))
        where = lanes.mask()
        parked.mask |= where
        wide = np.asarray(mask).astype(np.int64) & 0xFFFFFFFF
        parked.members.reshape(-1)[lanes.positions()] = lanes.expand(wide).reshape(-1)
        before = parked.places.get(target)
        parked.places[target] = (where | before[0] if before else where, line)
        self._open_warps(parked)

    def _open_warps(self, parked: Parked) -> None:
        """Lets go the lanes of every warp whose members have all come (those that have exited are not waited for)."""
        form = self.warps.form(self.universe.full)
        alive = ~self.warps.exited
        named = form.spread(np.where(parked.mask, parked.members, 0))
        if form.present is not None:
            named = np.where(form.present, named, 0)
        named = np.broadcast_to(named, (named.shape[0], 32, self.universe.blocks)).max(axis=1, keepdims=True)
        lane = np.arange(32).reshape(1, 32, 1)
        wanted = form.collect(
            np.broadcast_to(((named >> lane) & 1).astype(bool), (named.shape[0], 32, self.universe.blocks))
        )
        wanted = wanted.reshape(self.universe.threads, self.universe.blocks) & alive
        late = form.spread(wanted & ~parked.mask)
        if form.present is not None:
            late = late & form.present
        blocked = np.broadcast_to(
            late.astype(bool).any(axis=1, keepdims=True), (late.shape[0], 32, self.universe.blocks)
        )
        ready = ~form.collect(blocked).reshape(self.universe.threads, self.universe.blocks)
        places, parked.places = parked.places, {}
        for target, (mask, line) in places.items():
            if (rest := mask & ~ready).any():
                parked.places[target] = (rest, line)
        parked.mask &= ~ready
        if not parked.places:
            del self.parked[_WARP]
        for target, (mask, _) in places.items():
            lanes = self.universe.from_mask(mask & ready)
            if lanes is not None:
                if self.trace is not None:
                    self.trace.warp_barrier(self, lanes)
                self._go(target, lanes)

    def _stuck(self) -> None:
        """Nobody can run: says who waits for whom."""
        if _WARP in self.parked:
            before = len(self.pending)
            self._open_warps(self.parked[_WARP])  # lanes may have exited since
            if len(self.pending) > before:
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
            gone = self.warps.exited & ~parked.mask
            if number != _WARP and gone[:, block].any() and not parked.counted:
                self._raise_divergent(block, mask, line, gone, None, "left the kernel without reaching it")
            self._raise_deadlock(block, mask, line, None, None)
        self.parked.clear()

    def _raise_endless(self, step, lanes: Lanes) -> None:
        line = next(self.plan.line_of(item.place) for item in step.block.instructions if step.polls)
        first = int(np.lexsort((lanes.expand(lanes.thread).reshape(-1), lanes.expand(lanes.block).reshape(-1)))[0])
        block = int(lanes.expand(lanes.block).reshape(-1)[first])
        block_index, thread = self.coordinates(block, int(lanes.expand(lanes.thread).reshape(-1)[first]))
        raise EmulatorFault(
            "deadlock",
            f"deadlock: block {_triple(block_index)} thread {_triple(thread)} has polled memory {POLLING_LIMIT} times at "
            f"line {line}, and no thread got any further. Only {self.universe.blocks} blocks run at a time here: blocks "
            "that wait for each other must be that few, and every one must be launched",
            line=line,
            block=block_index,
            threads=(thread,),
        )

    def _raise_deadlock(self, block: int, mask, line: int, other, other_line: int | None) -> None:
        first = int(np.flatnonzero(mask[:, block])[0])
        block_index, thread = self.coordinates(block, first)
        threads, tail = (thread,), "and nobody is left to arrive"
        if other is not None:
            second = int(np.flatnonzero(other[:, block])[0])
            other_thread = self.coordinates(block, second)[1]
            threads = (thread, other_thread)
            tail = f"thread {_triple(other_thread)} at another one at line {other_line}: neither can go on"
        raise EmulatorFault(
            "deadlock",
            f"deadlock: in block {_triple(block_index)}, thread {_triple(thread)} waits at the barrier at line {line}, "
            f"{tail}",
            line=line,
            other_line=other_line,
            block=block_index,
            threads=threads,
        )


def _unravel(number: int, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return number % shape[0], number // shape[0] % shape[1], number // (shape[0] * shape[1])


def _axis(number: np.ndarray, shape: tuple[int, int, int], position: int) -> np.ndarray:
    if position == 0:
        return number % shape[0]
    return number // shape[0] % shape[1] if position == 1 else number // (shape[0] * shape[1])


def _poison(dtype: np.dtype):
    if dtype == np.dtype(bool):
        return np.False_
    return np.array([POISON | POISON << 32], np.uint64).view(dtype)[0]
