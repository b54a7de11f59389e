"""The painter: :func:`stylize` takes a picture in any usual form and a style, and gives a PIL image back.

Contents: :func:`stylize` and :func:`painted_size`, then the steps: the picture, the network and its device, the memory
it will take, and the forward pass itself.
"""

import copy
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from styleforge_lib.models.checkpoints import StyleError, load_style
from styleforge_lib.models.transformer_net import TransformerNet
from styleforge_lib.pictures import PictureError, from_array, from_image, load_picture, on_white, with_alpha_of

# Measured on a CPU at 1024x1024 and 16x30000: 970 and 1100 bytes of activations a pixel at the peak, which is the last
# upsampling (64 float32 channels at full size, the padded copy of them and the library's own copy in its layout).
PEAK_BYTES_PER_PIXEL = 1100

# The network halves twice and must come out at the picture's size; below 8, reflection padding has nothing to mirror.
SIZE_MULTIPLE = 4
LEAST_SIZE = 8


def stylize(
    image: str | os.PathLike | Image.Image | np.ndarray | torch.Tensor,
    style: str | os.PathLike | nn.Module,
    *,
    size: int | None = None,
    device: torch.device | str | None = None,
) -> Image.Image:
    """Paint a picture in a style.

    Args:
        image: A file; a PIL image of any usual mode; an array, (H, W), (H, W, 3) or (H, W, 4), of uint8 (0..255),
            uint16 (0..65535) or float (0..1); or a tensor, (3, H, W) or (1, 3, H, W), of 0..255 as in
            pytorch/examples. All are taken as 8-bit sRGB; EXIF rotation and colour profiles are applied.
        style: A shipped style's name, a checkpoint's path (see :func:`~styleforge_lib.models.checkpoints.load_style`),
            or a network that maps (1, 3, H, W) of 0..255 to the same, for H and W that are multiples of 4.
        size: The long side of the painting in pixels: the picture is scaled to it, up or down, before it is painted.
            None paints at the picture's own size.
        device: Where to paint. None is where the network lies, for a network, and otherwise the GPU if there is one.
            A network that lies elsewhere is copied there; the one given stays as it was.

    Returns:
        A PIL image of the picture's size (or ``size``): "RGB", or "RGBA" where the picture has transparency, which is
        painted on white and then given its transparency back.

    Raises:
        PictureError: The picture cannot be read, or its painting does not fit into the memory there is.
        StyleError: The style cannot be loaded, or paints NaN or another shape.
        ValueError: ``size`` is no positive whole number, or there is no such ``device``.
        TypeError: An argument of a kind that is not listed here.
    """
    picture = picture_of(image)
    width, height = painted_size(picture.size, size)
    net = _network(style, device)
    where = _device_of(net)
    _check_memory(width, height, where)

    scaled = on_white(picture)
    if scaled.size != (width, height):
        scaled = scaled.resize((width, height), Image.Resampling.LANCZOS)
    try:
        painting = _paint(scaled, net, where)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one; a CPU's allocator raises a plain one
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "alloc" not in str(error):
            raise
        raise PictureError(f"painting {width}x{height} ran out of memory on {where}: give a smaller size=") from error
    return with_alpha_of(painting, picture)


def painted_size(picture_size: tuple[int, int], size: int | None) -> tuple[int, int]:
    """Return width and height of the painting: those of the picture, or with ``size`` pixels along the long side."""
    if size is None:
        return picture_size
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"size must be the long side in pixels, a whole number of at least 1, not {size!r}")
    longest = max(picture_size)
    width, height = (max(1, round(side * int(size) / longest)) for side in picture_size)
    return width, height


# ---- the picture ----


def picture_of(image: str | os.PathLike | Image.Image | np.ndarray | torch.Tensor) -> Image.Image:
    """Return any accepted form of a picture as an upright 8-bit sRGB PIL image, "RGB" or "RGBA"."""
    if isinstance(image, str | os.PathLike):
        return load_picture(image)
    if isinstance(image, Image.Image):
        return from_image(image)
    if isinstance(image, torch.Tensor):
        return from_array(_pixels(image))
    if isinstance(image, np.ndarray):
        return from_array(image)
    raise TypeError(f"image must be a path, PIL image, array or tensor, not {type(image).__name__}")


