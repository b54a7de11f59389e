"""A PTX module, ready to launch: parsed once, each kernel translated when it is first launched.

Contents: `Step` and `Plan` (a translated kernel), `Launch` (one launch's arguments), `Program`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import translation_cache
from .address_space import FIRST_FREE_SLOT, PARAMETER_SLOT, WORKSPACE_SLOT, Region, bank_base, slot_base
from .batches import Batches, blocks_apart, may_run_apart, thread_count
from .calls import STACK, flatten, function_addresses
from .clusters import in_clusters
from .control_flow import BARRIERS, Block, Graph, build_graph
from .dependent_launch import before_the_wait, end_without_wait
from .faults import unsupported
from .orders import ORDERS
from .parse import Module, Place, parse_module
from .schedule import LANES_PER_BATCH
from .tensor_maps import TensorMap
from .translate import KernelCode, compile_block, translate_block

MAX_THREADS = 1024
RESERVED_SHARED = 1024  # bytes at the beginning of shared memory that the system keeps, as on a GPU
MEMORY_PER_BATCH = 1 << 28  # bytes of shared and local memory
SHADOW_BYTES = 32  # what the race detector remembers of a byte
TRACED_LANES_PER_BATCH = 32768  # shadow memory is several times the size of what it shadows
# What a loop that waits for another thread does in every turn.
_POLLING = {"ld": ("volatile", "relaxed", "acquire", "mmio"), "atom": ("cas", "exch")}


@dataclass(slots=True)
class Step:
    """A translated block: its function and the registers, by position, that it takes and gives."""

    block: Block
    function: object
    inputs: list[int]
    outputs: list[int]
    dead: list[int]
    """Which inputs nobody reads again, or the block itself sets anew."""
    chooser: int | None
    """Which output is the branch's predicate; None if the block did not compute it (then `choice` is the register)."""
    choice: int | None
    polls: bool
    only_exits: bool


