"""Translated kernels on disk: each is a Python module of its own, which a later process imports instead of translating.

    folder/<key>.py     constants, memory sites, one function per basic block
    folder/__pycache__  Python's own compiled copies of them

The key is a digest of the PTX, the kernel's name, which files are the user's own, every source file of the emulator,
and the versions of Python and NumPy: whatever could change the translation changes the name, and no entry is ever
brought up to date.

Importing a file runs it. What stands here is text that this package has written, and it is trusted exactly as far as
Python trusts its own `__pycache__`: the file and its folder must belong to this user and be writable by nobody else
(on Windows, where the user's folders are private, this is not looked at). A file whose first line is not the digest of
the rest is damaged, and is translated anew; a file is written beside its place and moved there in one step, so that
no reader sees half of it and of two writers one wins. A cache that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.machinery
import json
import os
import platform
import stat
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

FORMAT = 1  # raised when what an entry holds changes
_PACKAGE = __name__.rpartition(".")[0]
_PLAIN = (bool, int, float, str, type(None))


@functools.cache
def _version() -> str:
    """Return a digest of whatever translates: the emulator's own files, Python, NumPy."""
    digest = hashlib.sha256(
        repr((FORMAT, sys.version, platform.machine(), sys.byteorder, np.__version__, _PACKAGE)).encode()
    )
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(str(path.name).encode() + path.read_bytes())
    return digest.hexdigest()


def key_of(ptx: str, kernel: str, own_files: list[str]) -> str:
    """Return the name under which a kernel's translation is kept."""
    return hashlib.sha256(json.dumps([_version(), kernel, own_files, ptx]).encode()).hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def read(folder: Path, key: str) -> types.ModuleType | None:
    """Return a translated kernel (BLOCKS, SITES, WAITS, CONSTANTS), or None if there is none that can be trusted."""
    path = folder / f"{key}.py"
    try:
        if not (_is_private(folder) and _is_private(path)):
            return None
        digest, _, body = path.read_text("utf-8").partition("\n")
        if digest != f"# {_digest(body)}":
            return None
        module = types.ModuleType(f"{_PACKAGE}.translated_{key}")
        importlib.machinery.SourceFileLoader(module.__name__, str(path)).exec_module(module)
        return module if module.COMPLETE else None
    except Exception:  # a damaged compiled copy can raise anything; the kernel is then translated again
        return None


def _is_private(path: Path) -> bool:
    """Whether only this user can have written here."""
    if not hasattr(os, "getuid"):
        return True
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


# --- writing ----------------------------------------------------------------------------------------------------------


class _Unwritable(Exception):
    """A constant has no form as text."""


def write(folder: Path, key: str, name: str, code, blocks: list[tuple[str, list[str], list[str]]]) -> None:
    """Keep a translation: `blocks` are the source of each block's function, and the registers it takes and gives."""
    try:
        body = _module(name, code, blocks)
    except _Unwritable:
        return
    temporary = None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False, encoding="utf-8") as file:
            temporary = file.name
            file.write(f"# {_digest(body)}\n{body}")
        os.replace(temporary, folder / f"{key}.py")
    except OSError:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _module(name: str, code, blocks: list[tuple[str, list[str], list[str]]]) -> str:
    """Return the text of the module."""
    constants = {key: _literal(value) for key, value in code.constants().items()}
    classes = sorted({(type(v).__module__, type(v).__name__) for v in code.constants().values()
                      if dataclasses.is_dataclass(v)})  # fmt: skip
    lines = [
        f'"""{name}, translated from PTX. May be deleted: it is then translated again."""',
        "import numpy as np",
        f"from {_PACKAGE}.address_space import Site",
        f"from {_PACKAGE}.translate.emitter import HELPERS",
        f"from {_PACKAGE}.translation_cache import number",
        *(f"from {module} import {kind}" for module, kind in classes),
        "globals().update(HELPERS)",
        *(f"{key} = {value}" for key, value in constants.items()),
        *(f"SITE{site.number} = {site!r}" for site in code.sites),
        *(source for source, _, _ in blocks),
        f"CONSTANTS = {{{', '.join(f'{key!r}: {key}' for key in constants)}}}",
        f"SITES = [{', '.join(f'SITE{site.number}' for site in code.sites)}]",
        f"WAITS = {{{', '.join(f'{block}: SITE{site.number}' for block, site in code.waits.items())}}}",
        "BLOCKS = [",
        *(f"    (block_{index}, {inputs}, {outputs})," for index, (_, inputs, outputs) in enumerate(blocks)),
        "]",
        "COMPLETE = True",
    ]
    return "\n".join(lines) + "\n"


def _literal(value) -> str:
    """Return a constant as an expression."""
    if isinstance(value, (np.generic, np.ndarray)):
        return f"number({value.dtype.str!r}, {value.tobytes().hex()!r}, {np.shape(value)})"
    if dataclasses.is_dataclass(value):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        if all(type(one) in _PLAIN for one in fields):
            return f"{type(value).__name__}({', '.join(map(repr, fields))})"
    if type(value) in _PLAIN:
        return repr(value)
    raise _Unwritable


def number(dtype: str, digits: str, shape: tuple[int, ...]):
    """Return a NumPy scalar or array from its bytes."""
    return np.frombuffer(bytes.fromhex(digits), dtype).reshape(shape)[()]
