"""Compiles CUDA text to PTX for the emulator's tests."""

import pytest


def compile_ptx(text: str, arch: str = "compute_80", options: tuple[str, ...] = ()) -> str:
    pytest.importorskip("cupy")
    from styleforge_lib.runtime.compiler import compile_to_ptx

    return compile_to_ptx(text, arch=arch, name="kernel.cu", options=options)
