"""Checkpoints: from a style's name or a file to a network that paints.

Contents: the shipped styles (:func:`list_styles`), :func:`load_style`, reading a file into a dictionary of tensors,
and fitting that dictionary to the network.

A checkpoint is a file from somewhere else, so nothing in it is believed: a ``.pth`` is unpickled with
``weights_only=True``, which runs none of its code, and every name, shape, dtype and value is checked before the network
is built. Every fault is a :class:`StyleError` of one line that names the file and the key.
"""

import difflib
import os
import re
import warnings
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from styleforge_lib.models.transformer_net import TransformerNet

STYLES_FOLDER = Path(__file__).resolve().parent.parent / "styles"

# InstanceNorm2d kept these before PyTorch 0.4; the published checkpoints still carry them, and no norm here reads them.
DEPRECATED_NORM_KEYS = ("running_mean", "running_var", "num_batches_tracked")


class StyleError(ValueError):
    """A style that cannot be loaded; the message is one line and says which, why and what to do."""


def list_styles() -> list[str]:
    """Return the names of the shipped styles, in alphabetical order."""
    return sorted(path.stem for path in STYLES_FOLDER.glob("*.safetensors"))


def load_style(name_or_path: str | os.PathLike, device: torch.device | str | None = None) -> TransformerNet:
    """Load a trained :class:`TransformerNet`, in eval mode and float32.

    Args:
        name_or_path: A shipped style (one of :func:`list_styles`), or the path of a state dict in the parameter names
            of pytorch/examples: ``.safetensors``, or what ``torch.save(net.state_dict(), path)`` writes. The content
            decides the format, not the suffix. Weights of any floating dtype are converted to float32, and the
            deprecated running statistics of the published checkpoints are dropped. A shipped name goes before a file
            of the same name; write ``./name`` for the file.
        device: Where the weights go; torch's default device when it is ``None``, as for any module.

    Raises:
        StyleError: No such style or file, or the file is damaged, is no state dict, or does not fit the network.
        TypeError: ``name_or_path`` is neither text nor a path.
    """
    path = _find(name_or_path)
    tensors = _fitted(_read(path), path)
    # Built on "meta", the network draws no random weights, so that loading a style leaves the caller's seed alone.
    with torch.device("meta"):
        net = TransformerNet()
    net.load_state_dict(tensors, assign=True)
    return net.to(torch.get_default_device() if device is None else device).eval()


# ---- name to file ----


def _find(name_or_path: str | os.PathLike) -> Path:
    """Return the file that ``name_or_path`` means."""
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(f"name_or_path must be a style's name or a path, not {type(name_or_path).__name__}")
    text = os.fspath(name_or_path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise StyleError(f"name_or_path must be a style's name or a path, not {text!r}")
    styles = list_styles()
    if text in styles:
        return STYLES_FOLDER / f"{text}.safetensors"
    path = Path(text)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise StyleError(f"{_short(path)} is a folder, not a checkpoint file")
        if path.exists():
            raise StyleError(f"{_short(path)} is not a regular file")
    except OSError as error:
        raise StyleError(f"{_short(path)} cannot be opened: {error.strerror}") from error
    if path.suffix or "/" in text or os.sep in text:
        raise StyleError(f"no such checkpoint file: {_short(path)}")
    near = difflib.get_close_matches(text.lower(), styles, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise StyleError(
        f"no style {_short(text)}: {hint}the shipped styles are {', '.join(styles) or 'none (not installed)'}"
    )


# ---- file to tensors ----


def _read(path: Path) -> dict:
    """Return what the file holds, by name; nothing in it is executed."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise StyleError(f"{_short(path)} cannot be read: {error.strerror}") from error
    if not head:
        raise StyleError(f"{_short(path)} is empty")
    try:
        if head[8:] == b"{":  # safetensors: eight bytes of header length, then the header, a JSON object
            return safetensors.torch.load_file(path, device="cpu")
        if head.startswith((b"PK", b"\x80")):  # torch.save: a zip archive, or before PyTorch 1.6 a bare pickle
            with warnings.catch_warnings(action="ignore"):  # an unusual pickle protocol is no news for the caller
                content = torch.load(path, map_location="cpu", weights_only=True)
            return _state_dict(content, path)
    except StyleError:
        raise
    except safetensors.SafetensorError as error:
        raise StyleError(f"{_short(path)} is a truncated or damaged safetensors file ({_first_line(error)})") from error
    except Exception as error:  # a damaged archive or pickle can raise anything
        # torch's own advice here is weights_only=False, which would run the file: it is not passed on.
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise StyleError(
                f"{_short(path)} holds Python objects ({wanted[1]}), not only tensors, and was not executed: "
                "save the network's state_dict() instead"
            ) from error
        raise StyleError(f"{_short(path)} is truncated, damaged or no checkpoint") from error
    raise StyleError(f"{_short(path)} is no checkpoint: neither safetensors nor a file of torch.save")


def _state_dict(content: object, path: Path) -> dict:
    """Return ``content`` if it is a dictionary from names to tensors."""
    if not isinstance(content, dict):
        raise StyleError(f"{_short(path)} holds a {type(content).__name__}, not a state dict")
    for key, value in content.items():
        if not isinstance(key, str):
            raise StyleError(f"{_short(path)} is no state dict: its key {_short(key)} is not a name")
        if not isinstance(value, torch.Tensor):
            raise StyleError(
                f"{_short(path)} is no state dict: {_short(key)} holds a {type(value).__name__}, not a tensor"
            )
    return content


# ---- tensors to the network ----


def _fitted(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return the network's own keys as contiguous float32 tensors, having checked each of them."""
    with torch.device("meta"):
        net = TransformerNet()
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.InstanceNorm2d)]
    dropped = {f"{norm}.{key}" for norm in norms for key in DEPRECATED_NORM_KEYS}

    if missing := [key for key in shapes if key not in tensors]:
        raise StyleError(f"{_short(path)} is no TransformerNet: {_listed(missing)} missing")
    if extra := [key for key in tensors if key not in shapes and key not in dropped]:
        raise StyleError(f"{_short(path)} is no TransformerNet: {_listed(extra)} unknown to it")

    fitted = {}
    for key, shape in shapes.items():
        value = tensors[key]
        if value.shape != shape:
            raise StyleError(f"{_short(path)}: {key} has shape {tuple(value.shape)}, the network needs {tuple(shape)}")
        if not value.is_floating_point():
            raise StyleError(f"{_short(path)}: {key} holds {value.dtype}, not floating-point numbers")
        if value.layout != torch.strided or value.is_meta:
            raise StyleError(f"{_short(path)}: {key} is no ordinary dense tensor")
        fitted[key] = value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if not fitted[key].isfinite().all():
            raise StyleError(f"{_short(path)}: {key} holds NaN or infinity")
    return fitted


# ---- one line ----


def _short(name: object) -> str:
    """Return a key or a path as one quoted word of bearable length, with control characters escaped."""
    text = repr(str(name) if isinstance(name, Path) else name)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-97:]}"


def _listed(keys: list) -> str:
    """Name the first three keys and count the rest, with the verb."""
    named = ", ".join(_short(key) for key in keys[:3])
    return f"{named}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''} {'is' if len(keys) == 1 else 'are'}"


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
