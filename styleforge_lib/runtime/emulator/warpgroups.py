"""wgmma: matrix products of four warps, which run on while the threads go on.

`mma_async` notes a product and leaves tokens in the accumulator's registers: NaN whose bits name the accumulator. The
operands in shared memory are read as late as possible, when `wait_group` lets the product's group be complete: what
has been overwritten too early is wrong, as it may be on a GPU. The wait then puts the numbers where the tokens are. An
instruction other than `mov` that meets a token before is a fault: "wgmma without its wait".

Products are exact, summed in float64 over the products of a group that follow each other, and rounded once. A tensor
core aligns the products and cuts bits off, so its last bits differ.

Contents: `Warpgroups`. How lanes and operands lie is `warpgroup_operands`, how they are
multiplied `warpgroup_products`.
Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
"""

from __future__ import annotations

import numpy as np

from .address_space import BANK_SHIFT, Site, triple
from .control_flow import Block
from .faults import EmulatorFault
from .lanes import Lanes
from .tokens import TOKENS, is_token, token_numbers
from .warpgroup_operands import ROWS, WARPGROUP, Accumulator, Groups, Shape, groups_of, word_indices
from .warpgroup_products import Product, add

KIND = "wgmma without its wait"


class Warpgroups:
    """The products of one batch that are on their way."""

    def __init__(self, batch):
        self.batch = batch
        pairs = max(1, batch.universe.threads // WARPGROUP) * batch.universe.blocks
        self.products: list[Product] = []
        self.accumulators: dict[int, Accumulator] = {}
        self.committed = np.zeros(pairs, np.int64)
        self.fenced = np.zeros(pairs, bool)
        self._count = self.issued = 0
        self._fence_waits: dict[int, np.ndarray] = {}
        self._examined: set[tuple] = set()

    # --- what translated code calls --------------------------------------------------------------------------------

    def multiply(self, shape: Shape, accumulator: tuple, a, b, adds, lanes: Lanes, site: Site) -> tuple:
        """wgmma.mma_async: returns what the accumulator's registers hold until it is waited for."""
        groups = self._groups(lanes, site)
        if isinstance(a, tuple):
            a = self._fragment(groups, a, shape)
        else:
            a = self._descriptor(groups, a, "A", ROWS, shape, site)
        b = self._descriptor(groups, b, "B", shape.columns, shape, site)
        adds = groups.one_each(adds)
        if adds is None:
            raise self._fault(groups, site, "scale-d differs between the threads of a warpgroup")
        held = self._held(accumulator, shape) or self._gathered(accumulator, groups, shape, adds, lanes, site)
        self.issued += 1
        group = self.committed[groups.pairs]
        product = Product(held, shape, groups.pairs, a, b, adds, group, site, self.issued)
        held.unfinished[groups.pairs] += 1
        self.products.append(product)
        self.batch.observations.multiplied(product, self)
        return held.tokens

    def commit(self, lanes: Lanes, site: Site) -> None:
        """wgmma.commit_group."""
        self.committed[self._groups(lanes, site).pairs] += 1

    def check(self, values: tuple, lanes: Lanes, site: Site, chosen: np.ndarray | None = None) -> None:
        """Raise where an instruction reads an accumulator that has not been waited for.

        chosen: for each pair of (warpgroup, block), whether it counts.
        """
        if chosen is not None:
            pair = lanes.thread // WARPGROUP * lanes.universe.blocks + lanes.block
            chosen = chosen[lanes.expand(pair)]
        for value in values:
            found = is_token(value)
            if isinstance(found, np.ndarray):
                found = found & np.isin(token_numbers(value)[0], list(self.accumulators))
            elif found:
                found = int(token_numbers(value)[0]) in self.accumulators
            if chosen is not None:
                found = chosen & found
            if np.any(found):
                full = lanes.expand(value).reshape(-1)
                bad = lanes.expand(found)

                def tail(place: int, full=full) -> str:
                    line = self.accumulators[int(token_numbers(full[place])[0])].line
                    return (
                        f"reads an accumulator of the product at line {line}, which may not be complete: put "
                        "wgmma.commit_group and wgmma.wait_group between them"
                    )

                raise self._worded(site, bad, lanes, tail)

    # --- what ends a block -----------------------------------------------------------------------------------------

    def reach(self, block: Block, lanes: Lanes) -> None:
        """wgmma.fence and wgmma.wait_group."""
        instruction, target = block.last, block.targets[0]
        if "fence" in instruction.modifiers:
            self._fence(target, lanes, block.index)
            return
        groups = self._groups(lanes, self.batch.plan.code.waits[block.index])
        if self.products:
            self._finish(groups, int(instruction.operands[0].value))
        if self.accumulators:
            self._fill_in(self.batch.plan.graph.blocks[target].live_in, groups)
        self.batch.go(target, lanes)

    def _fence(self, target: int, lanes: Lanes, place: int) -> None:
        """Let warpgroups on that are whole; the others wait for their warps."""
        parked = self._fence_waits.pop(place, None)
        if parked is None:
            groups = groups_of(lanes)
            if groups.complete:
                self.fenced[groups.pairs] = True
                self.batch.go(target, lanes)
                return
        mask = lanes.mask() if parked is None else lanes.mask() | parked
        universe = self.batch.universe
        count = universe.threads // WARPGROUP * WARPGROUP
        inside = mask[:count].reshape(-1, WARPGROUP, universe.blocks)
        whole = np.repeat(inside.all(axis=1), WARPGROUP, axis=0)
        ready = np.zeros_like(mask)
        ready[:count] = whole
        if ready.any():
            going = universe.from_mask(ready)
            self.fenced[groups_of(going).pairs] = True
            self.batch.go(target, going)
        if (rest := mask & ~ready).any():
            self._fence_waits[place] = rest

    @property
    def parked(self) -> list[int]:
        """The blocks that lanes enter once their warpgroup is whole."""
        return [self.batch.plan.graph.blocks[place].targets[0] for place in self._fence_waits]

    def stuck(self) -> None:
        """Raise where a warp waits for the rest of its warpgroup at a wgmma.fence."""
        place, mask = next(iter(self._fence_waits.items()))
        lanes = self.batch.universe.from_mask(mask)
        raise self._fault_incomplete(lanes, self.batch.plan.code.waits[place])

    # --- accumulators ----------------------------------------------------------------------------------------------

    def _new(self, shape: Shape, groups: Groups, site: Site) -> Accumulator:
        number = TOKENS.next_number(self._count, self.accumulators)
        self._count = number
        pairs = self.committed.size
        found = self.accumulators[number] = Accumulator(number, pairs, shape, site.line)
        found.held[groups.pairs] = True
        return found

    def _held(self, values: tuple, shape: Shape) -> Accumulator | None:
        """Return the accumulator whose tokens the registers of all lanes hold, if it is one."""
        first = values[0]
        if isinstance(first, np.ndarray) or not is_token(first):
            return None
        found = self.accumulators.get(int(token_numbers(first)[0]))
        if found is None or found.columns != shape.columns or found.result != shape.result:
            return None
        alike = all(
            one is other or (not isinstance(one, np.ndarray) and _bits(one) == _bits(other))
            for one, other in zip(values, found.tokens, strict=True)
        )
        return found if alike else None

    def _gathered(self, values, groups: Groups, shape: Shape, adds, lanes: Lanes, site: Site) -> Accumulator:
        """Return an accumulator with what the registers hold: numbers, or in some warpgroups the tokens of others."""
        number = np.zeros(groups.pairs.size, np.int64)
        if np.any(is_token(values[0])):
            wide = groups.spread(values[0])[:, 0].copy()
            number = np.where(is_token(wide), token_numbers(wide)[0], 0).astype(np.int64)
            for one in np.unique(number[number > 0]).tolist():
                old = self.accumulators.get(one)
                mine = number == one
                fits = old is not None and old.columns == shape.columns and old.result == shape.result
                for value, token in zip(values, old.tokens if fits else (), strict=fits):
                    mine &= (_bits(groups.spread(value)) == _bits(token)).all(axis=1)
                number[(number == one) & ~mine if fits else number == one] = 0
            if number.all() and (number == number[0]).all():
                return self.accumulators[int(number[0])]
        new, plain = self._new(shape, groups, site), number == 0
        if plain.any():
            self._check_fence(groups, plain, site)
            if adds[plain].any():
                self.check(values, lanes, site, np.isin(np.arange(self.committed.size), groups.pairs[plain]))
                new.take(groups, values, plain)
        for one in np.unique(number[~plain]).tolist():
            pairs, old = groups.pairs[number == one], self.accumulators[one]
            self._run([product for product in self.products if product.accumulator is old], pairs)
            new.data[pairs] = old.data[pairs]
            self._release(old, pairs)
        return new

    def _release(self, accumulator: Accumulator, pairs: np.ndarray) -> None:
        accumulator.held[pairs] = False
        if not accumulator.held.any():
            self.accumulators.pop(accumulator.number, None)

    def _fill_in(self, live: int, groups: Groups) -> None:
        """Put numbers where registers hold tokens of products that are complete."""
        batch = self.batch
        ready = {}
        for number, accumulator in self.accumulators.items():
            done = groups.pairs[(accumulator.unfinished[groups.pairs] == 0) & accumulator.held[groups.pairs]]
            if done.size:
                ready[number] = done
        if not ready:
            return
        code, bit = batch.plan.code, batch.plan.graph.bit
        whole: dict[int, np.ndarray] = {}
        for number, done in ready.items():
            if done.size == groups.pairs.size:
                whole[number] = groups.collect(self.accumulators[number].registers(groups.pairs))
        for name in code.accumulators:
            if not live >> bit[name] & 1:
                continue
            value = groups.lanes.gather(batch.values[bit[name]])
            found = is_token(value)
            if not np.any(found):
                continue
            number, index = token_numbers(value)
            if not isinstance(number, np.ndarray):
                if int(number) in whole:
                    batch.put(bit[name], self._as_held(whole[int(number)][int(index)], value), groups.lanes)
                    continue
                number, index = np.full(groups.lanes.shape, number), np.full(groups.lanes.shape, index)
                value, found = groups.lanes.expand(value), np.ones(groups.lanes.shape, bool)
            number, index = groups.lanes.expand(number), groups.lanes.expand(index)
            result = groups.lanes.expand(value).copy()
            for one, done in ready.items():
                here = groups.lanes.expand(found & (number == one))
                if not here.any():
                    continue
                if one not in whole:
                    wide = np.zeros((len(self.accumulators[one].tokens), groups.pairs.size, WARPGROUP), value.dtype)
                    chosen = np.isin(groups.pairs, done)
                    wide[:, chosen] = self.accumulators[one].registers(done).view(value.dtype)
                    complete = np.broadcast_to(chosen[:, None], wide.shape[1:])
                    here = here & groups.collect(np.ascontiguousarray(complete))
                    full = groups.collect(wide)
                else:
                    full = whole[one]
                for position in np.unique(index[here]).tolist():
                    mask = here & (index == position)
                    result[mask] = full[position].view(value.dtype)[mask]
            batch.put(bit[name], result, groups.lanes)
        for number, done in ready.items():
            self._release(self.accumulators[number], done)
            self.fenced[done] = False

    @staticmethod
    def _as_held(value: np.ndarray, held) -> np.ndarray:
        return value.view(held.dtype)

    # --- computing -------------------------------------------------------------------------------------------------

    def _finish(self, groups: Groups, newest: int) -> None:
        """Compute the groups of these warpgroups but the newest."""
        self._run(self.products, groups.pairs, newest)

    def _run(self, products: list[Product], pairs: np.ndarray, newest: int | None = None) -> None:
        mine = np.zeros(self.committed.size, bool)
        mine[pairs] = True
        now: list[Product] = []
        left: dict[int, Product | None] = {}
        for product in products:
            done = mine[product.pairs]
            if newest is not None:
                done = done & (product.group < self.committed[product.pairs] - newest)
            if not done.any():
                continue
            now.append(product if done.all() else product.part(done))
            left[id(product)] = None if done.all() else product.part(~done)
        if not now:
            return
        self.products = [rest for product in self.products if (rest := left.get(id(product), product)) is not None]
        run: list[Product] = []
        for product in now:
            if run and not product.extends(run[-1]):
                self._add(run)
                run = []
            run.append(product)
        self._add(run)

    def _add(self, run: list[Product]) -> None:
        add(run, self.batch.memory, self.batch.universe.blocks)
        for product in run:
            product.accumulator.unfinished[product.pairs] -= 1
            self.batch.observations.multiplied_now(product, self)

    # --- operands --------------------------------------------------------------------------------------------------

    def _fragment(self, groups: Groups, registers: tuple, shape: Shape) -> np.ndarray:
        """Return A in registers, as words (pairs, 64, depth in words)."""
        wide = np.stack([groups.spread(value).view(np.uint32) for value in registers])
        # register 2 c + h, thread 32 w + 4 g + t: row 16 w + 8 h + g, word 4 c + t
        parts = wide.reshape(2, 2, -1, 4, 8, 4)
        return np.ascontiguousarray(parts.transpose(2, 3, 1, 4, 0, 5)).reshape(-1, ROWS, 8)

    def _descriptor(self, groups: Groups, value, which: str, rows: int, shape: Shape, site: Site) -> np.ndarray:
        found = groups.one_each(value)
        if found is None:
            raise self._fault(groups, site, f"the descriptor of {which} differs between the threads of a warpgroup")
        found = found.astype(np.uint64)
        transposed = shape.transposed_a if which == "A" else shape.transposed_b
        for descriptor in np.unique(found).tolist():
            key = (descriptor, rows, shape, transposed)
            if key not in self._examined:
                self.examine(descriptor, rows, shape, transposed, groups.pairs[found == descriptor], site)
                self._examined.add(key)
        return found

    def examine(self, descriptor: int, rows: int, shape: Shape, transposed: bool, pairs, site: Site):
        """Return (variable, its words) that a descriptor covers; raises where it leaves shared memory."""
        depth = shape.depth * (4 if shape.kind == "tf32" else 2)
        address = word_indices((descriptor,), rows, depth, transposed)
        region = self.batch.memory.shared.get(int(address[0]) >> BANK_SHIFT)
        low, high = int(address.min()), int(address.max()) + 4
        if region is None or low < region.base or high > region.base + region.size:
            size = region.size if region is not None else 0
            base = region.base if region is not None else 0
            raise self._fault_pairs(
                pairs, "out of bounds", site,
                f"a descriptor (start {(descriptor & 0x3FFF) << 4:#x}) covers bytes {low - base} to {high - base - 1} "
                f"of {size} in shared memory",
            )  # fmt: skip
        return region, (address - region.base) >> 2

    # --- faults ----------------------------------------------------------------------------------------------------

    def _groups(self, lanes: Lanes, site: Site) -> Groups:
        groups = groups_of(lanes)
        if not groups.complete:
            raise self._fault_incomplete(lanes, site)
        return groups

    def _check_fence(self, groups: Groups, plain: np.ndarray, site: Site) -> None:
        late = ~self.fenced[groups.pairs] & plain
        if late.any():
            raise self._fault_pairs(
                groups.pairs[late], "wgmma without its fence", site,
                "registers of this product were written by other instructions: wgmma.fence.sync.aligned must come "
                "before it",
            )  # fmt: skip

    def _fault_incomplete(self, lanes: Lanes, site: Site) -> EmulatorFault:
        mask = lanes.mask()
        universe = lanes.universe
        count = universe.threads // WARPGROUP * WARPGROUP
        whole = np.zeros_like(mask)
        inside = mask[:count].reshape(-1, WARPGROUP, universe.blocks)
        whole[:count] = np.repeat(inside.all(axis=1), WARPGROUP, axis=0)
        bad = lanes.gather(mask & ~whole)
        return self._worded(
            site, bad, lanes,
            lambda _: "all 128 threads of a warpgroup (warps 4n to 4n + 3) must execute it; some of this one do not",
            "inactive lane",
        )  # fmt: skip

    def _worded(self, site: Site, bad, lanes: Lanes, tail, kind: str = KIND) -> EmulatorFault:
        _, block, thread, place = self.batch.memory._culprits(np.asarray(bad), lanes)
        block_index, thread_index = self.batch.coordinates(block, thread)
        who = f"block {triple(block_index)} thread {triple(thread_index)}"
        sentence = f"{site.name} at line {site.line}: {who}: {tail(place)}"
        return EmulatorFault(kind, sentence, line=site.line, block=block_index, threads=(thread_index,))

    def _fault(self, groups: Groups, site: Site, story: str) -> EmulatorFault:
        return self._fault_pairs(groups.pairs, "wgmma", site, story)

    def _fault_pairs(self, pairs: np.ndarray, kind: str, site: Site, story: str) -> EmulatorFault:
        blocks = self.batch.universe.blocks
        pair = int(pairs[np.lexsort((pairs // blocks, pairs % blocks))[0]])
        block_index, thread = self.batch.coordinates(pair % blocks, pair // blocks * WARPGROUP)
        sentence = f"{site.name} at line {site.line}: block {triple(block_index)} thread {triple(thread)}: {story}"
        return EmulatorFault(kind, sentence, line=site.line, block=block_index, threads=(thread,))


def _bits(value):
    return value.view(np.uint32)
