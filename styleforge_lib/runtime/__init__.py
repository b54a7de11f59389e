"""CUDA text becomes something to launch, on a GPU or on NumPy.

The names are found on first use, so that the emulator, which lives in this package, is imported with NumPy alone.
"""

import importlib

_HOMES = {
    "compile_cuda": "kernel",
    "Module": "kernel",
    "Kernel": "kernel",
    "CompileError": "diagnostics",
    "tensor_map": "tensor_maps",
}
__all__ = ["CompileError", "Kernel", "Module", "compile_cuda", "tensor_map"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
