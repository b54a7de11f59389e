"""The compiler: what it makes, what it says of a fault, and when its cache may answer."""

import json
import os
import struct
import subprocess
import sys

import pytest

from styleforge_lib.runtime import compiler
from styleforge_lib.runtime.compiler import compile_text, compile_to_ptx, include_directories
from styleforge_lib.runtime.diagnostics import CompileError

SCALE = """extern "C" __global__ void scale(float* x, float s, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] = s * x[i];
}
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLEFORGE_CACHE", str(tmp_path))


@pytest.fixture
def runs(monkeypatch):
    """Record what NVRTC is asked to compile."""
    calls, run = [], compiler._run
    monkeypatch.setattr(compiler, "_run", lambda nvrtc, *rest: calls.append(rest[1]) or run(nvrtc, *rest))
    return calls


# ----------------------------------------------------------------------------------------------------------------------
# What it makes


def test_ptx_has_the_lines_of_the_text_and_its_name():
    ptx = compile_to_ptx(SCALE, arch="sm_80", name="scale.cu")
    assert ".target sm_80" in ptx
    assert ".visible .entry scale(" in ptx
    assert "\t.loc\t1 3 " in ptx
    assert '.file\t1 "scale.cu"' in ptx  # not the directory that Python runs in


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a", "sm_100", "sm_120", "compute_75", "compute_100"])
def test_every_architecture(arch):
    compiled = compile_text(SCALE, arch=arch)
    assert f".target {arch.replace('compute', 'sm')}" in compiled.ptx
    assert bool(compiled.cubin) is arch.startswith("sm_")
    assert list(compiled.resources) == (["scale"] if arch.startswith("sm_") else [])


def test_the_cubin_is_whole():
    cubin = compile_text(SCALE, arch="sm_80").cubin
    assert cubin[:4] == b"\x7fELF"
    headers, sections = struct.unpack_from("<QQ", cubin, 32)
    size, count, section_size, section_count = struct.unpack_from("<HHHH", cubin, 54)
    assert len(cubin) == max(headers + size * count, sections + section_size * section_count)


def test_denormals_are_kept():
    ptx = compile_to_ptx(SCALE.replace("s * x[i]", "s / x[i] + sqrtf(x[i])"), arch="sm_80")
    assert "div.rn.f32" in ptx
    assert ".ftz" not in ptx


def test_defines_reach_the_text():
    text = "#if A == 3 && B == 1 && !defined(D)\n#ifdef C\n" + SCALE + "#endif\n#endif\n"
    assert "scale" in compile_text(text, arch="sm_80", defines={"A": 3, "B": True, "C": None}).signatures
    assert "scale" not in compile_text(text, arch="sm_80", defines={"A": 3, "B": False, "C": None}).signatures


def test_resources_come_from_ptxas():
    text = """
    extern "C" __global__ void BOUNDS tile(const float* x, float* y, int n) {
      __shared__ float t[300];
      float a[64];
      #pragma unroll
      for (int i = 0; i < 64; ++i) a[i] = x[i * n + threadIdx.x];
      t[threadIdx.x] = a[5];
      __syncthreads();
      float s = t[127 - threadIdx.x];
      #pragma unroll
      for (int i = 0; i < 64; ++i) s = s * a[i] + a[63 - i] * s;
      y[threadIdx.x] = s;
    }
    extern "C" __global__ void nothing() {}
    """
    roomy = compile_text(text, arch="sm_80", defines={"BOUNDS": "__launch_bounds__(128)"}).resources
    assert roomy["tile"].shared == 1200
    assert roomy["tile"].registers > 64
    assert roomy["tile"].barriers == 1
    assert roomy["tile"].max_threads == 128
    assert roomy["tile"].spill_stores == 0
    assert roomy["nothing"].shared == 0
    assert roomy["nothing"].max_threads == 1024
    tight = compile_text(text, arch="sm_80", defines={"BOUNDS": "__launch_bounds__(128, 16)"}).resources["tile"]
    assert tight.registers <= 32
    assert tight.spill_stores > 0
    assert tight.spill_loads > 0
    assert tight.local >= tight.spill_stores // 2
    assert "spills" in str(tight)
    assert "no spills" in str(roomy["tile"])


@pytest.mark.parametrize("header", ["cuda_fp16.h", "cuda_bf16.h", "mma.h", "cuda_pipeline.h"])
def test_the_headers_of_the_toolkit_are_found(header):
    assert "scale" in compile_text(f"#include <{header}>\n{SCALE}", arch="compute_80").signatures


def test_the_headers_of_the_library_are_found(tmp_path, monkeypatch):
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "factor.cuh").write_text("#pragma once\n#define FACTOR 3.0f\n")
    monkeypatch.setattr(compiler, "data_folder", lambda name: tmp_path)
    text = '#include "common/factor.cuh"\n' + SCALE.replace("s * x[i]", "FACTOR * x[i]")
    assert "0f40400000" in compile_to_ptx(text, arch="sm_80")


def test_the_wheels_come_before_an_installed_toolkit():
    version = compiler._nvrtc().getVersion()
    directories = include_directories(version)
    assert directories
    if any("nvidia" in str(path) for path in directories):
        assert "site-packages" in str(directories[0])
        assert not any(str(path).startswith("/usr/local/cuda") for path in directories)


def test_it_does_not_wait_for_torch():
    code = "import sys; from styleforge_lib.runtime.compiler import compile_to_ptx; compile_to_ptx('', arch='sm_80')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True, timeout=60)


def test_the_emulator_is_imported_with_numpy_alone():
    code = "import sys, styleforge_lib.runtime.emulator; assert not {'torch', 'cupy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ----------------------------------------------------------------------------------------------------------------------
# What it says


def error_of(text: str, **options) -> CompileError:
    with pytest.raises(CompileError) as caught:
        compile_text(text, **({"arch": "sm_80", "name": "lesson.cu"} | options))
    return caught.value


def test_an_error_is_shown_at_its_line_with_a_caret():
    error = error_of(SCALE.replace("s * x[i]", "s * y[i]"))
    assert [(item.line, item.column, item.file) for item in error.errors] == [(3, 25, "lesson.cu")]
    assert 'line 3: identifier "y" is undefined' in str(error)
    lines = str(error).splitlines()
    shown = next(index for index, line in enumerate(lines) if line.startswith(">"))
    assert lines[shown] == ">   3 |   if (i < n) x[i] = s * y[i];"
    assert lines[shown + 1].index("^") == lines[shown].index("y[i]")
    assert 'lesson.cu(3): error: identifier "y" is undefined' in error.log


def test_every_error_is_shown_and_warnings_are_not():
    error = error_of(SCALE.replace("s * x[i]", "foo").replace("int i =", "int unused; int i = bar +"))
    assert "lesson.cu does not compile for sm_80: 2 errors" in str(error)
    assert [item.line for item in error.errors] == [2, 3]
    assert "unused" not in str(error).replace("int unused", "")


def test_an_error_in_a_header_shows_the_header(tmp_path):
    (tmp_path / "broken.cuh").write_text("// fine\n__device__ int f() { return nope; }\n")
    error = error_of('#include "broken.cuh"\n' + SCALE, include=[tmp_path])
    assert "broken.cuh, line 2" in str(error)
    assert "return nope;" in str(error)


def test_a_missing_header_names_it():
    assert 'line 1: cannot open source file "absent.cuh"' in str(error_of('#include "absent.cuh"\n' + SCALE))


def test_inline_assembly_that_ptxas_refuses_is_led_back_to_its_line():
    error = error_of(SCALE.replace("if (i", 'asm volatile("frob.u32 %0;" :: "r"(i));\n  if (i'))
    assert [item.line for item in error.errors] == [3]
    assert ">   3 |   asm volatile" in str(error)


def test_too_much_shared_memory_is_said_in_one_line():
    text = SCALE.replace("if (i", "__shared__ float t[20000]; t[threadIdx.x] = s; __syncthreads(); s = t[7]; if (i")
    assert "ptxas: Entry function 'scale' uses too much shared data" in str(error_of(text))


def test_warnings_are_kept():
    (warning,) = compile_text(SCALE.replace("int i =", "int unused; int i ="), arch="sm_80").warnings
    assert (warning.line, warning.level) == (2, "warning")
    assert "never referenced" in warning.message


def test_a_kernel_with_the_name_of_a_function_of_cuda():
    assert "kernel name 'all' is also a function of CUDA" in str(error_of(SCALE + SCALE.replace("scale", "all")))


@pytest.mark.parametrize("arch", ["80", "sm80", "ampere", "sm_8x", ""])
def test_an_architecture_that_is_none(arch):
    with pytest.raises(ValueError, match="arch="):
        compile_text(SCALE, arch=arch)


def test_an_architecture_that_this_compiler_does_not_know():
    with pytest.raises(ValueError, match=r"sm_10' is not known .* sm_80"):
        compile_text(SCALE, arch="sm_10")


def test_options_may_not_choose_the_architecture():
    with pytest.raises(ValueError, match="argument arch="):
        compile_text(SCALE, arch="sm_80", options=["--gpu-architecture=sm_75"])


def test_a_macro_needs_a_name():
    with pytest.raises(ValueError, match="name of a macro"):
        compile_text(SCALE, arch="sm_80", defines={"A B": 1})


# ----------------------------------------------------------------------------------------------------------------------
# The cache


def test_the_second_time_is_read(runs):
    first = compile_text(SCALE, arch="sm_80")
    assert runs
    runs.clear()
    assert compile_text(SCALE, arch="sm_80") == first
    assert not runs


@pytest.mark.parametrize(
    "change",
    [
        {"text": SCALE + "\n"},
        {"arch": "sm_75"},
        {"defines": {"A": 1}},
        {"options": ["--use_fast_math"]},
        {"name": "other.cu"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_compiles_again(runs, change):
    arguments = {"text": SCALE, "arch": "sm_80"}
    compile_text(**arguments)
    runs.clear()
    compile_text(**(arguments | change))
    assert runs


def test_a_changed_header_compiles_again(runs, tmp_path):
    (tmp_path / "outer.cuh").write_text('#include "inner.cuh"\n')
    (tmp_path / "inner.cuh").write_text("#define FACTOR 2\n")
    text = '#include "outer.cuh"\n' + SCALE.replace("s * x[i]", "FACTOR * x[i]")
    before = compile_text(text, arch="sm_80", include=[tmp_path]).ptx
    (tmp_path / "inner.cuh").write_text("#define FACTOR 3\n")
    runs.clear()
    assert compile_text(text, arch="sm_80", include=[tmp_path]).ptx != before
    assert runs


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "binary", "foreign"])
def test_a_damaged_entry_is_compiled_again(runs, damage):
    first = compile_text(SCALE, arch="sm_80")
    (entry,) = compiler.cache_directory().glob("*.json")
    content = entry.read_bytes()
    foreign = json.dumps({"something": "else"})
    entry.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "flip": content.replace(b"scale", b"scalf", 1),
            "empty": b"",
            "binary": os.urandom(100),
            "foreign": f"{compiler.hashlib.sha256(foreign.encode()).hexdigest()}\n{foreign}".encode(),
        }[damage]
    )
    runs.clear()
    assert compile_text(SCALE, arch="sm_80") == first
    assert runs
    assert entry.read_bytes() == content  # and it is mended


def test_nothing_half_written_is_left():
    compile_text(SCALE, arch="sm_80")
    assert [path.suffix for path in compiler.cache_directory().iterdir()] == [".json"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STYLEFORGE_CACHE", str(tmp_path / "file"))
    assert compile_text(SCALE, arch="sm_80").cubin
