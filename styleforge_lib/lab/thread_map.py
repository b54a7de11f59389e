"""`thread_map(grid, block, shape)`: which thread of a launch handles which pixel, and which threads have none.

Point at a pixel to see its thread, or at a thread to see its pixel; sliders change the block and the picture.

Contents
    thread_map         the function that the notebooks call
    cells              the launch as a table: for each cell of the drawing its block, thread and pixel
    ThreadMapWidget    the widget behind it
"""

from __future__ import annotations

import math

import numpy as np
import traitlets
from PIL import Image

from styleforge_lib.lab.widgets import LabWidget, asset, figure_picture

LARGEST = 128  # pixels a side: more cannot be told apart on a screen, and the pattern is the same
MAX_BLOCKS = 128  # of a given grid: with 1024 threads each, as many cells as a page draws at once
MAX_THREADS = 1024  # of a block, on every CUDA device


def thread_map(
    grid: int | tuple[int, ...] | None, block: int | tuple[int, ...], shape: int | tuple[int, ...]
) -> ThreadMapWidget:
    """Show how a launch covers a picture.

    grid     blocks, as a kernel takes them: (x,) or (x, y); None: as many as cover the picture
    block    threads of a block: (x,) or (x, y), at most 1024
    shape    (height, width) of the picture, or (n,) for n elements in one row; at most 128 a side

    With two dimensions a thread handles column `blockIdx.x * blockDim.x + threadIdx.x`, and the row likewise from y.
    With one, it handles the pixel whose linear index is `blockIdx.x * blockDim.x + threadIdx.x`.

    Raises `ValueError` for sizes that are not positive, too large, or of unequal dimensions.
    """
    block, shape = _sizes(block, "block"), _sizes(shape, "shape")
    if len(shape) == 1:
        shape = (1, *shape)
    if max(shape) > LARGEST:
        raise ValueError(f"shape: at most {LARGEST} a side can be drawn, got {shape}; the pattern is the same.")
    if math.prod(block) > MAX_THREADS:
        raise ValueError(f"block: {math.prod(block)} threads; a block has at most {MAX_THREADS}.")
    if grid is not None:
        grid = _sizes(grid, "grid")
        if len(grid) != len(block):
            raise ValueError(f"grid and block must have as many dimensions: {grid} and {block}.")
        if math.prod(grid) > MAX_BLOCKS:
            raise ValueError(f"grid: at most {MAX_BLOCKS} blocks can be drawn, got {math.prod(grid)}.")
    return ThreadMapWidget(grid, block, shape)


