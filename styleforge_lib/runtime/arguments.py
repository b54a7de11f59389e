"""What a caller passes, held against what the kernel declares: everything is checked before anything runs.

Contents
    scalar          a Python or NumPy number -> the same number in the declared type
    array           a torch, NumPy or CuPy array -> Array: address and device, when dtype and layout are right
    as_tuple        the arguments, as many as are declared
    launch_shape    grid, block and dynamic shared memory -> six sizes within the limits
    check_resident  all blocks of a cooperative launch must fit on the card at once

Every refusal names the parameter and says what to do. TypeError: the wrong kind or dtype. ValueError: the right kind, a
wrong value, shape, layout or device.
"""

import math
import operator
import struct
from dataclasses import dataclass

import numpy as np
import torch

from styleforge_lib.runtime.resources import MAX_THREADS_PER_BLOCK
from styleforge_lib.runtime.signature import SCALAR_FORMATS, Parameter
from styleforge_lib.runtime.tensor_maps import TensorMap

MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)


@dataclass(frozen=True)
class Array:
    """An array that may be passed: its first byte's address, its device ("cpu", "cuda:0"), and the object itself."""

    pointer: int
    device: str
    value: object


def scalar(kernel: str, parameter: Parameter, value: object) -> int | float | bytes:
    """Return `value` as `struct` packs it for the declared type: int, float, or the bytes of a struct."""
    where = f"kernel '{kernel}', {parameter}"
    if parameter.kind == "struct":
        content = value.tobytes() if isinstance(value, (np.void, np.ndarray, TensorMap)) else value
        if not isinstance(content, bytes):
            raise TypeError(
                f"{where}: a struct by value is passed as bytes or a NumPy structured scalar, not {_kind(value)}"
            )
        if len(content) != parameter.size:
            raise ValueError(f"{where}: the struct has {parameter.size} bytes, the value {len(content)}")
        return content
    if not isinstance(value, _NUMBERS):
        hint = " Pass a number: .item() gives the one that it holds." if hasattr(value, "item") else ""
        raise TypeError(f"{where}: needs a number, not {_kind(value)}.{hint}")
    if parameter.dtype == "bool":
        if value not in (0, 1) or isinstance(value, (float, np.floating)):
            raise TypeError(f"{where}: needs True or False, not {value!r}")
        return int(value)
    if parameter.dtype in ("float16", "bfloat16", "float32", "float64"):
        return _floating(where, parameter.dtype, value)
    if isinstance(value, (float, np.floating)):
        raise TypeError(f"{where}: needs an integer, not the float {value!r}. Write int(...) if it is meant as one.")
    number = int(value)
    try:
        struct.pack("<" + SCALAR_FORMATS[parameter.dtype], number)
    except struct.error:
        raise ValueError(f"{where}: {number} does not fit into {parameter.dtype}") from None
    return number


def _floating(where: str, dtype: str, value: object) -> float | int:
    try:
        number = float(value)
        if dtype == "bfloat16":  # `struct` has no such format: its bits travel as an unsigned short
            rounded = torch.tensor(number, dtype=torch.bfloat16)
            overflow = math.isfinite(number) and not torch.isfinite(rounded)
            number = rounded.view(torch.uint16).item()
        else:
            struct.pack("<" + SCALAR_FORMATS[dtype], number)  # "<": the native format would round 1e39 to infinity
            overflow = False
    except OverflowError:
        overflow = True
    if overflow:
        raise ValueError(f"{where}: {value!r} does not fit into {dtype}")
    return number


def array(kernel: str, parameter: Parameter, value: object) -> Array:
    """Check an array against a pointer parameter. None is the null pointer, for what a kernel may leave out."""
    where = f"kernel '{kernel}', {parameter}"
    if value is None:
        return Array(0, "any", None)
    if isinstance(value, torch.Tensor):
        found = _tensor(where, parameter, value)
    elif isinstance(value, np.ndarray):
        found = _numpy(where, parameter, value, "cpu", value.ctypes.data)
    elif type(value).__module__.partition(".")[0] == "cupy" and hasattr(value, "data"):
        found = _numpy(where, parameter, value, f"cuda:{value.device.id}", value.data.ptr)
    else:
        raise TypeError(f"{where}: needs a torch tensor, a NumPy or a CuPy array, not {_kind(value)}")
    if not math.prod(value.shape):
        raise ValueError(f"{where}: the array is empty, shape {tuple(value.shape)}: there is nothing to launch for")
    if found.pointer % parameter.alignment:
        raise ValueError(
            f"{where}: the address must be a multiple of {parameter.alignment} bytes, and this view starts "
            f"{found.pointer % parameter.alignment} bytes past one. Pass a copy: .clone() or .copy()."
        )
    return found


def _tensor(where: str, parameter: Parameter, value: torch.Tensor) -> Array:
    dtype = str(value.dtype).removeprefix("torch.")
    _check_dtype(where, parameter, dtype, f"x.to(torch.{parameter.dtype})")
    if value.layout is not torch.strided or value.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{where}: needs an ordinary tensor on the CPU or a GPU, not {value.layout} on {value.device}")
    if not value.is_contiguous():
        if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(
                f"{where}: the tensor is channels_last, and the kernel sees bare memory. For a kernel that reads NCHW "
                "pass x.contiguous(); for one that reads NHWC pass x.permute(0, 2, 3, 1), which copies nothing."
            )
        raise ValueError(
            f"{where}: the tensor is not contiguous (shape {tuple(value.shape)}, strides {value.stride()}), and the "
            "kernel sees bare memory. Pass x.contiguous(); for an output, write into a contiguous tensor and copy."
        )
    return Array(value.data_ptr(), str(value.device), value)


