"""`compile_cuda`: CUDA text becomes a Module, and its kernels are called alike on a GPU and on the emulator.

Contents
    compile_cuda        text or file -> Module
    Module              what was compiled; `module.kernel(name)`, and with one kernel the module is called itself;
                        `module.variable(name)`
    Kernel              `kernel(grid, block, args, *, shared_bytes=0, cooperative=False, overlap=False)`, checked before
                        anything runs
    chosen_device       the GPU where there is one, else the emulator
    watching            is told of each launch
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from styleforge_lib.paths import data_folder
from styleforge_lib.runtime import gpu
from styleforge_lib.runtime.arguments import LaunchLimits, array, as_tuple, check_resident, launch_shape, scalar
from styleforge_lib.runtime.compiler import cache_directory, compile_text
from styleforge_lib.runtime.emulator import EmulatorFault, Program
from styleforge_lib.runtime.resources import Resources, limits
from styleforge_lib.runtime.signature import SCALAR_FORMATS, Parameter, base_name, parse_signature
from styleforge_lib.runtime.tensor_maps import TensorMap
from styleforge_lib.runtime.variables import Variable, emulated_copy

DEVICE_VARIABLE = "STYLEFORGE_DEVICE"
FIRST_TO_OVERLAP = 90  # the compute capability, times ten, from which on launches may overlap
EMULATED_ARCH = "sm_80"  # what is compiled where no card says otherwise: mma.m16n8k16, cp.async and bfloat16 are in it


def chosen_device() -> str:
    """Return "gpu" or "emulator": what STYLEFORGE_DEVICE asks for, else the GPU where torch sees one."""
    wish = os.environ.get(DEVICE_VARIABLE, "").strip().lower()
    if wish not in ("", "gpu", "emulator"):
        raise ValueError(f"{DEVICE_VARIABLE}={wish!r}: write gpu or emulator, or leave it out")
    if wish == "gpu" and not gpu.available():
        raise RuntimeError(
            f"{DEVICE_VARIABLE}=gpu, but torch sees no NVIDIA GPU here; leave it out to use the emulator"
        )
    return wish or ("gpu" if gpu.available() else "emulator")


def compile_cuda(
    source_or_path: str | Path,
    *,
    defines: Mapping[str, object] | None = None,
    arch: str | None = None,
    options: Iterable[str] = (),
    name: str | None = None,
) -> "Module":
    """Compile CUDA C++ and return a Module, whose kernels run on the GPU where there is one, else on the emulator.

    source_or_path: the text itself, or a .cu file (looked for here, then among the library's kernels). defines: macros,
    {"TILE": 16}. arch: "sm_80", "sm_90a", ...; left out, the card's own, or sm_80 on the emulator; a later card than it
    names runs it, too, unless it ends in "a". options: further options for NVRTC. name: what messages call a text that
    has no file. A text that does not compile raises CompileError.
    """
    if not isinstance(source_or_path, (str, Path)):
        raise TypeError(f"source_or_path must be CUDA text or a path, not {type(source_or_path).__name__}")
    device = chosen_device()
    if arch is None:
        arch = gpu.card_arch() if device == "gpu" else EMULATED_ARCH
    if not arch.startswith("sm_"):
        raise ValueError(f'arch={arch!r}: a kernel that is to run needs a real architecture, such as "sm_80"')
    text, include = source_or_path, ()
    if isinstance(source_or_path, Path) or re.fullmatch(r"[^\n{}();]+\.cuh?", source_or_path.strip()):
        path = _find(Path(source_or_path))
        text, name, include = path.read_text("utf-8"), name or str(path), (path.parent,)
    compiled = compile_text(
        text, arch=arch, name=name or "kernel.cu", defines=defines, options=options, include=include
    )
    return Module(text, compiled, device)


_watchers: list[Callable[..., None]] = []


@contextlib.contextmanager
def watching(watcher: Callable[..., None]) -> Iterator[None]:
    """Call `watcher(kernel, grid, block, args, shared_bytes=..., cooperative=...)` before each launch of a kernel."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def _find(path: Path) -> Path:
    for candidate in (path, data_folder("cuda") / path):
        if candidate.is_file():
            return candidate.resolve()
    raise FileNotFoundError(f"no file {path} here, nor among the library's kernels in {data_folder('cuda')}")


class Module:
    """CUDA text, compiled. text, name, arch, ptx, cubin: as given and as made. device: "gpu" or "emulator".

    kernels: the names of its kernels, in the order of the PTX. warnings: what the compiler remarked.
    """

    def __init__(self, text: str, compiled, device: str):
        self.text, self.device, self._compiled = text, device, compiled
        self.name, self.arch, self.ptx, self.cubin = compiled.name, compiled.arch, compiled.ptx, compiled.cubin
        self.warnings = compiled.warnings
        self._entries = _entries(compiled.signatures)
        self._kernels: dict[str, Kernel] = {}

    @property
    def kernels(self) -> tuple[str, ...]:
        """The names that `kernel` takes."""
        return tuple(self._entries)

    def kernel(self, name: str) -> "Kernel":
        """Return one kernel by its name in the source (an instance of a template: by its mangled name)."""
        if name not in self._entries:
            raise KeyError(f"no kernel '{name}' in {self.name}: there is {', '.join(self.kernels) or 'none at all'}")
        if name not in self._kernels:
            self._kernels[name] = Kernel(self, name, self._entries[name])
        return self._kernels[name]

    def variable(self, name: str) -> Variable:
        """Return a `__constant__` or `__device__` variable, to be written and read from the host."""
        held = {variable: size for variable, size in self.program.variables.items() if not variable.startswith("$")}
        if name not in held:
            raise KeyError(f"no variable '{name}' in {self.name}: there is {', '.join(held) or 'none at all'}")
        if self.device == "gpu":
            return Variable(name, held[name], functools.partial(self.loaded.copy, name), gpu=True)
        return Variable(name, held[name], emulated_copy(self.program.variable(name)), gpu=False)

    @functools.cached_property
    def only(self) -> "Kernel":
        """The module's kernel, where it has exactly one."""
        if len(self._entries) != 1:
            raise TypeError(
                f"{self.name} has {len(self._entries)} kernels ({', '.join(self.kernels) or 'none'}): choose one with "
                '.kernel("name")'
            )
        return self.kernel(next(iter(self._entries)))

    def __call__(
        self, grid, block, args, *, shared_bytes: int = 0, cooperative: bool = False, overlap: bool = False
    ) -> None:
        """Launch the module's one kernel, as `Kernel` does."""
        self.only(grid, block, args, shared_bytes=shared_bytes, cooperative=cooperative, overlap=overlap)

    @property
    def resources(self) -> Resources:
        """The resources of the module's one kernel."""
        return self.only.resources

    @functools.cached_property
    def program(self):
        """The module on the emulator, whatever its device is."""
        return Program(self.ptx, sources={self.name: self.text}, cache=cache_directory() / "translated")

    @functools.cached_property
    def loaded(self) -> gpu.GpuModule:
        """The module in the driver, for a module whose device is the GPU."""
        return gpu.GpuModule(self.cubin, self.ptx, self.arch)

    def __repr__(self) -> str:
        return f"<Module {self.name}: {', '.join(self.kernels) or 'no kernels'}; {self.arch}, {self.device}>"


def _entries(signatures: Mapping[str, str]) -> dict[str, str]:
    """Return {name: PTX entry}. Where several entries share a name (templates), each keeps its mangled one."""
    names = [base_name(entry) for entry in signatures]
    return {name if names.count(name) == 1 else entry: entry for name, entry in zip(names, signatures, strict=True)}


class Kernel:
    """One kernel: `kernel(grid, block, args, *, shared_bytes=0, cooperative=False, overlap=False)`, in CuPy's order.

    grid, block: up to three sizes. args: torch tensors, NumPy or CuPy arrays (contiguous, of the declared dtype, on the
    kernel's device), None for a null pointer, and Python or NumPy numbers, which are cast to the declared type. On a
    GPU the launch goes to torch's current stream and returns at once; on the emulator it is done on return.
    cooperative: all blocks run at once and may wait for each other, `cooperative_groups::this_grid().sync()`; there
    must be no more than fit on the card (on the emulator: on the card of the architecture that `resources.LIMITS`
    names).
    overlap: the blocks may begin while the kernel before in the stream still runs, once each of its blocks has executed
    `griddepcontrol.launch_dependents` or has ended (programmatic dependent launch; in a CUDA graph a programmatic
    edge). In return every thread executes `griddepcontrol.wait` before it reads or writes what an earlier kernel of the
    stream reads or writes, and before it ends; what it reads behind the wait it reads by plain loads, not by `__ldg` or
    through `const __restrict__`. cuda/common/programmatic_launch.cuh has the words, and says why. Before sm_90 such a
    launch is as any other; on the emulator kernels run one after the other. ValueError: a kernel that never waits, and
    on the emulator one that has a way to its end without a wait.
    TypeError, ValueError: an argument or a launch that does not fit, named; nothing has run then.
    """

    def __init__(self, module: Module, name: str, entry: str):
        self.module, self.name, self.entry = module, name, entry
        self.parameters: tuple[Parameter, ...] = parse_signature(
            entry, module._compiled.signatures[entry], module.ptx, module.text
        )
        self.resources: Resources = module._compiled.resources[entry]
        if module.device == "emulator":
            self._launch = self._launch_emulated
        elif module.arch == gpu.card_arch():
            self._launch = self._loaded()  # at once: a CUDA graph cannot capture a kernel that has yet to be loaded
        else:
            self._launch = self._launch_elsewhere

    def __call__(
        self, grid, block, args, *, shared_bytes: int = 0, cooperative: bool = False, overlap: bool = False
    ) -> None:
        """Launch: see the class."""
        for watcher in _watchers:
            watcher(self, grid, block, args, shared_bytes=shared_bytes, cooperative=cooperative)
        if overlap and self._may_overlap(cooperative):
            self._launch_overlapping(grid, block, args, shared_bytes)
        elif cooperative:
            self._launch_together(grid, block, args, shared_bytes)
        else:
            self._launch(grid, block, args, shared_bytes)

    def emulate(
        self,
        grid,
        block,
        args,
        *,
        shared_bytes: int = 0,
        cooperative: bool = False,
        blocks=None,
        trace=None,
        order: str = "together",
    ) -> None:
        """Run the kernel on the emulator, whatever the module's device is.

        Arrays on the CPU are changed in place; arrays on a GPU are copied first, so they keep their values. blocks,
        trace and order are those of Program.launch.
        """
        shape = launch_shape(self.name, self._limits, grid, block, shared_bytes)
        if cooperative:
            card = limits(self.module.arch)
            per_multiprocessor = self.resources.occupancy(shape[3:], shared_bytes).blocks
            named = f"{self.module.arch} ({card.card})"
            check_resident(self.name, shape, per_multiprocessor, card.multiprocessors, named)
        args = as_tuple(self.name, self.parameters, args)
        host = [self._host(parameter, value) for parameter, value in zip(self.parameters, args, strict=True)]
        names = [parameter.name for parameter in self.parameters]
        options = {"shared_bytes": shared_bytes, "cooperative": cooperative}
        options |= {"blocks": blocks, "trace": trace, "names": names, "order": order}
        try:
            with _Bar(self.name) as bar:
                self.module.program.launch(self.entry, shape[:3], shape[3:], host, progress=bar.show, **options)
        except (EmulatorFault, KeyboardInterrupt) as end:  # its sentence tells it all; the emulator's frames bury it
            raise end.with_traceback(None) from None

    def _loaded(self) -> gpu.GpuLauncher:
        return gpu.GpuLauncher(self.name, self.entry, self.parameters, self.module.loaded)

    def _launch_elsewhere(self, grid, block, args, shared_bytes: int) -> None:
        """Launch code that was compiled for another card: one may look at it, and the driver decides if it runs."""
        self._launch = self._loaded()
        self._launch(grid, block, args, shared_bytes)

    def _launch_together(self, grid, block, args, shared_bytes: int) -> None:
        if self.module.device == "emulator":
            self._launch_emulated(grid, block, args, shared_bytes, cooperative=True)
            return
        if not isinstance(self._launch, gpu.GpuLauncher):
            self._launch = self._loaded()
        self._launch.together(grid, block, args, shared_bytes)

    def _may_overlap(self, cooperative: bool) -> bool:
        if cooperative:
            raise ValueError(f"kernel '{self.name}': overlap and cooperative exclude each other: choose one")
        return self._overlaps

    @functools.cached_property
    def _overlaps(self) -> bool:
        """Whether overlap=True has a meaning on this architecture; ValueError where it would be a mistake."""
        if int(re.search(r"\d+", self.module.arch)[0]) < FIRST_TO_OVERLAP:
            return False
        text = self.module.ptx
        next_function = r"^\s*(?:\.\w+\s+)*\.(?:entry|func)\b"  # a line that is "}" may also end a scope of assembly
        pattern = rf"\.entry\s+{re.escape(self.entry)}\s*\(.*?(?={next_function}|\Z)"
        body = re.search(pattern, text, re.DOTALL | re.MULTILINE)[0]
        if "griddepcontrol.wait" not in (text if re.search(r"\bcall\b", body) else body):
            raise ValueError(
                f"kernel '{self.name}': overlap=True, and it never executes griddepcontrol.wait, so that it would read "
                "what the kernel before has yet to write. Call wait_for_earlier_kernels() of "
                "cuda/common/programmatic_launch.cuh before the first such access, or leave overlap out."
            )
        if self.module.device == "emulator" and (line := self.module.program.end_without_wait(self.entry)) is not None:
            raise ValueError(
                f"kernel '{self.name}': overlap=True, and threads can go from line {line} to their end without "
                "griddepcontrol.wait: a kernel behind it would then not wait for those before it. Let every thread "
                "wait, at the start if that is simplest."
            )
        return True

    def _launch_overlapping(self, grid, block, args, shared_bytes: int) -> None:
        if self.module.device == "emulator":
            self._launch_emulated(grid, block, args, shared_bytes)
            return
        if not isinstance(self._launch, gpu.GpuLauncher):
            self._launch = self._loaded()
        self._launch.overlapping(grid, block, args, shared_bytes)

    def _launch_emulated(self, grid, block, args, shared_bytes: int, cooperative: bool = False) -> None:
        for parameter, value in zip(self.parameters, as_tuple(self.name, self.parameters, args), strict=True):
            if getattr(value, "device", "cpu") not in ("cpu", torch.device("cpu")):
                raise ValueError(
                    f"kernel '{self.name}', {parameter}: the array is on {value.device}, and this kernel runs on the "
                    "emulator. Pass x.cpu() (CuPy: x.get())."
                )
        self.emulate(grid, block, args, shared_bytes=shared_bytes, cooperative=cooperative)

    def _host(self, parameter: Parameter, value: object):
        """Return what the emulator takes: a NumPy array that shares memory with `value`, or a NumPy scalar."""
        if parameter.kind == "struct" and isinstance(value, TensorMap):
            return value.emulated()
        if parameter.kind != "pointer":
            number = scalar(self.name, parameter, value)
            if parameter.kind == "struct":
                return np.void(number)
            return np.array(number, dtype=SCALAR_FORMATS[parameter.dtype])[()]
        found = array(self.name, parameter, value).value
        if found is None:
            return np.uint64(0)
        if isinstance(found, torch.Tensor):
            found = found.detach().cpu()
            return (found.view(torch.uint16) if found.dtype is torch.bfloat16 else found).numpy()
        return found if isinstance(found, np.ndarray) else found.get()

    @functools.cached_property
    def _limits(self) -> LaunchLimits:
        """What may be launched on the kernel's architecture, by the table."""
        resources = self.resources
        threads, because = resources.max_threads, "its __launch_bounds__"
        while threads > 32 and not resources.occupancy(min(threads, 1024)).blocks:
            threads, because = threads - 32, f"its use of {resources.registers} registers a thread"
        return LaunchLimits(resources.arch, threads, because, resources.shared, limits(resources.arch).shared_per_block)

    def __repr__(self) -> str:
        declared = ", ".join(f"{parameter.c_type} {parameter.name}" for parameter in self.parameters)
        return f"<Kernel {self.name}({declared}); {self.resources}, {self.module.device}>"


class _Bar:
    """A progress bar of the emulator's, for launches beyond two seconds; shorter ones never make one."""

    def __init__(self, name: str):
        self.name, self.bar = name, None

    def __enter__(self) -> "_Bar":
        return self

    def show(self, done: int, total: int) -> None:
        """Show how many blocks are done. A launch that stands at one number still shows the time pass."""
        if self.bar is None:
            options = {"delay": 2, "miniters": 0, "leave": False, "file": sys.stderr}
            self.bar = tqdm(desc=f"emulating {self.name}", total=total, unit="block", **options)
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()
