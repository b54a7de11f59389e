"""Runs a batch of blocks: sets of lanes move through the basic blocks of a kernel.

The set in the lowest numbered block runs next (or another: `orders`), and sets that meet in one block merge: with the
order of `control_flow` that is reconvergence. A set that reaches a barrier is parked until its block of threads is
complete there. When nobody can run and somebody is parked, that is a divergent barrier or a deadlock, and it is
reported with both lines.

How batches follow each other, or run side by side, is `batches`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np

from .address_space import POISON, WORKSPACE_SLOT, Bank, Site, slot_base, triple
from .address_sums import AddressSums
from .async_copies import AsyncCopies
from .barriers import Barriers
from .bulk_copies import BulkCopies
from .clusters import Clusters
from .control_flow import Block
from .faults import EmulatorFault
from .lanes import Lanes, merge, universe_of
from .located import Located
from .mbarriers import MBarriers, operand_value
from .memory import Memory
from .observations import observations_of
from .orders import ORDERS
from .system import CLOCKS, System
from .warpgroups import Warpgroups
from .warps import Warps

LANES_PER_BATCH = 65536  # fewer pay NumPy's cost per call, more leave the cache
PATIENCE = 50  # turns a polling loop gets before the lanes that it may be waiting for are let forward
POLLING_LIMIT = 100_000  # turns of polling in which nobody leaves the kernel or passes a barrier: they wait for ever
_MEMO_SIZE = 64
_BETWEEN_REPORTS = 0.1  # seconds


class Pulse:
    """Tells a caller some ten times a second how many blocks are done."""

    def __init__(self, report: Callable[[int, int], None], before: int, total: int):
        self.report, self.before, self.total = report, before, total
        self.due = time.monotonic() + _BETWEEN_REPORTS

    def beat(self, batch: Batch) -> None:
        """Report if it is time to."""
        if (now := time.monotonic()) >= self.due:
            self.due = now + _BETWEEN_REPORTS
            self.report(self.before + int(np.count_nonzero(batch.warps.exited.all(axis=0))), self.total)


class Batch:
    """Some blocks of a launch, from first instruction to last."""

    def __init__(self, plan, launch, block_numbers: np.ndarray):
        self.plan, self.launch = plan, launch
        self.block_numbers = block_numbers
        self.trace = launch.trace
        threads = launch.threads
        self.universe = universe_of(threads, block_numbers.size)
        self.memory = Memory(launch.regions, self.coordinates, self.trace)
        self._allocate()
        self.warps = Warps(self.memory, threads, block_numbers.size)
        self.system = System(self)
        self.copies = AsyncCopies(self)
        self.values: list = [None] * len(plan.graph.registers)
        self.owned: set[int] = set()
        self.pending: dict[int, Lanes] = {}
        self.barriers = Barriers(self)
        self.observations = observations_of(self)
        self.clusters = self.memory.clusters = Clusters(self)
        self.mbarriers, self.bulk, self.warpgroups = MBarriers(self), BulkCopies(self), Warpgroups(self)
        self.waits = {"mbarrier": self.mbarriers, "wgmma": self.warpgroups, "barrier": self.clusters}
        self.polled = 0
        self._parameters: dict = {}
        self._memo: dict[tuple, tuple] = {}
        self.kept: dict[tuple, list] = {}  # from turn to turn: see `translate.matrix_sums`, `two_products`
        memory, warps, system = self.memory, self.warps, self.system
        # What translated code calls.
        self.arrive = self.barriers.arrive
        self.locate, self.store, self.atomic = memory.locate, memory.store, memory.atomic
        self.atomic_vector = memory.atomic_vector
        self.load, self.load_one, self.load_rows = memory.load, memory.load_one, memory.load_rows
        self.locate_sum = AddressSums(memory).locate
        self.shuffle, self.vote, self.match, self.reduce = warps.shuffle, warps.vote, warps.match, warps.reduce
        self.active_mask, self.elect = warps.active_mask, warps.elect
        self.printf, self.assertion_failed, self.trap = system.printf, system.assertion_failed, system.trap
        self.ticks = system.ticks

    # --- the machine's state ---------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        plan, universe = self.plan, self.universe
        for slot, (name, base, size) in plan.shared_layout.items():
            if size is None:
                size = self.launch.shared_bytes + (plan.static_shared if plan.shared_together else 0)
            self.memory.shared[slot] = Bank(name, "shared", base, size, universe.blocks)
        for slot, (name, base, size) in plan.local_layout.items():
            self.memory.local[slot] = Bank(name, "local", base, size, universe.size)

    def coordinates(self, block: int, thread: int):
        """Block and thread indices (x, y, z) of a block and thread of the batch."""
        return _unravel(int(self.block_numbers[block]), self.launch.grid), _unravel(thread, self.launch.block)

    def _start(self) -> None:
        plan = self.plan
        for name, bit in plan.live_at_start:
            special = self._special(name) if name.startswith("%") and name not in plan.flat.registers else None
            if special is None:
                special = _poison(plan.code.dtypes[name])
            else:
                special = special.astype(plan.code.dtypes[name])
                if isinstance(special, np.ndarray) and (special == special.flat[0]).all():
                    special = special.flat[0]
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
            "envreg1": lambda: np.uint32(self._workspace() >> 32),
            "envreg2": lambda: np.uint32(self._workspace() & 0xFFFFFFFF),
            "gridid": lambda: np.uint64(1),
            "lanemask_eq": lambda: one << lane,
            "lanemask_lt": lambda: (one << lane) - one,
            "lanemask_le": lambda: (one << (lane + 1)) - one,
            "lanemask_gt": lambda: 0xFFFFFFFF & ~((one << (lane + 1)) - one),
            "lanemask_ge": lambda: 0xFFFFFFFF & ~((one << lane) - one),
            **dict.fromkeys(CLOCKS, lambda: np.uint64(0)),  # read as they are moved (`System.ticks`)
            "dynamic_smem_size": lambda: np.uint32(launch.shared_bytes),
            "total_smem_size": lambda: np.uint32(launch.shared_bytes + self.plan.static_shared),
        }
        if base in table:
            return table[base]()
        if (of_cluster := self.clusters.special(base, axis)) is not None:
            return of_cluster
        if name == "%carry":
            return np.uint32(0)
        raise NotImplementedError(f"the emulator does not know the special register `{name}`.")

    def _workspace(self) -> int:
        """Return the address of the driver's workspace of a grid, which only a cooperative launch has."""
        return slot_base(WORKSPACE_SLOT) if self.launch.cooperative else 0

    def fence(self, lanes: Lanes) -> None:
        """Tell a trace of a fence for the whole GPU; memory itself is in program order here."""
        if self.trace is not None:
            self.trace.fence(lanes)

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

    def run(self, pulse: Pulse | None = None) -> None:
        """Execute the batch. Raises EmulatorFault."""
        self._start()
        self.pending[0] = self.universe.full
        pending, blocks, trace, order = self.pending, self.plan.blocks, self.trace, ORDERS[self.launch.order]
        while pending or self._idle():
            if not pending:
                continue
            number = order(pending) if len(pending) > 1 else next(iter(pending))
            step = blocks[number]
            if step.polls:
                self.polled += 1
                if self.polled > POLLING_LIMIT:
                    self._raise_endless(step, pending[number])
                if self.polled % PATIENCE == 0 and self.mbarriers.waiting:
                    self.mbarriers.idle()
                if self.polled % PATIENCE == 0 and len(pending) > 1:
                    number = sorted(pending)[1]
                    step = blocks[number]
            lanes = pending.pop(number)
            if trace is not None:
                trace.executed(self, number, lanes)
            self._step(step, lanes)
            if pulse is not None:
                pulse.beat(self)
        self.bulk.finish()

    def _idle(self) -> bool:
        """Nobody can run: let go who may go, or raise; False if everybody has left."""
        if self.mbarriers.waiting:
            if not self.mbarriers.idle():
                self.mbarriers.stuck()
        elif self.barriers.parked:
            self.barriers.stuck()
        elif self.warpgroups.parked:
            self.warpgroups.stuck()
        else:
            return False
        return True

    def _step(self, step, lanes: Lanes) -> None:
        values = self.values
        if lanes.is_full:
            if self.owned:
                self.owned.difference_update(step.inputs)
            inputs = [values[bit] for bit in step.inputs]
            for bit in step.dead:
                values[bit] = None
            outputs = step.function(self, lanes, inputs)
            for bit, value in zip(step.outputs, outputs, strict=True):
                values[bit] = value
            if self.owned:
                self.owned.difference_update(step.outputs)
        else:
            gather = lanes.gather
            outputs = step.function(self, lanes, [gather(values[bit]) for bit in step.inputs])
            self._scatter(step, lanes, outputs)
        block = step.block
        kind = block.kind
        if kind == "jump":
            self.go(block.targets[0], lanes)
        elif kind == "branch":
            predicate = outputs[step.chooser] if step.chooser is not None else lanes.gather(values[step.choice])
            taken, passed = lanes.split(predicate)
            if block.negated:
                taken, passed = passed, taken
            if self.trace is not None and taken is not None and passed is not None:
                self.trace.parted(block.index, lanes, taken, passed)
            if taken is not None:
                self.go(block.targets[0], taken)
            if passed is not None:
                self.go(block.targets[1], passed)
        elif kind == "exit":
            self._leave(lanes)
        elif kind == "barrier":
            self.barriers.reach(block, lanes)
        elif kind == "wait":
            self.waits[block.last.opcode].reach(block, lanes)
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
        for parked in self.barriers.parked.values():
            for number in parked.places:
                live |= blocks[number].live_in
        for waiting in self.mbarriers.waiting:
            live |= blocks[waiting.target].live_in
        for number in self.warpgroups.parked:
            live |= blocks[number].live_in
        for _, number in self.clusters.waiting:
            live |= blocks[number].live_in
        return live

    # --- registers at the end of a block ---------------------------------------------------------------------------

    def operand(self, operand, lanes: Lanes):
        """Return an operand of the instruction that ends a block, as its lanes see it."""
        return operand_value(operand, lambda name: lanes.gather(_unsigned(self.values[self.plan.graph.bit[name]])))

    def resolve(self, register, value: bool, lanes: Lanes) -> None:
        """Set the predicate that a wait gives."""
        if register is not None:
            self.resolve_name(register.name, value, lanes)

    def resolve_name(self, name: str, value: bool, lanes: Lanes) -> None:
        """Set a predicate by its register's name."""
        self.put(self.plan.graph.bit[name], np.bool_(value), lanes)

    def put(self, bit: int, value, lanes: Lanes) -> None:
        """Set a register of some lanes, after their block has run."""
        if lanes.is_full:
            self.values[bit] = value
            self.owned.discard(bit)
        else:
            self.values[bit] = lanes.scatter(self.values[bit], value, False)
            self.owned.add(bit)

    def go(self, target: int, lanes: Lanes) -> None:
        """Send a set of lanes to a block, where it merges with those that wait there."""
        step = self.plan.blocks[target]
        if step.only_exits:
            if self.trace is not None:
                self.trace.executed(self, target, lanes)
            self._leave(lanes)
            return
        other = self.pending.get(target)
        self.pending[target] = lanes if other is None else merge(other, lanes)

    def _leave(self, lanes: Lanes) -> None:
        self.bulk.left(lanes)
        self.warps.exited |= lanes.mask()
        self.clusters.left()
        self.polled = 0

    def _switch(self, block: Block, step, lanes: Lanes, outputs: tuple) -> None:
        choice = outputs[step.chooser] if step.chooser is not None else lanes.gather(self.values[step.choice])
        if not isinstance(choice, np.ndarray):
            self.go(block.targets[int(choice)], lanes)
            return
        by_target: dict[int, list[int]] = {}
        for case in np.unique(choice).tolist():
            by_target.setdefault(block.targets[case], []).append(case)
        mask, full = lanes.mask(), lanes.expand(choice)
        where = np.zeros((self.universe.threads, self.universe.blocks), np.int64)
        where.reshape(-1)[lanes.positions()] = full.reshape(-1)
        for target, cases in by_target.items():
            self.go(target, self.universe.from_mask(mask & np.isin(where, cases)))

    def _raise_endless(self, step, lanes: Lanes) -> None:
        line = next(self.plan.line_of(item.place) for item in step.block.instructions if step.polls)
        first = int(np.lexsort((lanes.expand(lanes.thread).reshape(-1), lanes.expand(lanes.block).reshape(-1)))[0])
        block = int(lanes.expand(lanes.block).reshape(-1)[first])
        block_index, thread = self.coordinates(block, int(lanes.expand(lanes.thread).reshape(-1)[first]))
        raise EmulatorFault(
            "deadlock",
            f"deadlock: block {triple(block_index)} thread {triple(thread)} has polled memory {POLLING_LIMIT} times "
            f"at line {line}, and no thread got any further. Only {self.universe.blocks} blocks run at a time here: "
            "blocks that wait for each other must be that few, and every one must be launched",
            line=line,
            block=block_index,
            threads=(thread,),
        )


def _unsigned(value):
    return value.view(f"u{value.dtype.itemsize}")


def _unravel(number: int, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return number % shape[0], number // shape[0] % shape[1], number // (shape[0] * shape[1])


def _axis(number: np.ndarray, shape: tuple[int, int, int], position: int) -> np.ndarray:
    if position == 0:
        return number % shape[0]
    return number // shape[0] % shape[1] if position == 1 else number // (shape[0] * shape[1])


@functools.cache
def _poison(dtype: np.dtype):
    if dtype == np.dtype(bool):
        return np.False_
    return np.array([POISON | POISON << 32] * 2, np.uint64).view(dtype)[0]