def _numpy(where: str, parameter: Parameter, value: np.ndarray, device: str, pointer: int) -> Array:
    dtype = value.dtype.name
    if parameter.dtype == "bfloat16" and dtype == "uint16":
        dtype = "bfloat16"  # NumPy has no bfloat16 of its own: its bits may come as uint16
    _check_dtype(where, parameter, dtype, f"x.astype('{parameter.dtype}')")
    if not value.dtype.isnative:
        raise TypeError(
            f"{where}: the bytes of {value.dtype} are in foreign order. Pass x.astype('{value.dtype.name}')."
        )
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{where}: the array is not C-contiguous (shape {value.shape}, strides {value.strides}), and the kernel "
            "sees bare memory. Pass np.ascontiguousarray(x); for an output, write into a contiguous array and copy."
        )
    if not parameter.const and device == "cpu" and not value.flags.writeable:
        raise ValueError(f"{where}: the array is read-only, and the kernel may write through this pointer")
    return Array(pointer, device, value)


def _check_dtype(where: str, parameter: Parameter, dtype: str, remedy: str) -> None:
    if parameter.dtype is not None and dtype != parameter.dtype:
        raise TypeError(f"{where}: needs {parameter.dtype}, not {dtype}. Pass {remedy}.")


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def as_tuple(kernel: str, parameters: tuple[Parameter, ...], args: object) -> tuple:
    """Return the arguments as a tuple of the right length."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"kernel '{kernel}': args must be a tuple, such as (x, n), not {_kind(args)}")
    if len(args) != len(parameters):
        declared = ", ".join(f"{parameter.c_type} {parameter.name}" for parameter in parameters) or "none"
        raise TypeError(
            f"kernel '{kernel}' has {len(parameters)} parameters ({declared}), and {len(args)} arguments were given"
        )
    return tuple(args)


@dataclass(frozen=True)
class LaunchLimits:
    """What a kernel may be launched with on its device: threads per block, bytes of shared memory (static and all)."""

    arch: str
    max_threads: int
    threads_because: str
    static_shared: int
    max_shared: int


def launch_shape(
    kernel: str, limits: LaunchLimits, grid: object, block: object, shared_bytes: int
) -> tuple[int, int, int, int, int, int]:
    """Return grid and block as six sizes; ValueError for a launch that the device would refuse."""
    grid, block = _sizes(kernel, "grid", grid, MAX_GRID), _sizes(kernel, "block", block, MAX_BLOCK)
    threads = math.prod(block)
    if threads > MAX_THREADS_PER_BLOCK:
        raise ValueError(
            f"kernel '{kernel}': block={block} has {threads} threads; a block has at most {MAX_THREADS_PER_BLOCK}. "
            "Use smaller blocks and more of them."
        )
    if threads > limits.max_threads:
        raise ValueError(
            f"kernel '{kernel}': block={block} has {threads} threads, but {limits.threads_because} allows at most "
            f"{limits.max_threads}"
        )
    try:
        shared_bytes = operator.index(shared_bytes)
    except TypeError:
        raise TypeError(f"kernel '{kernel}': shared_bytes must be an integer, not {_kind(shared_bytes)}") from None
    if shared_bytes < 0:
        raise ValueError(f"kernel '{kernel}': shared_bytes={shared_bytes} is negative")
    if limits.static_shared + shared_bytes > limits.max_shared:
        raise ValueError(
            f"kernel '{kernel}': {limits.static_shared} bytes of static and {shared_bytes} of dynamic shared memory "
            f"are more than the {limits.max_shared} that a block may have on {limits.arch}"
        )
    return (*grid, *block)


def check_resident(
    kernel: str, shape: tuple[int, ...], per_multiprocessor: int, multiprocessors: int, card: str
) -> None:
    """ValueError where the blocks of a cooperative launch, which wait for each other, do not fit on a card at once."""
    blocks, room = math.prod(shape[:3]), per_multiprocessor * multiprocessors
    if blocks > room:
        raise ValueError(
            f"kernel '{kernel}': a cooperative launch of {blocks} blocks of {math.prod(shape[3:6])} threads, but only "
            f"{room} can be resident at once on {card}: {per_multiprocessor} on each of {multiprocessors} "
            "multiprocessors. Launch at most that many blocks, and let each do more of the work."
        )


def _sizes(kernel: str, name: str, value: object, maximum: tuple[int, int, int]) -> tuple[int, int, int]:
    given = value if isinstance(value, (tuple, list, torch.Size)) else (value,)
    try:
        sizes = tuple(operator.index(size) for size in given)
    except TypeError:
        raise TypeError(f"kernel '{kernel}': {name} must be up to three integers, not {value!r}") from None
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"kernel '{kernel}': {name} must be up to three integers, not {value!r}")
    sizes = (*sizes, 1, 1)[:3]
    for axis, size, most in zip("xyz", sizes, maximum, strict=True):
        if size < 1:
            raise ValueError(
                f"kernel '{kernel}': {name}={value} has no {'blocks' if name == 'grid' else 'threads'} in {axis}"
            )
        if size > most:
            raise ValueError(f"kernel '{kernel}': {name}={value} is more than {most} in {axis}")
    return sizes
