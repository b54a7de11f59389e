"""Instance norm where the copy engine brings a block's part of x into shared memory (`cuda/instance_norm_hopper.cu`).

Contents
    available       does a card have a copy engine, and room for the kernel?
    takes           does the kernel take these tensors?
    pieces          the rule for the launch shape
    held            the rule for NCHW: where this kernel is the faster one
    planned         a launch for tensors of one kind

`instance_norm` takes it on Hopper and later cards for NHWC tensors whose channels are a power of two, and for NCHW
planes, or halves, quarters and eighths of them, that fill a block.
"""

import functools
import math
from collections.abc import Callable

import torch

from styleforge_lib.ops.elementwise import C_TYPES, VECTOR_BYTES, compiled
from styleforge_lib.ops.exchange import PATIENCE, exchange

# Of a block; bytes that are copied at once; how many of them it holds in shared memory, and how many in registers.
COPY_THREADS, CHUNK, SLOTS, KEPT = 512, 16 << 10, 12, 4
CLUSTERS = (2, 4, 8)  # pieces of a plane that can be one
MOST_UNITS = 64  # vectors of 16 bytes that are the channels of a pixel


@functools.cache
def available(device: torch.device) -> bool:
    """Whether the card is a Hopper or later with enough shared memory; the emulator is given a T4's choice."""
    if device.type != "cuda":
        return False
    card = torch.cuda.get_device_properties(device)
    return card.major >= 9 and card.shared_memory_per_block_optin >= shared_bytes()


def takes(*tensors: torch.Tensor | None, together: int) -> bool:
    """Whether the kernel takes contiguous tensors (N, C, ...), together = 1, or (N, H, W, C), together = C.

    They must begin at multiples of 16 bytes; a plane must be a multiple of 16 bytes, and the channels of an NHWC tensor
    16 bytes, or 2, 4, 8 ... 64 times as much.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    x = given[0]
    if any(tensor.data_ptr() % VECTOR_BYTES for tensor in given):
        return False
    if together == 1:
        return math.prod(x.shape[2:]) * x.element_size() % VECTOR_BYTES == 0
    units, left = divmod(together * x.element_size(), VECTOR_BYTES)
    return left == 0 and 0 < units <= MOST_UNITS and units & (units - 1) == 0


def shared_bytes() -> int:
    """Return the shared memory of a block, as in the kernel's file: chunks, sums, and a barrier for each chunk."""
    return SLOTS * CHUNK + max(2 * COPY_THREADS + MOST_UNITS, 4 * MOST_UNITS) * 8 * 4 + SLOTS * 8


def macros(dtype: torch.dtype, cluster: int = 1) -> dict[str, object]:
    """Return what the kernel is compiled for. cluster: blocks that run at once, of one plane."""
    return {
        "TYPE": C_TYPES[dtype],
        "THREADS": COPY_THREADS,
        "CHUNK": CHUNK,
        "SLOTS": SLOTS,
        "KEPT": KEPT,
        "CLUSTER": cluster,
    }


def pieces(parts: int, size: int, step: int, itemsize: int, blocks: int) -> tuple[int, int]:
    """Return (numbers of a piece, pieces) for `parts` planes or images of `size` numbers, on about `blocks` blocks.

    A piece is a multiple of `step` numbers, and at least a chunk, if there is as much.
    """
    most = max(1, min(blocks // parts, math.ceil(size * itemsize / CHUNK)))
    length = math.ceil(math.ceil(size / most) / step) * step
    return length, math.ceil(size / length)


def held(planes: int, size: int, itemsize: int, blocks: int) -> bool:
    """Whether blocks hold NCHW planes of `size` numbers, and are well filled: most of each, and most of `blocks`.

    Then every number is read once. With less in each block, or with more than it holds, cuda/instance_norm.cu is
    faster, whose smaller blocks write while others read: records/tune_instance_norm.txt is what an H200 showed.
    """
    length, cut = pieces(planes, size, VECTOR_BYTES // itemsize, itemsize, blocks)
    room = (SLOTS + KEPT) * CHUNK
    return room < 2 * length * itemsize <= 2 * room and 3 * blocks <= 4 * planes * cut <= 4 * blocks


def planned(
    x: torch.Tensor, eps: float, relu: bool, *, together: int, processors: int, arch: str | None = None
) -> Callable[..., None]:
    """Return launch(x, weight, bias, residual, out, saved=None) for tensors like x: see `takes`.

    saved: float32 [planes, 3], for the backward pass of NCHW. The launch keeps no tensor of its maker's.
    """
    device, itemsize = x.device, x.element_size()
    channels = x.shape[1] if together == 1 else together
    parts = x.shape[0] * channels // together
    size = x.numel() // parts
    length, cut = pieces(parts, size, max(together, VECTOR_BYTES // itemsize), itemsize, processors)
    cluster = cut if together == 1 and cut in CLUSTERS else 1
    kernel = compiled("instance_norm_hopper", device, arch, **macros(x.dtype, cluster)).only
    threads, shared = COPY_THREADS, shared_bytes()
    blocks, floats = parts * cut, 4 * parts * together * (1 + cut)
    numbers = (channels, together, size, length, cut, eps, int(relu))

    def launch(x, weight, bias, residual, out, saved=None) -> None:
        room = torch.empty(floats, dtype=torch.float32, device=device)
        words, number = exchange(2 * blocks, device) if cut > cluster else (None, 0)
        args = (x, weight, bias, residual, out, saved, room, words, *numbers, number, PATIENCE)
        kernel(blocks, threads, args, shared_bytes=shared)

    return launch
