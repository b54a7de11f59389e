"""`tensor_map`: what a kernel needs to copy boxes of a tensor with cp.async.bulk.tensor (TMA).

    struct alignas(64) TensorMap { char bytes[128]; };
    __global__ void k(const __grid_constant__ TensorMap map, ...)
    kernel(grid, block, (tensor_map(x, (8, 64), swizzle=128), ...))

On a GPU the driver makes the map (`cuTensorMapEncodeTiled`); the emulator has one of its own. The kernel takes its
address: coordinates are written innermost first, `[map, {column, row}]`.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from styleforge_lib.runtime.emulator import tensor_maps

_ALIGNMENT = 16
_MAX_BOX, _MAX_AXES = 256, tensor_maps.AXES
_FILLS = ("zeros", "nan")
_DRIVER_TYPES = {  # CUtensorMapDataType
    torch.uint8: 0, torch.int8: 0, torch.bool: 0, torch.uint16: 1, torch.int16: 1, torch.uint32: 2, torch.int32: 3,
    torch.uint64: 4, torch.int64: 5, torch.float16: 6, torch.float32: 7, torch.float64: 8, torch.bfloat16: 9,
}  # fmt: skip
_DRIVER_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_NO_INTERLEAVE, _L2_PROMOTION = 0, 2  # the second: lines of 128 bytes


class TensorMap:
    """A map of a tensor, to be passed to a kernel that declares a struct of 128 bytes. Made by `tensor_map`."""

    def __init__(self, tensor: torch.Tensor, box: tuple[int, ...], swizzle: int, fill: str):
        self.tensor, self.box, self.swizzle, self.fill = tensor, box, swizzle, fill
        self._encoded: bytes | None = None

    def tobytes(self) -> bytes:
        """Return the driver's 128 bytes, of a tensor on a GPU."""
        if not self.tensor.is_cuda:
            raise ValueError("this tensor map is of a tensor on the CPU: make it of x.cuda()")
        if self._encoded is None:
            self._encoded = self._encode()
        return self._encoded

    def emulated(self) -> tensor_maps.TensorMap:
        """Return the emulator's map; a tensor on a GPU is copied first."""
        tensor = self.tensor.detach().cpu()
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        flat = tensor.as_strided((extent,), (1,)).view(torch.uint8).numpy()
        width = tensor.itemsize
        strides = tuple(stride * width for stride in reversed(tensor.stride()))
        sizes, box = tuple(reversed(tensor.shape)), tuple(reversed(self.box))
        return tensor_maps.TensorMap(flat, 0, width, sizes, strides, box, self.swizzle, self.fill == "nan")

    def _encode(self) -> bytes:
        tensor, axes = self.tensor, self.tensor.dim()
        space = (ctypes.c_char * (2 * tensor_maps.BYTES))()
        address = -(-ctypes.addressof(space) // 64) * 64  # the driver wants it aligned
        strides = [stride * tensor.itemsize for stride in reversed(tensor.stride())][1:]
        status = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled(
            ctypes.c_void_p(address), ctypes.c_int(_DRIVER_TYPES[tensor.dtype]), ctypes.c_uint32(axes),
            ctypes.c_void_p(tensor.data_ptr()), (ctypes.c_uint64 * axes)(*reversed(tensor.shape)),
            (ctypes.c_uint64 * max(1, axes - 1))(*strides), (ctypes.c_uint32 * axes)(*reversed(self.box)),
            (ctypes.c_uint32 * axes)(*[1] * axes), ctypes.c_int(_NO_INTERLEAVE),
            ctypes.c_int(_DRIVER_SWIZZLES[self.swizzle]), ctypes.c_int(_L2_PROMOTION),
            ctypes.c_int(_FILLS.index(self.fill)),
        )  # fmt: skip
        if status:
            raise RuntimeError(f"cuTensorMapEncodeTiled refused the map (CUDA error {status}): {self!r}")
        return ctypes.string_at(address, tensor_maps.BYTES)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.tensor.shape))
        return f"<TensorMap of {shape} {self.tensor.dtype}, box {self.box}, swizzle {self.swizzle}, fill {self.fill}>"


def tensor_map(
    tensor: torch.Tensor | np.ndarray, box: Sequence[int], *, swizzle: int = 0, fill: str = "zeros"
) -> TensorMap:
    """Return a map from which a kernel copies boxes of a tensor.

    tensor: 1 to 5 axes; the last has stride 1, the other strides and the address are multiples of 16 bytes. box: the
    size of a box along each axis, in the order of the tensor's axes, up to 256. swizzle: 0, or 32, 64, 128: the bytes
    of a box's last axis then, whose 16-byte pieces are exchanged as wgmma wants them. fill: "zeros", or "nan": what a
    box holds where it lies outside of the tensor. The map does not keep what the tensor holds, but where it lies.

    ValueError, TypeError: what the copy engine does not take, named.
    """
    tensor = torch.from_numpy(tensor) if isinstance(tensor, np.ndarray) else tensor
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor must be a torch tensor or a NumPy array, not {type(tensor).__name__}")
    if tensor.dtype not in _DRIVER_TYPES:
        raise TypeError(f"tensor is {tensor.dtype}, which a tensor map does not know")
    box = tuple(int(size) for size in box)
    if not 1 <= tensor.dim() <= _MAX_AXES or len(box) != tensor.dim():
        raise ValueError(f"tensor has {tensor.dim()} axes and box {len(box)}: both must have the same 1 to {_MAX_AXES}")
    if not tensor.numel():
        raise ValueError("tensor is empty")
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError("the tensor's last axis must have stride 1: permute it so that its memory's innermost is last")
    width = tensor.itemsize
    for axis, stride in enumerate(tensor.stride()[:-1]):
        if stride * width % _ALIGNMENT:
            raise ValueError(
                f"axis {axis} has a stride of {stride * width} bytes: it must be a multiple of {_ALIGNMENT}"
            )
    if tensor.data_ptr() % _ALIGNMENT:
        raise ValueError(f"the tensor's address must be a multiple of {_ALIGNMENT}")
    if any(not 1 <= size <= _MAX_BOX for size in box):
        raise ValueError(f"box is {box}: each size must be 1 to {_MAX_BOX}")
    if box[-1] * width % _ALIGNMENT:
        raise ValueError(f"the box's last axis has {box[-1] * width} bytes: it must be a multiple of {_ALIGNMENT}")
    if swizzle not in _DRIVER_SWIZZLES:
        raise ValueError(f"swizzle is {swizzle!r}: it must be 0, 32, 64 or 128")
    if swizzle and box[-1] * width != swizzle:
        raise ValueError(f"a swizzle of {swizzle} bytes needs a last axis of as many; the box has {box[-1] * width}")
    if fill not in _FILLS:
        raise ValueError(f"fill is {fill!r}: it must be one of {_FILLS}")
    if fill == "nan" and not tensor.dtype.is_floating_point:
        raise ValueError(f"fill='nan' needs a floating type; the tensor is {tensor.dtype}")
    return TensorMap(tensor, box, swizzle, fill)