def covering(block: tuple[int, ...], shape: tuple[int, int]) -> tuple[int, ...]:
    """Return the smallest grid that covers the picture."""
    height, width = shape
    if len(block) == 1:
        return (-(-height * width // block[0]),)
    return -(-width // block[0]), -(-height // block[1])


def cells(grid: tuple[int, ...], block: tuple[int, ...], shape: tuple[int, int]) -> np.ndarray:
    """Return the drawing as (rows, columns, 3) int32: linear block index, linear thread index in it, and inside or not.

    Cells are the pixels, and beyond them the threads that the guard sends home. No thread: -1 twice. Inside is 1 for a
    pixel, 0 for a thread beyond the picture, -1 for a cell that is neither.
    """
    height, width = shape
    if len(block) == 1:
        threads = grid[0] * block[0]
        rows = max(height, -(-threads // width))
        index = np.arange(rows * width).reshape(rows, width)
        exists = index < threads
        owner, thread = index // block[0], index % block[0]
        pixel = index < height * width
    else:
        rows, columns = max(height, grid[1] * block[1]), max(width, grid[0] * block[0])
        y, x = np.indices((rows, columns))
        exists = (x < grid[0] * block[0]) & (y < grid[1] * block[1])
        owner = y // block[1] * grid[0] + x // block[0]
        thread = y % block[1] * block[0] + x % block[0]
        pixel = (y < height) & (x < width)
    inside = np.where(pixel, 1, np.where(exists, 0, -1))
    return np.stack([np.where(exists, owner, -1), np.where(exists, thread, -1), inside], axis=-1).astype(np.int32)


class ThreadMapWidget(LabWidget):
    """The widget of `thread_map`."""

    _esm = asset("widgets.js", "thread_map.js")
    _css = asset("widgets.css", "thread_map.css")

    grid = traitlets.List(traitlets.Int(), allow_none=True, default_value=None).tag(
        sync=True
    )  # None: covers the picture
    block = traitlets.List(traitlets.Int()).tag(sync=True)
    shape = traitlets.List(traitlets.Int()).tag(sync=True)  # height, width
    limits = traitlets.List(traitlets.Int(), default_value=[LARGEST, MAX_THREADS]).tag(sync=True)

    def __init__(self, grid: tuple[int, ...] | None, block: tuple[int, ...], shape: tuple[int, int]):
        super().__init__(grid=None if grid is None else list(grid), block=list(block), shape=list(shape))

    def static_picture(self) -> Image.Image:
        """Return the map by matplotlib: blocks in two shades, threads without a pixel, pixels without a thread."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        block, shape = tuple(self.block), tuple(self.shape)
        grid = tuple(self.grid) if self.grid is not None else covering(block, shape)
        table = cells(grid, block, shape)
        rows, columns, _ = table.shape
        names, kinds = _kinds(table, grid)
        palette = np.array([[0x9E, 0xCA, 0xE8], [0x5B, 0x9F, 0xCB], [0xF3, 0xC9, 0x8B], [0xD6, 0x4B, 0x4B], [255] * 3])
        figure = Figure(figsize=(6.9, min(7.0, 1.25 + 6.3 * max(rows, 4) / columns)), facecolor="white")
        axes = figure.add_axes((0.07, 0.06, 0.9, 0.76))
        axes.imshow(palette[kinds].astype(np.uint8), extent=(0, columns, rows, 0), interpolation="nearest")
        axes.set_title(self.summary(), fontsize=9, loc="left", pad=24)
        axes.tick_params(labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.add_patch(_frame(shape))
        counts = np.bincount(kinds.ravel(), minlength=5)
        handles = [Patch(color=palette[i] / 255, label=names[i]) for i in range(4) if counts[i]]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=8,
                    borderaxespad=0.2, handlelength=1.2)  # fmt: skip
        return figure_picture(figure)

    def summary(self) -> str:
        """Return the launch in one line: how many threads, and how many of them have a pixel."""
        block, shape = tuple(self.block), tuple(self.shape)
        grid = tuple(self.grid) if self.grid is not None else covering(block, shape)
        launched = math.prod(grid) * math.prod(block)
        table = cells(grid, block, shape)
        busy = int(((table[..., 0] >= 0) & (table[..., 2] == 1)).sum())
        missed = math.prod(shape) - busy
        share = f"{100 * busy / launched:.0f} %"
        text = f"grid {_tuple(grid)}, block {_tuple(block)}: {launched} threads, {busy} with a pixel ({share})"
        return text + (f"; {missed} pixels without a thread" if missed else "")

    def __repr__(self) -> str:
        return f"thread_map({' x '.join(map(str, self.shape))} pixels, {self.summary()})"


def _kinds(table: np.ndarray, grid: tuple[int, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    names = ("even block", "odd block", "thread without a pixel (guard)", "pixel without a thread", "nothing")
    owner, inside = table[..., 0], table[..., 2]
    parity = owner % 2 if len(grid) == 1 else (owner % grid[0] + owner // grid[0]) % 2
    kinds = np.select([(owner >= 0) & (inside == 1), (owner >= 0) & (inside == 0), inside == 1], [parity, 2, 3], 4)
    return names, kinds


def _frame(shape: tuple[int, int]):
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), shape[1], shape[0], fill=False, edgecolor="#222222", linewidth=1.6, clip_on=False)


def _tuple(sizes: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"


def _sizes(value: int | tuple[int, ...], name: str) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not (1 <= len(sizes) <= 2 and all(isinstance(s, int | np.integer) and s >= 1 for s in sizes)):
        raise ValueError(f"{name}: one or two positive whole numbers are needed, got {value!r}.")
    return tuple(int(s) for s in sizes)
