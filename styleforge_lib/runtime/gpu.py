"""Launches on an NVIDIA GPU: CuPy's driver API, torch's current stream, no allocation.

Contents
    available, card_arch    is there a card, and which architecture to compile for
    GpuModule               a cubin in the driver, once for each card; its kernels and variables
    GpuLauncher             a kernel that is ready: checks the arguments, packs them, launches; alone, cooperatively, or
                            overlapping the kernel before

A launch is on the path of every inference, so the usual case (torch tensors of the declared dtypes, None for a null
pointer, Python numbers) goes through one written-out comparison, one `struct` that packs every value, and the driver.
Whatever is not the usual case goes to `arguments.py`, which either converts it or says what is wrong. Nothing is
allocated on the card and the stream is torch's, so a launch inside `torch.cuda.graph` is captured like any other;
loading, which a capture does not allow, is done when the kernel is made.
"""

import copy
import ctypes
import functools
import math
import struct
import sys

import numpy as np
import torch

from styleforge_lib.runtime.arguments import Array, LaunchLimits, array, as_tuple, check_resident, launch_shape, scalar
from styleforge_lib.runtime.signature import Parameter

_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_INTEGERS = frozenset({int, bool, np.int32, np.int64})
_FLOATS = _INTEGERS | {float, np.float32, np.float64}
_SHAPES_KEPT = 1024  # checked launch shapes that a kernel remembers
_NONE = -1  # no card
_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT: this thread has not touched the card yet
# cuda.h: CUlaunchConfig (grid, block, shared memory, stream, attributes, how many), and the one attribute,
# CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6, which is allowed.
_CONFIGURATION = struct.Struct("<7I4xQQI4x")
_MAY_OVERLAP = ctypes.create_string_buffer(struct.pack("<i4xi60x", 6, 1), 72)


def available() -> bool:
    """Return whether torch sees an NVIDIA GPU."""
    return torch.cuda.is_available() and torch.version.cuda is not None


def card_arch() -> str:
    """Return the architecture of torch's current card; from Hopper on with the card's own instructions ("sm_90a")."""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


class GpuModule:
    """A cubin, loaded into each card that launches from it; a later card than it is for compiles the PTX.

    It is never unloaded: a CUDA graph may hold its kernels for longer than Python holds this object.
    """

    def __init__(self, cubin: bytes, ptx: str, arch: str):
        self.cubin, self.ptx, self.arch = cubin, ptx, arch
        self._handles: dict[int, int] = {}

    def function(self, entry: str, device: int) -> int:
        """Return the driver's handle of a kernel on a card; loads the cubin there the first time."""
        from cupy.cuda import driver

        with torch.cuda.device(device):
            return driver.moduleGetFunction(self._handle(device), entry)

    def copy(self, symbol: str, array: torch.Tensor | np.ndarray, address: int, write: bool) -> None:
        """Copy an array, which begins at `address`, into a variable of the current card, or the variable into it.

        The copy follows what is on torch's current stream; one from or to the CPU is done on return.
        """
        from cupy.cuda import driver, runtime

        device = torch.cuda.current_device()
        variable = driver.moduleGetGlobal(self._handle(device), symbol)
        stream = torch.cuda.current_stream(device)
        on_card = isinstance(array, torch.Tensor) and array.is_cuda
        if on_card:
            kind = runtime.memcpyDeviceToDevice
        else:
            kind = runtime.memcpyHostToDevice if write else runtime.memcpyDeviceToHost
        target, source = (variable, address) if write else (address, variable)
        runtime.memcpyAsync(target, source, array.nbytes, kind, stream.cuda_stream)
        if not on_card:
            stream.synchronize()

    def _handle(self, device: int) -> int:
        """Return the module on a card, which is the current one; loads the cubin there the first time."""
        from cupy.cuda import driver

        _ensure_context()
        if device not in self._handles:
            try:
                self._handles[device] = driver.moduleLoadData(self._code_for(device))
            except driver.CUDADriverError as error:
                raise RuntimeError(
                    f"the card cuda:{device} ({torch.cuda.get_device_name(device)}, {card_arch()}) does not take "
                    f"code compiled for {self.arch}: {error}. Leave arch out to compile for the card."
                ) from error
        return self._handles[device]

    def _code_for(self, device: int) -> bytes:
        """Return the cubin; for a card of a later generation the PTX, unless that is for one card alone (sm_90a)."""
        number = self.arch.removeprefix("sm_")
        later = number.isdigit() and int(number) // 10 < torch.cuda.get_device_capability(device)[0]
        return self.ptx.encode() if later else self.cubin