def _pixels(tensor: torch.Tensor) -> np.ndarray:
    """Return a (3, H, W) or (1, 3, H, W) tensor of 0..255 as an (H, W, 3) array of uint8, rounded."""
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise PictureError(f"a tensor must be (3, H, W) or (1, 3, H, W), one picture, not {tuple(tensor.shape)}")
    if tensor.dtype == torch.uint8:
        return tensor.permute(1, 2, 0).cpu().numpy()
    if not tensor.is_floating_point():
        raise PictureError(f"a tensor must be uint8 or floating-point, in 0..255, not {tensor.dtype}")
    values = tensor.detach().to("cpu", torch.float32)
    low, high = values.min().item(), values.max().item()
    if not (low > -0.5 and high < 255.5):  # written so that NaN is refused
        raise PictureError(f"a tensor must lie in 0..255, this one spans {low:g} to {high:g}: scale or clamp it first")
    if 0 < high <= 1:
        raise PictureError(f"a tensor must lie in 0..255, and the largest value of this one is {high:g}: times 255?")
    return values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


# ---- the network and its device ----


def paint_device(device: torch.device | str | None = None) -> torch.device:
    """Return the device with its index, having checked that it is there; None is the GPU if there is one, or the CPU.

    Raises:
        ValueError: There is no such device here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=device)
        probe.item()  # a device that cannot compute, as a GPU that this torch was not built for, says so here
        return probe.device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"device {str(device)!r} is not available here: {reason}") from error


def _network(style: str | os.PathLike | nn.Module, device: torch.device | str | None) -> nn.Module:
    """Return the style's network on the device that will paint."""
    if not isinstance(style, nn.Module):
        return load_style(style, paint_device(device))
    if device is None or paint_device(device) == _device_of(style):
        return style
    return copy.deepcopy(style).to(device)


def _device_of(net: nn.Module) -> torch.device:
    """Return where the network's first parameter or buffer lies."""
    for tensor in (*net.parameters(), *net.buffers()):
        return tensor.device
    return torch.get_default_device()


# ---- memory ----


def _check_memory(width: int, height: int, device: torch.device) -> None:
    """Refuse a painting whose activations will not fit, before anything is allocated."""
    need = _padded(width) * _padded(height) * PEAK_BYTES_PER_PIXEL
    free = _free_bytes(device)
    if free is not None and need > free:
        fitting = int(max(width, height) * (free / need) ** 0.5 * 0.95)  # a little room for the padding
        raise PictureError(
            f"painting {width}x{height} takes about {need / 2**30:.1f} GiB and {device} has {free / 2**30:.1f} GiB "
            f"free: give a smaller size= (--size), such as {max(1, fitting // 8 * 8)}"
        )


def _free_bytes(device: torch.device) -> int | None:
    """Return how many bytes the device can still give, or None where that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    meminfo, container = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.is_file():
        available = [line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
        free = min([free, *(int(kibibytes) * 1024 for kibibytes in available)])
    if container.is_file() and (limit := container.read_text().strip()).isdigit():  # "max" is no limit
        free = min(free, int(limit))
    return free


# ---- the forward pass ----


def _padded(length: int) -> int:
    """Return the length that is painted: a multiple of 4, and no less than the network can take."""
    return max(LEAST_SIZE, -(-length // SIZE_MULTIPLE) * SIZE_MULTIPLE)


def _paint(picture: Image.Image, net: nn.Module, device: torch.device) -> Image.Image:
    """Paint an RGB picture at its own size."""
    width, height = picture.size
    x = torch.from_numpy(np.array(picture)).to(device).permute(2, 0, 1)[None].float()
    if isinstance(net, TransformerNet):
        x = x.to(net.conv1.conv2d.weight.dtype)  # someone's net.half()
    # The edge is repeated, as reflection has nothing to mirror in a picture of one pixel, and cut off again below.
    x = F.pad(x, (0, _padded(width) - width, 0, _padded(height) - height), mode="replicate")
    with torch.inference_mode():
        y = net(x)
        if y.shape != x.shape:
            raise StyleError(f"the style paints {tuple(y.shape)} from {tuple(x.shape)}: it must keep the shape")
        y = y[..., :height, :width]
        if not y.isfinite().all():
            raise StyleError("the style paints NaN or infinity: its weights are not those of a trained network")
        pixels = y[0].float().clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))
