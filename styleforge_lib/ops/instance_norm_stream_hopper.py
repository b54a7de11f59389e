"""Instance norm of many planes, one after the other in clusters of blocks (`cuda/instance_norm_stream_hopper.cu`).

Contents
    takes           does the kernel take these tensors?
    shape           the rule for the launch: cluster and blocks
    planned         a launch for tensors of one kind

For Hopper and later cards: see `instance_norm_hopper.available`. It is tried by tools/tune_instance_norm.py.
"""

import math
from collections.abc import Callable

import torch

from styleforge_lib.ops.elementwise import VECTOR_BYTES, compiled

# Of a block; bytes that are copied at once; how many of them it holds.
STREAM_THREADS, STREAM_CHUNK, STREAM_SLOTS = 512, 16 << 10, 13
CLUSTERS = (1, 2, 4, 8)
AHEAD = 3  # pieces that a block has room for: of the plane at hand, and of those that are on their way


def takes(*tensors: torch.Tensor | None) -> bool:
    """Whether the kernel takes contiguous tensors (N, C, ...).

    They must begin at multiples of 16 bytes, and a plane must be a multiple of 16 bytes that a cluster holds `AHEAD`
    times.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    plane = math.prod(given[0].shape[2:]) * given[0].element_size()
    aligned = not any(tensor.data_ptr() % VECTOR_BYTES for tensor in given)
    return aligned and plane > 0 and plane % VECTOR_BYTES == 0 and cluster_of(plane) is not None


def cluster_of(plane: int) -> int | None:
    """Return how many blocks share a plane of so many bytes; None if the largest cluster has no room for it."""
    room = STREAM_SLOTS // AHEAD * STREAM_CHUNK
    return next((blocks for blocks in CLUSTERS if _piece(plane, blocks) <= room), None)


def _piece(plane: int, blocks: int) -> int:
    """Return the bytes of a piece."""
    return math.ceil(plane / blocks / VECTOR_BYTES) * VECTOR_BYTES


def shared_bytes() -> int:
    """Return the shared memory of a block, as in the kernel's file: chunks, and a barrier for each."""
    return STREAM_SLOTS * STREAM_CHUNK + STREAM_SLOTS * 8


def macros(cluster: int) -> dict[str, int]:
    """Return what the kernel is compiled for."""
    return {"THREADS": STREAM_THREADS, "CHUNK": STREAM_CHUNK, "SLOTS": STREAM_SLOTS, "CLUSTER": cluster}


def planned(
    x: torch.Tensor, eps: float, relu: bool, *, processors: int, arch: str | None = None
) -> Callable[..., None]:
    """Return launch(x, weight, bias, residual, out, saved=None) for tensors like x: see `takes`.

    saved: float32 [planes, 3], for the backward pass. The launch keeps no tensor of its maker's.
    """
    channels, planes, size = x.shape[1], x.shape[0] * x.shape[1], math.prod(x.shape[2:])
    cluster = cluster_of(size * x.element_size())
    length = _piece(size * x.element_size(), cluster) // x.element_size()
    module = compiled("instance_norm_stream_hopper", x.device, arch, **macros(cluster))
    kernel = module.kernel(f"instance_norm_stream_hopper_{str(x.dtype).removeprefix('torch.')}")
    blocks, threads, shared = cluster * max(1, min(planes, processors // cluster)), STREAM_THREADS, shared_bytes()
    numbers = (channels, planes, size, length, eps, int(relu))

    def launch(x, weight, bias, residual, out, saved=None) -> None:
        kernel(blocks, threads, (x, weight, bias, residual, out, saved, *numbers), shared_bytes=shared)

    return launch