def _ensure_context() -> None:
    """Make the card's context current in this thread; cudaFree(0) is the customary way to ask for it."""
    from cupy.cuda import runtime

    runtime.free(0)


class GpuLauncher:
    """One kernel, ready to be launched on any card. Call it as `launcher(grid, block, args, shared_bytes)`.

    `launcher.together(...)` launches cooperatively: the blocks may wait for each other. `launcher.overlapping` is the
    same launcher, whose launches may begin before the kernel ahead of them in the stream has ended.
    """

    def __init__(self, name: str, entry: str, parameters: tuple[Parameter, ...], module: GpuModule):
        from cupy.cuda import driver

        self.name, self.entry, self.parameters, self.module = name, entry, parameters, module
        self._launch, self._error = driver.launchKernel, driver.CUDADriverError
        self._stream, self._current = torch._C._cuda_getCurrentRawStream, torch._C._cuda_getDevice
        self._functions: dict[int, int] = {}
        self._resident: set[tuple[int, ...]] = set()
        self._shapes: dict[tuple, tuple[int, ...]] = {}
        self._packets: list[_Packet] = []
        self._packing = struct.Struct("<" + "".join(parameter.format for parameter in parameters))
        self._quick = quick_check(parameters)
        self.limits = self._load(torch.cuda.current_device())

    def __call__(self, grid, block, args, shared_bytes: int) -> None:
        """Check, pack and launch on torch's current stream; errors as `Kernel` says."""
        try:
            shape = self._shapes[grid, block, shared_bytes]
        except (KeyError, TypeError):
            shape = self._check_shape(grid, block, shared_bytes)
        if type(args) is not tuple or len(args) != len(self.parameters):
            args = as_tuple(self.name, self.parameters, args)
        device, values = self._quick(*args)
        if device in self._functions and device == self._current():
            packet = self._pack(values)
            if packet is not None:
                try:
                    self._launch(self._functions[device], *shape, self._stream(device), packet.address, 0)
                except self._error as error:
                    self._recover(error, device, shape, packet)
                self._packets.append(packet)
                return
        self._launch_with_care(shape, args)

    def together(self, grid, block, args, shared_bytes: int) -> None:
        """Launch cooperatively: all blocks are resident at once, else ValueError."""
        self._resident_twin(grid, block, args, shared_bytes)

    @functools.cached_property
    def _resident_twin(self) -> "GpuLauncher":
        """The same launcher, whose launches are cooperative; what it has loaded and checked is shared."""
        twin = copy.copy(self)
        twin._launch = self._launch_resident
        return twin

    @functools.cached_property
    def overlapping(self) -> "GpuLauncher":
        """The same launcher, with programmatic stream serialization; what it has loaded and checked is shared."""
        twin = copy.copy(self)
        twin._launch = overlapping_launch
        return twin

    def _launch_resident(self, function: int, *rest: int) -> None:
        """Launch as `driver.launchKernel` does, but cooperatively, once it is certain that the blocks fit."""
        from cupy.cuda import driver

        launch = (function, *rest[:7])
        if launch not in self._resident:  # each launch is held against its card once: a handle belongs to one card
            shape, shared_bytes = rest[:6], rest[6]
            fitting = driver.occupancyMaxActiveBlocksPerMultiprocessor(function, math.prod(shape[3:]), shared_bytes)
            properties = torch.cuda.get_device_properties(torch.cuda.current_device())
            check_resident(self.name, shape, fitting, properties.multi_processor_count, properties.name)
            if len(self._resident) >= _SHAPES_KEPT:
                self._resident.clear()
            self._resident.add(launch)
        driver.launchCooperativeKernel(function, *rest[:-1])

    def _pack(self, values: list) -> "_Packet | None":
        """Put the values where the driver reads them; None where one does not fit its type."""
        try:
            packet = self._packets.pop()  # nobody else's until it is given back, so threads may share a kernel
        except IndexError:
            packet = _Packet(self.parameters, self._packing.size)
        try:
            self._packing.pack_into(packet.slots, 0, *values)
        except (struct.error, OverflowError):
            return None
        return packet

    def _launch_with_care(self, shape: tuple[int, ...], args) -> None:
        """Launch what the quick way did not take: another card, CuPy arrays, NumPy numbers; or say what is wrong."""
        values, device = self._checked(args)
        if device == _NONE:
            device = self._current()
        packet = self._pack(values)
        with torch.cuda.device(device):
            if device not in self._functions:
                self._load(device)
            try:
                self._launch(self._functions[device], *shape, self._stream(device), packet.address, 0)
            except self._error as error:
                self._recover(error, device, shape, packet)
        self._packets.append(packet)

    def _recover(self, error: Exception, device: int, shape: tuple[int, ...], packet: "_Packet") -> None:
        """Launch again where this thread had no context yet; any other refusal of the driver is an error."""
        if error.status == _INVALID_CONTEXT:
            _ensure_context()
            self._launch(self._functions[device], *shape, self._stream(device), packet.address, 0)
            return
        raise RuntimeError(
            f"kernel '{self.name}' was not launched: {error}. If it names an illegal access, an earlier kernel made "
            "it, and this process has lost the card: restart it, and look for that kernel with xray()."
        ) from error

    def _check_shape(self, grid, block, shared_bytes: int) -> tuple[int, ...]:
        shape = (*launch_shape(self.name, self.limits, grid, block, shared_bytes), shared_bytes)
        if isinstance(grid, (int, tuple)) and isinstance(block, (int, tuple)):
            if len(self._shapes) >= _SHAPES_KEPT:
                self._shapes.clear()
            self._shapes[grid, block, shared_bytes] = shape
        return shape

    def _checked(self, args) -> tuple[list, int]:
        """Check and convert every argument: the values as the packing takes them, and the card that they live on."""
        values, owner = [], None
        for parameter, value in zip(self.parameters, args, strict=True):
            if parameter.kind != "pointer":
                values.append(scalar(self.name, parameter, value))
                continue
            found = array(self.name, parameter, value)
            if found.device == "cpu":
                remedy = "x.cuda()" if isinstance(value, torch.Tensor) else "torch.from_numpy(x).cuda()"
                raise ValueError(f"kernel '{self.name}', {parameter}: the array is on the CPU. Pass {remedy}.")
            if found.value is not None:
                if owner and found.device != owner[1].device:
                    raise ValueError(
                        f"kernel '{self.name}': '{owner[0].name}' is on {owner[1].device} and '{parameter.name}' on "
                        f"{found.device}: one launch has one card"
                    )
                owner = owner or (parameter, found)
            values.append(found.pointer)
        return values, _card(owner[1]) if owner else _NONE

    def _load(self, device: int) -> LaunchLimits:
        """Load the kernel on a card, allow it all the shared memory that the card has, and return its limits there."""
        from cupy.cuda import driver

        function = self.module.function(self.entry, device)
        properties = torch.cuda.get_device_properties(device)
        static = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function)
        threads = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function)
        registers = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_NUM_REGS, function)
        shared = properties.shared_memory_per_block_optin
        driver.funcSetAttribute(function, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared - static)
        self._functions[device] = function
        because = f"its __launch_bounds__ or its use of {registers} registers a thread"
        return LaunchLimits(self.module.arch, threads, because, static, shared)


