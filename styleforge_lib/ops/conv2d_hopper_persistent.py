"""The 3x3 convolutions with few steps on Hopper's tensor cores (`cuda/conv2d_hopper_persistent.cu`).

Contents
    LAYERS                  (channels in, channels out, stride, upsample) -> how its tiles are cut
    PersistentConvolution   a layer with its weights packed, with the face of the other kernels

The weights lie as `conv2d_hopper.pack` puts them. One block a multiprocessor keeps them, and tiles stream by.
"""

from dataclasses import dataclass

import torch

from styleforge_lib.ops.conv2d_hopper import pack
from styleforge_lib.ops.elementwise import compiled
from styleforge_lib.ops.instance_norm import multiprocessors
from styleforge_lib.ops.layer import MACRO_TYPES, Layer, Norm, close_planes

TILE_H, TILE_W = 16, 8


@dataclass(frozen=True)
class Block:
    """A block of a layer: threads and bytes of shared memory, the same as THREADS and SHARED_BYTES in the kernel."""

    threads: int
    shared_bytes: int


LAYERS = {(64, 32, 1, True): Block(512, 202752), (32, 64, 2, False): Block(512, 199680)}


class PersistentConvolution:
    """A layer of 16-bit numbers on Hopper's wgmma: see TensorCoreConvolution."""

    overlaps = True

    def __init__(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm, arch: str):
        self.layer, self.arch, self.norm = layer, arch, norm
        self.block = LAYERS[_key(layer)]
        # Rounded once, after the folding: `pack` folds in float32 and keeps the dtype of what it is given.
        self.weight = pack(weight.float(), stride=layer.stride, upsample=layer.upsample).to(layer.dtype)
        self.macros = {
            "CHANNELS_IN": layer.c_in,
            "CHANNELS_OUT": layer.c_out,
            "STRIDE": layer.stride,
            "UPSAMPLE": int(layer.upsample),
            "NORM": int(layer.affine),
            "LOAD_RELU": int(layer.relu_in),
            "TYPE": MACRO_TYPES[layer.numbers],
        }

    @staticmethod
    def takes(layer: Layer, arch: str) -> bool:
        """Whether it is one of the layers that the kernel is written for, on a Hopper card."""
        plain = layer.kernel == 3 and not (layer.bias or layer.relu_out or layer.picture_in or layer.picture_out)
        return (
            arch == "sm_90a"
            and layer.numbers in ("float16", "bfloat16")
            and plain
            and _key(layer) in LAYERS
            and not (layer.materialise or layer.residual)
        )

    def __call__(
        self,
        x,
        out,
        *,
        affine=None,
        residual=None,
        materialised=None,
        sums=None,
        affine_out=None,
        overlap: bool = False,
    ) -> None:
        """Launch on the current stream."""
        images, height, width = x.shape[:3]
        rows, columns = (height, width) if self.layer.upsample else out.shape[1:3]
        tiles = images * -(-rows // TILE_H) * -(-columns // TILE_W)
        kernel = compiled("conv2d_hopper_persistent", x.device, self.arch, **self.macros, OVERLAP=int(overlap)).only
        args = (x, affine, self.weight.view(torch.uint8), out, sums, images, height, width, rows, columns)
        blocks = min(tiles, multiprocessors(x.device))
        kernel(blocks, self.block.threads, args, shared_bytes=self.block.shared_bytes, overlap=overlap)
        if sums is not None:
            close_planes(sums, self.norm, affine_out, out, self.arch, overlap)


def _key(layer: Layer) -> tuple[int, int, int, bool]:
    return layer.c_in, layer.c_out, layer.stride, layer.upsample
