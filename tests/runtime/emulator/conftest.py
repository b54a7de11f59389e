"""Compiles CUDA text to PTX for the emulator's tests."""

from functools import cache

import pytest


@cache
def compile_ptx(text: str, arch: str = "compute_80", options: tuple[str, ...] = ()) -> str:
    pytest.importorskip("cupy")
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(text, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"-arch={arch}", "-lineinfo", "-default-device", *options))
    except nvrtc.NVRTCError as error:
        raise AssertionError(nvrtc.getProgramLog(program)) from error
    ptx = nvrtc.getPTX(program)
    nvrtc.destroyProgram(program)
    return ptx.decode() if isinstance(ptx, bytes) else ptx