def overlapping_launch(function: int, *rest: int) -> None:
    """Launch as `driver.launchKernel` does, but with the attribute that CuPy's calls have no place for.

    The driver reads both structures before it returns, so that a string of bytes is enough for the first, and all
    launches share the second.
    """
    *sizes, stream, packet, _ = rest
    configuration = _CONFIGURATION.pack(*sizes, stream, ctypes.addressof(_MAY_OVERLAP), 1)
    status = _launch_kernel_ex()(configuration, function, packet, None)
    if status:
        from cupy.cuda import driver

        raise driver.CUDADriverError(status)


@functools.cache
def _launch_kernel_ex():
    """Return the driver's cuLaunchKernelEx, which CuPy does not wrap; the driver itself is loaded long since."""
    launch = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuLaunchKernelEx
    launch.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return launch


class _Packet:
    """The memory that the driver reads a launch's arguments from: the values, and the pointers to them."""

    def __init__(self, parameters: tuple[Parameter, ...], size: int):
        self.slots = ctypes.create_string_buffer(max(size, 1))
        start, addresses = ctypes.addressof(self.slots), []
        for parameter in parameters:
            addresses.append(start)
            start += struct.calcsize("<" + parameter.format)
        self._pointers = (ctypes.c_void_p * max(len(addresses), 1))(*addresses)
        self.address = ctypes.addressof(self._pointers)