class Plan:
    """A kernel, translated."""

    def __init__(self, program: Program, name: str):
        self.name = name
        self.flat = flatten(program.module, name)
        self.graph: Graph = build_graph(self.flat)
        live = self.graph.names(self.graph.blocks[0].live_in)
        self.live_at_start = [(name, self.graph.bit[name]) for name in live]
        self.traffic = None  # the arrays that it reads and writes, once `batches` has looked
        self.stored_to: set[str] | None = None  # what its stores may go by, once `shared_globals` has looked
        self.asynchronous = any(_is_asynchronous(item) for item in self.flat.body)
        self.line_of = program.line_of
        self.shared_layout: dict[int, tuple[str, int, int | None]] = {}
        self.local_layout: dict[int, tuple[str, int, int]] = {}
        self.static_shared = 0
        self.shared_together = False
        symbols = dict(program.symbols)
        self._lay_out(program, symbols)
        self.code = KernelCode(self.flat, self.graph, symbols, program.line_of)
        offsets = self.code.parameter_offsets
        for parameter in self.flat.parameters:
            symbols[parameter.name] = ("param", slot_base(PARAMETER_SLOT) + offsets[parameter.name])
        self.blocks = [
            self._step(block, *translated)
            for block, translated in zip(self.graph.blocks, self._translated(program), strict=True)
        ]

    def _translated(self, program: Program) -> list[tuple]:
        """Return each block's function, and the registers that it takes and gives: from the disk, or translated."""
        code, key = self.code, None
        if program.cache is not None:
            key = translation_cache.key_of(program.ptx, self.name, program.own_files)
            kept = translation_cache.read(program.cache, key)
            if kept is not None:
                code.sites, code.waits = kept.SITES, kept.WAITS
                return kept.BLOCKS
        translated = [translate_block(code, block) for block in self.graph.blocks]
        if program.cache is not None:
            translation_cache.write(program.cache, key, self.name, code, translated)
        return [
            (compile_block(code, block, source), inputs, outputs)
            for block, (source, inputs, outputs) in zip(self.graph.blocks, translated, strict=True)
        ]

    def _lay_out(self, program: Program, symbols: dict) -> None:
        shared = {**{n: v for n, v in program.module.variables.items() if v.space == "shared"}, **self.flat.shared}
        if any(getattr(item, "opcode", "") == "wgmma" for item in self.flat.body):
            self._lay_out_together(shared, symbols)
            shared = {}
        dynamic = None
        for number, (name, variable) in enumerate(shared.items(), start=1):
            base = bank_base(number)
            if variable.size is None:
                # Every `extern __shared__` array is the same memory.
                if dynamic is None:
                    dynamic = base
                    self.shared_layout[number] = (name, base, None)
                symbols[name] = ("shared", dynamic)
                continue
            self.static_shared += variable.size
            self.shared_layout[number] = (readable(name), base, variable.size)
            symbols[name] = ("shared", base)
        for number, (name, variable) in enumerate(self.flat.locals.items(), start=1):
            base = bank_base(number)
            label = STACK if name == STACK else "local memory"
            self.local_layout[number] = (label, base, variable.size)
            symbols[name] = ("local", base)

    def _lay_out_together(self, shared: dict, symbols: dict) -> None:
        """One variable for all of shared memory, at the addresses of a GPU: a descriptor of wgmma has 18 bits for one.

        An index that runs out of one array into the next is not seen then.
        """
        place = RESERVED_SHARED
        for name, variable in sorted(shared.items(), key=lambda one: one[1].size is None):
            if variable.size is not None or name not in symbols:
                place = -(-place // variable.align) * variable.align
            symbols[name] = ("shared", place)
            place += variable.size or 0
        self.static_shared = place - RESERVED_SHARED
        self.shared_layout[0] = ("shared memory", RESERVED_SHARED, None)
        self.shared_together = True

    def _step(self, block: Block, function: Callable, inputs: list[str], outputs: list[str]) -> Step:
        if block.last is not None and block.last.opcode in BARRIERS and block.kind == "barrier":
            self._check_barrier(block)
        bit = self.graph.bit
        chooser = choice = None
        if block.register is not None:
            if block.register in outputs:
                chooser = outputs.index(block.register)
            else:
                choice = bit[block.register]
        polls = any(
            any(word in item.modifiers for word in _POLLING[item.opcode])
            for item in block.instructions
            if item.opcode in _POLLING
        )
        ends = {bit[name] for name in self._read_at_end(block)}
        given = set(outputs)
        dead = [
            bit[name]
            for name in inputs
            if name in given or (not block.live_out >> bit[name] & 1 and bit[name] not in ends)
        ]
        only_exits = block.kind == "exit" and not block.instructions
        return Step(
            block, function, [bit[n] for n in inputs], [bit[n] for n in outputs], dead, chooser, choice, polls,
            only_exits,
        )  # fmt: skip

    @staticmethod
    def _read_at_end(block: Block) -> list[str]:
        from .control_flow import read

        return [] if block.last is None else list(read(block.last))

    def _check_barrier(self, block: Block) -> None:
        words = set(block.last.modifiers) - {"sync", "cta", "aligned", "warp"}
        if "red" in words:
            words -= {"red", "popc", "and", "or", "u32", "pred"}
        if words:
            raise unsupported(block.last.name, self.line_of(block.last.place))


@dataclass(slots=True)
class Launch:
    """The arguments of one launch."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    threads: int
    shared_bytes: int
    parameters: bytes
    regions: dict[int, Region]
    trace: object | None
    cluster: tuple[int, int, int] = (1, 1, 1)
    cooperative: bool = False
    order: str = "together"  # of `orders.ORDERS`


class Program:
    """A PTX module that can be launched on NumPy arrays.

    Args:
        ptx_text: PTX as NVRTC writes it; with `-lineinfo`, faults and metrics name source lines.
        sources: {file name: text} of the user's own files. A line of any other file (a CUDA header) is charged to the
            line that called it. Without sources, files in a toolkit's include folder count as headers.
        cache: a folder where translated kernels are kept for the next process (see `translation_cache`); None: nowhere.

    Raises:
        ValueError: if the text is not PTX.
    """

    def __init__(self, ptx_text: str | bytes, sources: dict[str, str] | None = None, cache: Path | None = None):
        self.ptx = ptx_text.decode() if isinstance(ptx_text, bytes) else ptx_text
        self.module: Module = parse_module(self.ptx)
        self.sources, self.cache = dict(sources or {}), cache
        self._own_files = {number for number, name in self.module.files.items() if self._is_own(name)}
        self.symbols: dict[str, tuple[str, int]] = {}
        self._regions: dict[int, Region] = {}
        self._plans: dict[str, Plan] = {}
        self._next_slot = FIRST_FREE_SLOT
        self.threads_used = 1  # by the last launch
        self._allocate_variables()

    # --- what is in it ---------------------------------------------------------------------------------------------

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels, in order."""
        return [name for name, function in self.module.functions.items() if function.entry]

    def parameters(self, name: str) -> list[tuple[str, int, int]]:
        """(PTX type, size in bytes, alignment) of each parameter. Pointers are u64; structs are b8 with their size."""
        return [(p.type, p.size, p.align) for p in self._function(name).parameters]

    @property
    def variables(self) -> dict[str, int]:
        """Names and sizes in bytes of the `__device__` and `__constant__` variables."""
        return {n: v.size or 0 for n, v in self.module.variables.items() if v.space in ("global", "const")}

    def variable(self, name: str) -> np.ndarray:
        """Return the bytes (uint8, writable) of a `__device__` or `__constant__` variable, which outlive launches."""
        if name not in self.symbols:
            raise KeyError(f"no module variable {name!r}; there are {sorted(self.symbols)}")
        return self._regions[self.symbols[name][1] >> 40].data

    def _function(self, name: str):
        function = self.module.functions.get(name)
        if function is None or not function.entry:
            raise KeyError(f"no kernel {name!r}; there are {self.kernels}")
        return function

    # --- source lines ----------------------------------------------------------------------------------------------

    def _is_own(self, name: str) -> bool:
        if self.sources:
            return any(name == own or os.path.basename(name) == os.path.basename(own) for own in self.sources)
        return not re.search(r"[/\\]include[/\\]|\.hpp$", name)

    @property
    def own_files(self) -> list[str]:
        """The names, in the PTX, of the user's own files."""
        return [self.module.files[number] for number in sorted(self._own_files)]

    def line_of(self, place: Place) -> int:
        """Return the line of the user's own text that an instruction belongs to; 0 if there is none."""
        for file, line in ((place.file, place.line), *place.callers):
            if file in self._own_files:
                return line
        return place.line

    # --- module variables ------------------------------------------------------------------------------------------

    def _allocate_variables(self) -> None:
        for name, variable in self.module.variables.items():
            if variable.space not in ("global", "const"):
                continue
            data = np.zeros(variable.size or 0, np.uint8)
            data[: len(variable.initial)] = np.frombuffer(variable.initial, np.uint8)
            base = slot_base(self._next_slot)
            space = "global" if variable.space == "global" else "constant"
            self._regions[self._next_slot] = Region(readable(name), base, data, space)
            self.symbols[name] = (variable.space, base)
            self._next_slot += 1
        self.symbols |= {name: ("function", at) for name, at in function_addresses(self.module).items()}
        for name, variable in self.module.variables.items():
            for offset, target in variable.references:
                if target not in self.symbols:
                    raise unsupported(f"address of {target} in the initial value of {name}", 0)
                data = self._regions[self.symbols[name][1] >> 40].data[offset : offset + 8]
                data.view(np.uint64)[0] += np.uint64(self.symbols[target][1])

    # --- launches that overlap the kernel before ------------------------------------------------------------------

    def end_without_wait(self, name: str) -> int | None:
        """Return the line where a kernel's thread turns to its end without griddepcontrol.wait; None if none does."""
        found = end_without_wait(self.plan(name).graph)
        return None if found is None else self.line_of(found.place)

    def before_the_wait(self, name: str) -> list[tuple[int, str]]:
        """Return (line, instruction) of what may touch global memory before its thread has waited."""
        return [(self.line_of(item.place), item.name) for item in before_the_wait(self.plan(name).graph)]

    # --- launching -------------------------------------------------------------------------------------------------

    def plan(self, name: str) -> Plan:
        """Return the translated kernel; the first call translates it.

        Raises:
            NotImplementedError: names an instruction that the emulator does not know, and its source line.
        """
        self._function(name)
        if name not in self._plans:
            self._plans[name] = Plan(self, name)
        return self._plans[name]

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence,
        *,
        shared_bytes: int = 0,
        cooperative: bool = False,
        blocks: Sequence[int] | None = None,
        trace=None,
        names: Sequence[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        threads: int | None = None,
        order: str = "together",
    ) -> None:
        """Run a kernel.

        Args:
            name: the kernel.
            grid: blocks in x, y, z (missing ones are 1).
            block: threads in x, y, z.
            args: one per parameter: a C-contiguous NumPy array (passed as a pointer, changed in place), a NumPy scalar
                of the parameter's size, a `tensor_maps.TensorMap`, or the parameter's raw bytes.
            shared_bytes: size of `extern __shared__` memory.
            cooperative: all blocks run at once, and `cooperative_groups::this_grid().sync()` makes them wait for each
                other. Whether a card has room for them is the caller's to check.
            blocks: linear numbers (x fastest) of the blocks to run, with the rest of their clusters; all if None.
            trace: a `metrics.Trace` that collects per-line counts, races and unwritten reads.
            names: what to call the arrays in messages; else "argument 0" ...
            progress: is called some ten times a second with how many blocks have been done, and of how many.
            threads: how many threads run blocks that have nothing to do with each other (`batches`). None: what
                STYLEFORGE_EMULATOR_THREADS says, else two, or one on a single processor. Results do not depend on it.
            order: which threads go on where several could, one of `orders.ORDERS`. Nor should they depend on this.

        Raises:
            KeyboardInterrupt: says how far the launch was. What the kernel had written stays written; the program can
                be launched again.
            EmulatorFault: the kernel did something wrong; says what, at which line, in which block and thread.
            NotImplementedError: an instruction outside what the emulator knows.
            ValueError, TypeError: an argument or a launch size that no GPU would take.
        """
        plan = self.plan(name)
        if order not in ORDERS:
            raise ValueError(f"order={order!r} is none of {', '.join(map(repr, ORDERS))}")
        launch = self._launch(name, grid, block, args, shared_bytes, trace, names)
        launch.order = order
        total = launch.grid[0] * launch.grid[1] * launch.grid[2]
        if cooperative:
            self._make_cooperative(launch)
        numbers = np.arange(total) if blocks is None else np.asarray(blocks, np.int64).reshape(-1)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= total):
            raise ValueError(f"blocks must lie in 0..{total - 1}")
        if cooperative and np.unique(numbers).size < total:
            raise ValueError("blocks: a cooperative launch runs all of its blocks, since they wait for each other")
        if launch.cluster != (1, 1, 1):
            numbers = in_clusters(numbers, launch.grid, launch.cluster)
        if trace is not None:
            trace.begin(plan, launch)
        size = self._blocks_per_batch(plan, launch)
        if apart := may_run_apart(plan, launch, numbers.size):
            size = blocks_apart(size, numbers.size)
        batches = Batches(plan, launch, numbers, size, progress)
        self.threads_used = min(thread_count(threads), len(batches.parts)) if apart else 1
        try:
            batches.run(self.threads_used)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"kernel {name!r} was interrupted in the emulator, with at least {batches.done} of {numbers.size} "
                "blocks done: what it writes is incomplete"
            ) from None

    @staticmethod
    def _make_cooperative(launch: Launch) -> None:
        """Give a launch the driver's workspace: its second word is the barrier of the grid."""
        workspace = Region("the grid's barrier", slot_base(WORKSPACE_SLOT), np.zeros(64, np.uint8))
        launch.regions[WORKSPACE_SLOT] = workspace
        launch.cooperative = True

    @staticmethod
    def _blocks_per_batch(plan: Plan, launch: Launch) -> int:
        """Return how many blocks run at once: enough lanes to be fast, little enough memory."""
        if launch.cooperative:
            return math.prod(launch.grid)
        shadowed = launch.trace is not None and launch.trace.detector is not None
        lanes = TRACED_LANES_PER_BATCH if shadowed else LANES_PER_BATCH
        if any(step.polls for step in plan.blocks):
            lanes *= 4  # blocks that wait for each other must run in one batch
        local = sum(size for _, _, size in plan.local_layout.values())
        memory = plan.static_shared + launch.shared_bytes + local * launch.threads
        most = MEMORY_PER_BATCH // max(1, memory * (SHADOW_BYTES if shadowed else 1))
        whole = math.prod(launch.cluster)
        return max(1, min(lanes // launch.threads, most) // whole) * whole

    def _launch(self, name: str, grid, block, args, shared_bytes: int, trace, names) -> Launch:
        grid, block = _dimensions(grid, "grid"), _dimensions(block, "block")
        threads = block[0] * block[1] * block[2]
        if threads > MAX_THREADS:
            raise ValueError(f"block {block} has {threads} threads; a GPU takes at most {MAX_THREADS}")
        parameters = self._function(name).parameters
        if len(args) != len(parameters):
            raise TypeError(f"kernel {name!r} takes {len(parameters)} arguments; {len(args)} were given")
        regions = dict(self._regions)
        data = bytearray()
        slot = self._next_slot
        for position, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
            data += bytes(-len(data) % parameter.align)
            label = names[position] if names else f"argument {position}"
            if isinstance(value, np.ndarray):
                region = _array_region(label, slot, value)
                regions[slot] = region
                slot += 1
                raw = region.base.to_bytes(8, "little")
            elif isinstance(value, TensorMap):
                region = _array_region(label, slot, value.array)
                regions[slot] = region
                slot += 1
                raw = value.encode(region.base)
            elif isinstance(value, np.generic):
                raw = value.tobytes()
            elif isinstance(value, (bytes, bytearray, memoryview)):
                raw = bytes(value)
            else:
                raise TypeError(f"{label} of kernel {name!r} is {type(value).__name__}: give a NumPy array or scalar")
            if len(raw) != parameter.size:
                raise TypeError(
                    f"{label} of kernel {name!r} has {len(raw)} bytes; the kernel declares {parameter.size}"
                )
            data += raw
        parameter_bytes = np.frombuffer(bytes(data), np.uint8)
        regions[PARAMETER_SLOT] = Region("the parameters", slot_base(PARAMETER_SLOT), parameter_bytes, "parameter")
        cluster = self._function(name).cluster or (1, 1, 1)
        if any(size % part for size, part in zip(grid, cluster, strict=True)):
            raise ValueError(f"grid {grid} is no multiple of the kernel's cluster {cluster}")
        return Launch(grid, block, threads, int(shared_bytes), bytes(data), regions, trace, cluster)


def _is_asynchronous(item) -> bool:
    """Whether an instruction belongs to what runs on beside the threads: mbarrier, bulk copies, wgmma."""
    opcode = getattr(item, "opcode", "")
    return opcode in ("wgmma", "mbarrier", "mapa") or (opcode == "cp" and "bulk" in item.modifiers)


def _dimensions(value: Sequence[int], what: str) -> tuple[int, int, int]:
    sizes = tuple(int(v) for v in (value if isinstance(value, Sequence) else (value,)))
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise ValueError(f"{what} must be one to three positive numbers; it is {value}")
    return (*sizes, *(1,) * (3 - len(sizes)))


def _array_region(label: str, slot: int, value: np.ndarray) -> Region:
    if not value.flags.c_contiguous:
        raise ValueError(f"{label} must be C-contiguous: a kernel sees memory, not strides")
    return Region(label, slot_base(slot) + skew(value), value.reshape(-1).view(np.uint8))


def skew(value: np.ndarray) -> int:
    """Return how many bytes past a multiple of 32 an array begins here: its address keeps its own alignment.

    A view at an odd offset is thus misaligned here too. NumPy's own memory begins at multiples of 16, a GPU's at those
    of 256: there, half a sector counts from the start of the array that the view belongs to.
    """
    if not value.size:
        return 0
    owner = value
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    address, start = (array.__array_interface__["data"][0] for array in (value, owner))
    return address & 15 | (address - (start & 16 if owner.base is None else 0)) & 16


def readable(name: str) -> str:
    """Return a variable's name in the source, from its mangled one (`_ZZ4tileE1a`, `_ZN3abcE`)."""
    if not name.startswith("_Z"):
        return name
    found, place = name, 0
    while match := re.compile(r"\d+").search(name, place):
        place = match.end()
        length = int(match.group())
        word = name[place : place + length]
        if len(word) == length and re.fullmatch(r"[A-Za-z_]\w*", word):
            found, place = word, place + length
    return found


def _keep_freed_memory() -> None:
    """Make malloc keep what NumPy frees: glibc raises its thresholds when a large block is freed once.

    Without this, arrays of 128 KiB and more are mapped and unmapped on every operation, five to ten times slower.
    """
    np.empty(31 << 20, np.uint8)


_keep_freed_memory()
