"""The parameters of a kernel, as the compiler understood them."""

import re

import pytest

from styleforge_lib.runtime.compiler import compile_text
from styleforge_lib.runtime.signature import base_name, parse_signature

TYPES = {  # declaration -> kind, dtype, const, alignment, size
    "float a": ("scalar", "float32", True, 1, 4),
    "double a": ("scalar", "float64", True, 1, 8),
    "const int a": ("scalar", "int32", True, 1, 4),
    "unsigned a": ("scalar", "uint32", True, 1, 4),
    "short a": ("scalar", "int16", True, 1, 2),
    "unsigned char a": ("scalar", "uint8", True, 1, 1),
    "long long a": ("scalar", "int64", True, 1, 8),
    "size_t a": ("scalar", "uint64", True, 1, 8),
    "bool a": ("scalar", "bool", True, 1, 1),
    "__half a": ("scalar", "float16", True, 1, 2),
    "__nv_bfloat16 a": ("scalar", "bfloat16", True, 1, 2),
    "index_t a": ("scalar", "int32", True, 1, 4),
    "SCALAR a": ("scalar", "float64", True, 1, 8),
    "Pair a": ("struct", None, True, 1, 8),
    "float4 a": ("struct", None, True, 1, 16),
    "float* a": ("pointer", "float32", False, 4, 8),
    "const float* __restrict__ a": ("pointer", "float32", True, 4, 8),
    "float const * const a": ("pointer", "float32", True, 4, 8),
    "float* const __restrict__ a": ("pointer", "float32", False, 4, 8),
    "volatile int* a": ("pointer", "int32", False, 4, 8),
    "int a[]": ("pointer", "int32", False, 4, 8),
    "const float4* a": ("pointer", "float32", True, 16, 8),
    "float3* a": ("pointer", "float32", False, 4, 8),
    "half2* a": ("pointer", "float16", False, 4, 8),
    "const uint4* a": ("pointer", "uint32", True, 16, 8),
    "__nv_bfloat162* a": ("pointer", "bfloat16", False, 4, 8),
    "unsigned char* a": ("pointer", "uint8", False, 1, 8),
    "const unsigned long long* a": ("pointer", "uint64", True, 8, 8),
    "const void* a": ("pointer", None, True, 1, 8),
    "void* a": ("pointer", None, False, 1, 8),
    "const float* const* a": ("pointer", "uint64", True, 8, 8),
}
PRELUDE = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#define SCALAR double
typedef int index_t;
struct Pair { int first; float second; };
"""


@pytest.fixture(scope="module")
def parameters():
    """Compile one kernel that has every type, twice so that types repeat: [(declaration, parameter)]."""
    listed = [*TYPES, *TYPES]
    declared = ", ".join(re.sub(r"\ba\b", f"a{index}", declaration) for index, declaration in enumerate(listed))
    text = f'{PRELUDE}extern "C" __global__ void everything({declared}) {{}}\n'
    compiled = compile_text(text, arch="compute_80")
    found = parse_signature("everything", compiled.signatures["everything"], compiled.ptx, text)
    assert [parameter.name for parameter in found] == [f"a{index}" for index in range(len(listed))]
    return list(zip(listed, found, strict=True))


@pytest.mark.parametrize("declaration", TYPES)
def test_every_type(parameters, declaration):
    found = [parameter for declared, parameter in parameters if declared == declaration]
    assert len(found) == 2
    for parameter in found:
        described = (parameter.kind, parameter.dtype, parameter.const, parameter.alignment, parameter.size)
        assert described == TYPES[declaration]


def signature_of(text: str, entry: str | None = None):
    compiled = compile_text(text, arch="compute_80")
    entry = entry or next(iter(compiled.signatures))
    return parse_signature(entry, compiled.signatures[entry], compiled.ptx, text)


def test_names_survive_comments_defaults_and_commas():
    text = """
    // __global__ void k(int wrong)
    template <int A, int B> struct Two { int v[A + B]; };
    extern "C" __global__ void __launch_bounds__(128, 2)
    k(const float *x /* the input, NCHW */, float* y,  // the output
      int n = (1, 2), unsigned = 3) {}
    """
    assert [parameter.name for parameter in signature_of(text)] == ["x", "y", "n", "#4"]


def test_a_kernel_that_a_macro_declares_has_numbers_for_names():
    text = '#define KERNEL(name) extern "C" __global__ void name(float* x, int n) {}\nKERNEL(k)\n'
    assert [(parameter.name, parameter.dtype) for parameter in signature_of(text)] == [
        ("#1", "float32"),
        ("#2", "int32"),
    ]


def test_no_parameters():
    assert signature_of('extern "C" __global__ void k() {}') == ()


def test_a_kernel_without_extern_c():
    (entry,) = compile_text("__global__ void blur(const float* x, const float* y) {}", arch="compute_80").signatures
    assert base_name(entry) == "blur"
    found = signature_of("__global__ void blur(const float* x, const float* y) {}")
    assert [(parameter.name, parameter.dtype, parameter.const) for parameter in found] == [
        ("x", "float32", True),
        ("y", "float32", True),
    ]


def test_instances_of_a_template():
    text = PRELUDE + (
        "template <typename T, int N> __global__ void k(const T* x, T* y, T s, float f) {}\n"
        "template __global__ void k<float, 4>(const float*, float*, float, float);\n"
        "template __global__ void k<__half, -1>(const __half*, __half*, __half, float);\n"
    )
    compiled = compile_text(text, arch="compute_80")
    dtypes = {
        tuple(parameter.dtype for parameter in parse_signature(entry, mangled, compiled.ptx, text))
        for entry, mangled in compiled.signatures.items()
    }
    assert dtypes == {("float32",) * 4, ("float16",) * 3 + ("float32",)}


@pytest.mark.parametrize(
    ("declaration", "complaint"),
    [
        ("Pair* p", "points to Pair"),
        ("inner::Deep d", "not understood"),
        ("Box<3> b", "not understood"),
        ("void (*f)(int)", "not understood"),
    ],
)
def test_what_is_not_understood_is_refused(declaration, complaint):
    text = f"""{PRELUDE}
    namespace inner {{ struct Deep {{ int v; }}; }}
    template <int N> struct Box {{ float v[N]; }};
    extern "C" __global__ void k(int n, {declaration}) {{}}
    """
    with pytest.raises(TypeError, match=complaint):
        signature_of(text)
