"""Residual blocks of 16-bit activations on Hopper's tensor cores, all in one cooperative launch.

Contents
    CHANNELS            of the blocks that the kernel is written for
    ResidualBlock       the weights and norms of one block
    takes               does the kernel take such blocks, on this card?
    ONE_LAUNCH          where one launch is faster than one for each convolution: a table of measurements
    is_faster           what it says
    ResidualBlocks      blocks with their weights packed, ready to be launched (`cuda/residual_blocks_hopper.cu`)
    sums_of             room for the statistics of a launch

out = v + norm2(conv2(relu(norm1(conv1(v))))), block after block, with the very bits of conv2d_hopper, close_planes and
apply_affine launched one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from styleforge_lib.ops import conv2d_hopper
from styleforge_lib.ops.elementwise import compiled
from styleforge_lib.ops.instance_norm import multiprocessors
from styleforge_lib.ops.layer import MACRO_TYPES, STORAGE, Norm, plane_sums

CHANNELS = 128
LAYER = (CHANNELS, CHANNELS, 1, False)
THREADS, RESIDENT = 256, 2  # of a block of threads; blocks that a multiprocessor holds
TILE_H, TILE_W = conv2d_hopper.TILE
# {residual blocks in a launch: ((least, most), ...)}: pixels, of all pictures of a batch together, where one launch is
# faster: of 1, than the two convolutions and the sum (FusedResidualBlock); of 5, than the convolutions of the network,
# which add while they load (accelerate): nowhere on an H200. tools/tune_residual_blocks.py prints it, and
# records/tune_residual_blocks.txt is what it printed.
ONE_LAUNCH: dict[int, tuple[tuple[int, int], ...]] = {1: ((4096, 131072),), 5: ()}


@dataclass(frozen=True)
class ResidualBlock:
    """Two convolutions, (128, 128, 3, 3), each with the norm that follows; a bias before a norm changes nothing."""

    weight1: torch.Tensor
    norm1: Norm
    weight2: torch.Tensor
    norm2: Norm


def takes(blocks: Sequence[ResidualBlock], numbers: str, arch: str) -> bool:
    """Whether it is blocks that the kernel is written for, on a Hopper card: one eps, 128 channels, 16-bit numbers."""
    shapes = {tuple(weight.shape) for block in blocks for weight in (block.weight1, block.weight2)}
    eps = {norm.eps for block in blocks for norm in (block.norm1, block.norm2)}
    right = shapes == {(CHANNELS, CHANNELS, 3, 3)} and len(eps) == 1
    return arch == "sm_90a" and numbers in ("float16", "bfloat16") and right


def is_faster(count: int, pixels: int) -> bool:
    """Whether `count` residual blocks of so many pixels, of all pictures together, are faster in one launch."""
    return any(least <= pixels <= most for least, most in ONE_LAUNCH.get(count, ()))


def sums_of(images: int, device: torch.device) -> torch.Tensor:
    """Return room for the statistics of a launch; the first half zero, as each launch finds and leaves it."""
    return plane_sums(2 * images, device)


class ResidualBlocks:
    """Residual blocks, one after the other. Later changes of the tensors given are not seen."""

    def __init__(self, blocks: Sequence[ResidualBlock], numbers: str, arch: str):
        layers = [pair for block in blocks for pair in ((block.weight1, block.norm1), (block.weight2, block.norm2))]
        self.count, self.eps, self.dtype = len(blocks), layers[0][1].eps, STORAGE[numbers]
        packed = [conv2d_hopper.pack(weight.detach().to(self.dtype)) for weight, _ in layers]
        self.weight = torch.cat(packed).view(torch.uint8)
        self.norms = torch.stack([_of_norm(norm, self.weight.device) for _, norm in layers])
        self.kernel = compiled("residual_blocks_hopper", self.weight.device, arch, TYPE=MACRO_TYPES[numbers]).only

    def __call__(self, x, out, *, inner, sums, spare=None, affine=None, grid: int | None = None) -> None:
        """Launch on the current stream.

        x, out, inner, spare: (N, H, W, 128), contiguous, four pieces of memory, the last two scratch; spare is not
        needed for a single block. affine: (N, 128, 2) float32, if v is relu(x * scale + shift). sums: `sums_of`. grid:
        blocks of threads, at most one a tile and what the card holds; left out, as many as that.
        """
        images, height, width, _ = x.shape
        if spare is None and self.count > 1:
            raise ValueError(f"spare: {self.count} residual blocks need room for one more tensor like x; give spare=")
        tiles = images * -(-height // TILE_H) * -(-width // TILE_W)
        blocks = min(tiles, grid or RESIDENT * multiprocessors(self.weight.device))
        pointers = (x, affine, self.weight, self.norms, inner, spare, out, sums)
        shared = conv2d_hopper.shared_bytes(LAYER)
        numbers = (self.count, images, height, width, self.eps)
        self.kernel(blocks, THREADS, (*pointers, *numbers), shared_bytes=shared, cooperative=True)


def _of_norm(norm: Norm, device: torch.device) -> torch.Tensor:
    """Return weight and bias, (128, 2) float32."""
    given = ((norm.weight, 1.0), (norm.bias, 0.0))
    parts = [torch.full((CHANNELS,), other, device=device) if v is None else v.detach().float() for v, other in given]
    return torch.stack(parts, -1)