def quick_check(parameters: tuple[Parameter, ...]):
    """Write the function that takes a launch's arguments in the usual case: `(card, values)`, or `(_NONE, ())`.

    The usual case is contiguous torch tensors of the declared dtypes on one card, None for what a kernel may leave out,
    and numbers of a fitting Python type. It is written out for the parameters at hand, as `dataclasses` writes
    `__init__`: a loop over them costs a quarter more.
    """
    pointers = [parameter for parameter in parameters if parameter.kind == "pointer"]
    if not pointers or any(_unusual(parameter) for parameter in parameters):
        return lambda *args: (_NONE, ())
    scope = {"TENSORS": _TENSORS, "FLOATS": _FLOATS, "INTEGERS": _INTEGERS}
    scope |= {f"dtype{parameter.index}": getattr(torch, parameter.dtype) for parameter in pointers}
    lines = [f"def quick({', '.join(f'a{parameter.index}' for parameter in parameters)}):", "card = None"]
    for parameter in parameters:
        lines += _pointer_lines(parameter) if parameter in pointers else _number_lines(parameter)
    values = [f"{'p' if parameter in pointers else 'a'}{parameter.index}" for parameter in parameters]
    lines.append(f"return card, ({', '.join(values)},)")
    exec("\n    ".join(lines), scope)
    return scope["quick"]


def _number_lines(parameter: Parameter) -> list[str]:
    fitting = "FLOATS" if parameter.dtype.startswith("float") else "INTEGERS"
    return [f"if type(a{parameter.index}) not in {fitting}: return {_NONE}, ()"]


def _pointer_lines(parameter: Parameter) -> list[str]:
    """Find the address, p; `card` becomes that of the first tensor, and must be that of all."""
    a, p, unusual = f"a{parameter.index}", f"p{parameter.index}", f"return {_NONE}, ()"
    fits = f"type({a}) in TENSORS and {a}.dtype is dtype{parameter.index} and {a}.is_contiguous()"
    return [
        f"if {a} is None: {p} = 0",
        f"elif not ({fits} and ({p} := {a}.data_ptr()) and not {p} & {parameter.alignment - 1}): {unusual}",
        f"elif (found := {a}.get_device()) != card:",
        f"    if card is not None or found < 0: {unusual}",
        "    card = found",
    ]


def _unusual(parameter: Parameter) -> bool:
    """Return whether `arguments.py` must convert this parameter on every call."""
    return parameter.dtype is None or (parameter.kind == "scalar" and parameter.dtype in ("bool", "bfloat16"))


def _card(found: Array) -> int:
    return int(found.device.partition(":")[2] or 0)
