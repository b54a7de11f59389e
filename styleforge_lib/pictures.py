"""Pictures in and out: whatever a person calls a photo, as 8-bit sRGB pixels the right way up, and back to a file.

Contents: :func:`load_picture` (files), :func:`load_bytes` (uploads), :func:`from_image` (PIL images),
:func:`from_array` (NumPy arrays), the transparency that painting must put aside (:func:`on_white`,
:func:`with_alpha_of`), and :func:`save_picture`.

A picture is a PIL image of mode "RGB", or "RGBA" where the original is transparent anywhere, with no metadata left to
apply: EXIF rotation, colour profile, palette and depth have had their effect. Every fault is a :class:`PictureError`
of one line.
"""

import contextlib
import io
import os
import secrets
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

# What cameras, phones and paint programs write. Pillow reads more, but it hands EPS to Ghostscript, which runs it.
READABLE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI")

# Per suffix: Pillow's format, whether it keeps transparency, its longest side in pixels (None: none that matters), and
# how to write it. 4:4:4 chroma, because strokes of pure colour are what a painting consists of.
_JPEG = ("JPEG", False, 65500, {"quality": 92, "subsampling": 0})
WRITABLE_FORMATS = {
    ".png": ("PNG", True, None, {}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": ("WEBP", True, 16383, {"quality": 92}),
    ".tif": ("TIFF", True, None, {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", True, None, {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", False, None, {}),
}

# Modes that Pillow's own convert() takes to RGB rightly. LAB is not among them: its numbers would be read as RGB.
_CONVERTED_MODES = frozenset({"1", "L", "P", "RGB", "RGBA", "RGBa", "RGBX", "LA", "PA", "CMYK", "YCbCr", "HSV"})

# Floats may miss 0..1 by what rounding to 8 bits takes away anyway; more is a wrong scale.
_HALF_LEVEL = 0.5 / 255


class PictureError(ValueError):
    """A picture that cannot be read, painted or written; the message is one line and says which, why and what to do."""


# ---- reading ----


def load_picture(path: str | os.PathLike) -> Image.Image:
    """Read a picture file: upright, sRGB, mode "RGB" or "RGBA"; of an animation the first frame.

    Raises:
        PictureError: There is no such file, it is no picture, it is damaged or truncated, it has more than 179 million
            pixels (Pillow's guard against decompression bombs), or its mode is not supported (see :func:`from_image`).
    """
    if not os.path.isfile(path):
        why = "is a folder, not a picture" if os.path.isdir(path) else "does not exist or is not a regular file"
        raise PictureError(f"{_named(path)} {why}")
    return _read(path, _named(path))


def load_bytes(content: bytes | memoryview, name: str) -> Image.Image:
    """Read the bytes of a picture file, such as an upload, as :func:`load_picture` does; ``name`` is for messages."""
    return _read(io.BytesIO(content), _named(name))


def _read(source: str | os.PathLike | io.BytesIO, name: str) -> Image.Image:
    Image.init()
    formats = [name for name in READABLE_FORMATS if name in Image.OPEN]  # AVIF, WebP and others may not be built in
    try:
        # Pillow warns of half-wrong EXIF and of large pictures; the picture is either painted or refused in one line.
        with warnings.catch_warnings(action="ignore"), Image.open(source, formats=formats) as image:
            return from_image(image)
    except PictureError as error:
        raise PictureError(f"{name}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise PictureError(f"{name} is no picture, or of a kind that is not supported") from error
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 1_000_000
        raise PictureError(f"{name} has more than {limit} million pixels: make it smaller first") from error
    except Exception as error:  # a damaged header raises almost anything: OSError, SyntaxError, struct.error ...
        raise PictureError(f"{name} cannot be read: {_reason(error)}") from error


def readable_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case and with their dot, of the files that :func:`load_picture` reads."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in READABLE_FORMATS)


def from_image(image: Image.Image) -> Image.Image:
    """Return a PIL image of any mode as a new one: upright, sRGB, mode "RGB" or "RGBA".

    16-bit grey is scaled to 8 bits, an embedded colour profile is applied (an unreadable one, or one for another kind
    of picture, is passed over, as browsers do), and EXIF rotation turns the pixels.

    Raises:
        PictureError: No pixels, damaged or truncated data, or a mode whose range of values is unknown ("F", and "I" but
            for PGM files) or that is rare ("LAB", "La").
    """
    if 0 in image.size:
        raise PictureError(f"the picture has no pixels: {image.width}x{image.height}")
    try:
        image.load()
    except Exception as error:  # as above; the data are read only now
        raise PictureError(f"the picture is truncated or damaged ({_reason(error)})") from error
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # EXIF data that cannot be read turn nothing
        upright = image.copy()
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales PGM to 65535
        grey = np.asarray(upright).astype(np.int64)
        if (hidden := image.info.get("transparency")) is not None:
            alpha = Image.fromarray(np.where(grey == hidden, 0, 255).astype(np.uint8))
        upright = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode not in _CONVERTED_MODES:
        raise PictureError(f"pictures of mode {image.mode!r} are not supported: convert it to 8-bit RGB first")
    elif upright.has_transparency_data:
        upright = upright.convert("RGBA")
        alpha = upright.getchannel("A")
    elif image.mode not in ("L", "CMYK"):  # these two meet their colour profile as they are
        upright = upright.convert("RGB")
    rgb = _srgb(upright, profile)
    if alpha is not None:
        rgb.putalpha(alpha)
    rgb.info = {}  # what was applied must not be applied again
    return rgb


def from_array(array: np.ndarray) -> Image.Image:
    """Return an array as a picture: (H, W) or (H, W, 1) grey, (H, W, 3) RGB, (H, W, 4) RGBA.

    The dtype tells the range, as in scikit-image and matplotlib: uint8 is 0..255, uint16 is 0..65535, any float is
    0..1. Values are rounded to 8 bits.

    Raises:
        PictureError: Another shape or dtype, no pixels, or floats that are NaN or outside 0..1.
    """
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise PictureError(f"an array must be (H, W), (H, W, 3) or (H, W, 4), not {array.shape}")
    if array.size == 0:
        raise PictureError(f"the array has no pixels: {array.shape}")
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low > -_HALF_LEVEL and high < 1 + _HALF_LEVEL):  # written so that NaN is refused
            raise PictureError(
                f"an array of floats must lie in 0..1, this one spans {low:g} to {high:g}: scale it first"
            )
        array = np.rint(array.astype(np.float64).clip(0, 1) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise PictureError(f"an array must be uint8, uint16 or float, not {array.dtype}")
    image = Image.fromarray(np.ascontiguousarray(array))
    return image if image.mode == "RGBA" else image.convert("RGB")


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an L, RGB, RGBA or CMYK image as RGB in sRGB's colours, without its alpha."""
    if profile:
        base = image if image.mode in ("L", "CMYK") else image.convert("RGB")
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == {"L": "GRAY", "CMYK": "CMYK", "RGB": "RGB"}[base.mode]:
                return ImageCms.profileToProfile(base, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return image.convert("RGB")


# ---- transparency ----


def on_white(picture: Image.Image) -> Image.Image:
    """Return the picture as "RGB", transparent parts laid on white, since under them a file may hold any colour."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def with_alpha_of(painting: Image.Image, picture: Image.Image) -> Image.Image:
    """Return the painting with the picture's transparency, scaled to the painting's size, if it has any."""
    if picture.mode != "RGBA":
        return painting
    alpha = picture.getchannel("A")
    if alpha.size != painting.size:
        alpha = alpha.resize(painting.size, Image.Resampling.LANCZOS)
    painting = painting.copy()
    painting.putalpha(alpha)
    return painting


# ---- writing ----


def check_target(path: str | os.PathLike, *, size: tuple[int, int] | None = None, keep: Iterable = ()) -> Path:
    """Return where :func:`save_picture` would write ``path``, or refuse before the work of painting is done.

    Args:
        path: The file to write. Its suffix names the format.
        size: Width and height of the picture, where they are known already.
        keep: Existing files that must not be overwritten: the pictures that are being painted.

    Raises:
        PictureError: An unknown suffix, a size that the format cannot hold, no such folder, or a file to keep.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITABLE_FORMATS:
        raise PictureError(f"{_named(path)} names no format to write: end it in {', '.join(WRITABLE_FORMATS)}")
    exists = os.path.exists(path)
    if exists and not os.path.isfile(path):
        raise PictureError(f"{_named(path)} is not a regular file")
    target = Path(os.path.realpath(path))  # through a link, the file behind it is replaced, not the link
    if not os.path.isdir(target.parent):
        raise PictureError(f"cannot write {_named(path)}: there is no folder {_named(target.parent)}")
    if exists and any(os.path.exists(other) and os.path.samefile(path, other) for other in keep):
        raise PictureError(f"{_named(path)} is a picture to be painted and would be overwritten: choose another name")
    name, _, longest, _ = WRITABLE_FORMATS[suffix]
    if size and longest and max(size) > longest:
        raise PictureError(
            f"cannot write {_named(path)}: {name} holds {longest} pixels a side, the painting is {size[0]}x{size[1]}: "
            "use .png or .tif"
        )
    return target


def save_picture(picture: Image.Image, path: str | os.PathLike, *, keep: Iterable = ()) -> None:
    """Write the picture whole or not at all; the suffix names the format (PNG, JPEG, WebP, TIFF or BMP).

    A format without transparency (JPEG, BMP) gets the picture laid on white. An existing file is replaced, except those
    in ``keep``: pass the pictures that were painted.

    Raises:
        PictureError: See :func:`check_target`; or the disk refuses.
    """
    target = check_target(path, size=picture.size, keep=keep)
    name, keeps_alpha, _, options = WRITABLE_FORMATS[Path(path).suffix.lower()]
    part = target.with_name(f".{secrets.token_hex(6)}.part")
    try:
        with part.open("xb") as file:
            (picture if keeps_alpha else on_white(picture)).save(file, name, **options)
        os.replace(part, target)
    except (OSError, ValueError, OverflowError, RuntimeError, KeyError) as error:
        raise PictureError(f"cannot write {_named(path)}: {_reason(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def _named(path: str | os.PathLike) -> str:
    """Return the path as one quoted word, control characters escaped, so that a message stays one line."""
    return repr(os.fspath(path))


def _reason(error: Exception) -> str:
    """Return one line that says what an exception of Pillow or the system is about."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.splitlines() or [type(error).__name__])[0]
