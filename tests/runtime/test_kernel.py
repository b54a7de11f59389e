"""Module and Kernel: what is handed to the device, and what is refused before anything runs."""

import signal
import struct
import threading

import numpy as np
import pytest
import torch

from styleforge_lib.paths import data_folder
from styleforge_lib.runtime import CompileError, Kernel, compile_cuda
from styleforge_lib.runtime import gpu as gpu_module
from styleforge_lib.runtime.emulator import EmulatorFault
from styleforge_lib.runtime.kernel import chosen_device

BLUR = """#include <cuda_fp16.h>
#include <cuda_bf16.h>
struct Pair { int first; float second; };
extern "C" __global__ void blur(const float* x, float* y, float s, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = s * x[i];
}
extern "C" __global__ void wide(const float4* v, __half* h, __nv_bfloat16* b, const void* any, unsigned char* u) {}
extern "C" __global__ void numbers(bool f, short s, unsigned u, long long q, double d, __half h, __nv_bfloat16 b,
                                   Pair p) {}
extern "C" __global__ void __launch_bounds__(128) bounded(float* x) {
  __shared__ float t[1024];
  t[threadIdx.x] = *x;
  *x = t[5];
}
"""


class Recorder:
    """Stands in for the emulator's program: keeps what it is given."""

    def launch(
        self, name, grid, block, args, *, shared_bytes=0, cooperative=False, blocks=None, trace=None, names=None,
        progress=None, order="together",
    ):  # fmt: skip
        self.name, self.grid, self.block, self.args, self.shared_bytes = name, grid, block, args, shared_bytes
        self.blocks, self.trace, self.names, self.order = blocks, trace, names, order


@pytest.fixture(scope="module")
def module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STYLEFORGE_DEVICE", "emulator")
        return compile_cuda(BLUR)


@pytest.fixture
def recorded(module, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(module.__dict__, "program", recorder)
    return recorder


@pytest.fixture
def blur(module, monkeypatch):
    """`blur` on a device that must not be reached."""
    monkeypatch.setitem(module.__dict__, "program", None)
    return module.kernel("blur")


def tensors(n=8, **options):
    return torch.arange(n, dtype=torch.float32, **options), torch.zeros(n)


# ----------------------------------------------------------------------------------------------------------------------
# Modules


def test_a_module_names_its_kernels(module):
    assert set(module.kernels) == {"blur", "wide", "numbers", "bounded"}
    assert module.kernel("blur") is module.kernel("blur")
    assert "blur(const float* x, float* y, float s, int n)" in repr(module.kernel("blur"))
    assert "blur" in repr(module)
    with pytest.raises(KeyError, match=r"no kernel 'blurr'.*blur"):
        module.kernel("blurr")


def test_a_module_with_several_kernels_is_not_called(module):
    with pytest.raises(TypeError, match=r"4 kernels .* choose one"):
        module((1,), (1,), ())
    with pytest.raises(TypeError, match="4 kernels"):
        _ = module.resources


def test_a_module_with_one_kernel_is_called(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    module = compile_cuda('extern "C" __global__ void one(float* x) { *x = 1; }')
    recorder = module.__dict__["program"] = Recorder()
    x = torch.zeros(1)
    module(1, 32, (x,), shared_bytes=16)
    assert (recorder.name, recorder.grid, recorder.block, recorder.shared_bytes) == ("one", (1, 1, 1), (32, 1, 1), 16)
    assert module.resources is module.only.resources


def test_a_kernel_without_extern_c_has_its_name(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    assert compile_cuda("__global__ void plain(float* x) {}").kernels == ("plain",)
    text = "template <int N> __global__ void t(float* x) { *x = N; }\n"
    one = compile_cuda(text + "template __global__ void t<1>(float*);")
    assert one.kernels == ("t",)
    two = compile_cuda(text + "template __global__ void t<1>(float*); template __global__ void t<2>(float*);")
    assert set(two.kernels) == {"_Z1tILi1EEvPf", "_Z1tILi2EEvPf"}


def test_files_and_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    (tmp_path / "half.cuh").write_text("#define HALF 0.5f\n")
    (tmp_path / "k.cu").write_text('#include "half.cuh"\nextern "C" __global__ void k(float* x) { *x = HALF * N; }\n')
    for path in (tmp_path / "k.cu", str(tmp_path / "k.cu")):
        assert compile_cuda(path, defines={"N": 3}, arch="sm_75").arch == "sm_75"
    monkeypatch.chdir(tmp_path)
    assert compile_cuda("k.cu", defines={"N": 3}).kernels == ("k",)
    with pytest.raises(FileNotFoundError, match=r"absent\.cu"):
        compile_cuda("absent.cu")
    with pytest.raises(CompileError, match=r"k\.cu does not compile(.|\n)*line 2: identifier \"N\""):
        compile_cuda("k.cu")


def test_what_is_neither_text_nor_file():
    with pytest.raises(TypeError, match="CUDA text or a path, not bytes"):
        compile_cuda(b"text")


def test_a_virtual_architecture_cannot_run():
    with pytest.raises(ValueError, match="real architecture"):
        compile_cuda(BLUR, arch="compute_80")


def test_the_device(monkeypatch):
    monkeypatch.setattr(gpu_module, "available", lambda: True)
    monkeypatch.delenv("STYLEFORGE_DEVICE", raising=False)
    assert chosen_device() == "gpu"
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    assert chosen_device() == "emulator"
    monkeypatch.setattr(gpu_module, "available", lambda: False)
    monkeypatch.setenv("STYLEFORGE_DEVICE", "gpu")
    with pytest.raises(RuntimeError, match="no NVIDIA GPU"):
        chosen_device()
    monkeypatch.setenv("STYLEFORGE_DEVICE", "cuda")
    with pytest.raises(ValueError, match="gpu or emulator"):
        chosen_device()
    monkeypatch.setenv("STYLEFORGE_DEVICE", "")
    assert chosen_device() == "emulator"


# ----------------------------------------------------------------------------------------------------------------------
# What the device is given


def test_a_python_float_arrives_as_a_float(module, recorded):
    x, y = tensors()
    module.kernel("blur")((1,), (32,), (x, y, 1.5, 8))
    assert recorded.args[2] == 1.5
    assert recorded.args[2].dtype == np.float32
    assert recorded.args[3].dtype == np.int32


@pytest.mark.parametrize(
    "value", [2, True, np.float64(2), np.float16(2), np.int64(2), np.bool_(True), float("inf"), float("nan"), -0.0]
)
def test_every_number_that_a_float_takes(module, recorded, value):
    x, y = tensors()
    module.kernel("blur")((1,), (32,), (x, y, value, 8))
    np.testing.assert_equal(recorded.args[2], np.float32(value))


def test_arrays_are_shared_not_copied(module, recorded):
    x, y = tensors()
    module.kernel("blur")((1,), (32,), (x.numpy(), y, 1, 8))
    recorded.args[1][3] = 7
    assert y[3] == 7
    assert np.shares_memory(recorded.args[0], x.numpy())


def test_parameters_of_modules_and_tensors_with_gradients_pass(module, recorded):
    x, y = torch.nn.Parameter(torch.ones(8)), torch.zeros(8)
    module.kernel("blur")((1,), (32,), (x, y, 1, 8))
    assert recorded.args[0].ctypes.data == x.data_ptr()


def test_wide_types(module, recorded):
    v, h, b = torch.zeros(8), torch.zeros(3, dtype=torch.float16), torch.ones(3, dtype=torch.bfloat16)
    u = torch.zeros(5, dtype=torch.uint8)
    module.kernel("wide")((1,), (32,), (v, h, b, torch.zeros(2, dtype=torch.int64), u))
    assert recorded.args[1].dtype == np.float16
    assert recorded.args[2].dtype == np.uint16
    assert recorded.args[2][0] == 0x3F80
    recorded.args[2][:] = 0x4000
    assert (b == 2).all()
    module.kernel("wide")((1,), (32,), (v, h, recorded.args[2], np.zeros(3), u))  # bits of bfloat16, void* of any dtype


def test_none_is_the_null_pointer(module, recorded):
    module.kernel("blur")((1,), (32,), (None, torch.zeros(8), 1, 8))
    assert recorded.args[0] == 0
    assert recorded.args[0].dtype == np.uint64


def test_every_kind_of_number(module, recorded):
    pair = struct.pack("<if", 7, 0.5)
    module.kernel("numbers")((1,), (32,), (True, -5, 2**32 - 1, -(2**63), 0.1, 1.5, 1 + 2**-8, pair))
    got = recorded.args
    assert got[:4] == [1, -5, 2**32 - 1, -(2**63)]
    assert got[4] == 0.1
    assert got[5].dtype == np.float16
    assert got[6] == 0x3F80  # halfway, to even
    assert bytes(got[7]) == pair
    structured = np.array((7, 0.5), dtype=[("first", "i4"), ("second", "f4")])[()]
    module.kernel("numbers")((1,), (32,), (np.bool_(False), 0, 0, 0, 0, 0, 0, structured))
    assert bytes(recorded.args[7]) == pair


@pytest.mark.parametrize("grid", [7, (7,), [7, 1], (np.int64(7), 1, 1), torch.Size([7])])
def test_the_shapes_of_a_grid(module, recorded, grid):
    x, y = tensors()
    module.kernel("blur")(grid, (8, np.int32(4)), (x, y, 1, 8))
    assert recorded.grid == (7, 1, 1)
    assert recorded.block == (8, 4, 1)


def test_emulate_passes_on_which_blocks_to_look_at_and_in_which_order(module, recorded):
    x, y = tensors()
    module.kernel("blur").emulate((4,), (32,), (x, y, 1, 8), blocks=[2], trace="a trace", order="last warpgroup ahead")
    assert recorded.order == "last warpgroup ahead"
    assert (recorded.blocks, recorded.trace, recorded.names) == ([2], "a trace", ["x", "y", "s", "n"])


# ----------------------------------------------------------------------------------------------------------------------
# What is refused, by name, before anything runs


def refused(kernel: Kernel, error, match: str, args=None, grid=(1,), block=(32,), **options):
    x, y = tensors()
    with pytest.raises(error, match=match):
        kernel(grid, block, (x, y, 1.0, 8) if args is None else args, **options)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_a_wrong_count(blur, count):
    x, y = tensors()
    refused(blur, TypeError, rf"4 parameters \(const float\* x, .*{count} arguments", (x, y, 1.0, 8, 9)[:count])


@pytest.mark.parametrize("args", [torch.zeros(4), None, 5, {}])
def test_arguments_that_are_no_tuple(blur, args):
    with pytest.raises(TypeError, match="args must be a tuple"):
        blur((1,), (1,), args)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (1e39, ValueError, "'s' .float.: 1e.39 does not fit into float32"),
        (10**400, ValueError, "does not fit"),
        ("1", TypeError, "'s' .* needs a number, not str"),
        (1j, TypeError, "needs a number"),
        (None, TypeError, "needs a number"),
        (torch.tensor(1.0), TypeError, r"'s' .*torch.Tensor.*\.item\(\)"),
        (np.ones(1), TypeError, r"\.item\(\)"),
    ],
)
def test_what_a_float_does_not_take(blur, value, error, match):
    x, y = tensors()
    refused(blur, error, match, (x, y, value, 8))


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (8.0, TypeError, r"parameter 4, 'n' \(int\): needs an integer, not the float 8.0"),
        (np.float32(8), TypeError, "needs an integer"),
        (2**31, ValueError, "'n' .*2147483648 does not fit into int32"),
        (-(2**31) - 1, ValueError, "does not fit"),
        (np.int64(2**40), ValueError, "does not fit"),
        (torch.tensor(8), TypeError, "needs a number"),
    ],
)
def test_what_an_int_does_not_take(blur, value, error, match):
    x, y = tensors()
    refused(blur, error, match, (x, y, 1.0, value))


@pytest.mark.parametrize(
    ("position", "value", "error"),
    [
        (0, 2, TypeError),
        (0, 1.0, TypeError),
        (1, 2**15, ValueError),
        (2, -1, ValueError),
        (3, 2**63, ValueError),
        (5, 70000.0, ValueError),
        (6, 3.4e38 * 1.01, ValueError),
        (7, b"1234", ValueError),
        (7, 3, TypeError),
    ],
)
def test_what_the_other_numbers_do_not_take(module, recorded, position, value, error):
    arguments = [True, 0, 0, 0, 0.0, 0.0, 0.0, bytes(8)]
    arguments[position] = value
    refused(module.kernel("numbers"), error, "'[fsuqdhbp]'", tuple(arguments))
    assert not hasattr(recorded, "name")


def test_channels_last_is_named(blur):
    x = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    refused(blur, ValueError, r"'x' .*channels_last.*x\.contiguous\(\).*permute\(0, 2, 3, 1\)", (x, x, 1.0, 8))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x[:, ::2],
        lambda x: x[:, 1:3],
        lambda x: x[:1].expand(4, 4),
    ],
    ids=["transposed", "stepped", "column", "expanded"],
)
def test_a_strided_tensor_and_array(blur, view):
    x = torch.zeros(4, 4)
    refused(blur, ValueError, r"'y' .*not contiguous .*strides", (x, view(x), 1.0, 8))
    refused(blur, ValueError, r"'y' .*not C-contiguous", (x, view(x).numpy(), 1.0, 8))


def test_a_contiguous_slice_passes(module, recorded):
    x = torch.zeros(4, 4)
    module.kernel("blur")((1,), (32,), (x[1], x[2:], 1.0, 8))
    assert recorded.args[0].ctypes.data == x.data_ptr() + 16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8])
def test_a_wrong_dtype(blur, dtype):
    x, y = tensors()
    name = str(dtype).removeprefix("torch.")
    refused(
        blur, TypeError, rf"'x' .*needs float32, not {name}\. Pass x\.to\(torch\.float32\)", (x.to(dtype), y, 1.0, 8)
    )
    if dtype is not torch.bfloat16:
        refused(blur, TypeError, rf"'y' .*needs float32, not {name}\..*astype", (x, y.to(dtype).numpy(), 1.0, 8))


def test_a_wrong_device(blur):
    x, y = tensors()
    refused(blur, ValueError, "'x' .*meta", (x.to("meta"), y, 1.0, 8))

    class OnTheCard(torch.Tensor):
        device = torch.device("cuda:0")

    card = y.as_subclass(OnTheCard)
    refused(blur, ValueError, r"'y' .*cuda:0.*emulator.*x\.cpu\(\)", (x, card, 1.0, 8))


@pytest.mark.parametrize("value", [[1.0, 2.0], 1.0, 140000000, "x", object()])
def test_what_is_no_array(blur, value):
    _, y = tensors()
    refused(blur, TypeError, "'x' .*needs a torch tensor", (value, y, 1.0, 8))


def test_an_empty_array(blur):
    x, y = tensors()
    refused(blur, ValueError, r"'x' .*empty, shape \(0, 3\)", (torch.zeros(0, 3), y, 1.0, 8))
    refused(blur, ValueError, "'y' .*empty", (x, np.zeros(0, np.float32), 1.0, 8))


def test_a_sparse_tensor(blur):
    x, y = tensors()
    refused(blur, ValueError, "sparse", (x.to_sparse(), y, 1.0, 8))


def test_a_read_only_output(blur):
    array = np.zeros(8, np.float32)
    array.flags.writeable = False
    refused(blur, ValueError, "'y' .*read-only", (torch.zeros(8), array, 1.0, 8))


def test_foreign_bytes(blur):
    refused(blur, TypeError, "'x' .*foreign order", (np.zeros(8, ">f4"), torch.zeros(8), 1.0, 8))


def test_a_vector_type_needs_its_alignment(module, recorded):
    wide, rest = module.kernel("wide"), (None, None, None, None)
    store = torch.zeros(16)
    start = (-store.data_ptr() % 16) // 4
    wide((1,), (1,), (store[start:], *rest))
    refused(
        wide, ValueError, "'v' .*multiple of 16 bytes, and this view starts 4 bytes past", (store[start + 1 :], *rest)
    )


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"block": (1025,)}, ValueError, "1025,.* more than 1024 in x"),
        ({"block": (32, 33)}, ValueError, "1056 threads; a block has at most 1024"),
        ({"block": (1, 1, 65)}, ValueError, "more than 64 in z"),
        ({"block": (0,)}, ValueError, "no threads in x"),
        ({"grid": (0,)}, ValueError, "no blocks in x"),
        ({"grid": (4, 0)}, ValueError, "no blocks in y"),
        ({"grid": (-1,)}, ValueError, "no blocks"),
        ({"grid": (2**31,)}, ValueError, "more than 2147483647 in x"),
        ({"grid": (1, 65536)}, ValueError, "more than 65535 in y"),
        ({"grid": (1, 1, 65536)}, ValueError, "more than 65535 in z"),
        ({"grid": (1.5,)}, TypeError, "grid must be up to three integers"),
        ({"grid": ()}, ValueError, "up to three"),
        ({"grid": (1, 1, 1, 1)}, ValueError, "up to three"),
        ({"block": None}, TypeError, "block must be"),
        ({"shared_bytes": 163 * 1024 + 1}, ValueError, "more than the 166912 that a block may have on sm_80"),
        ({"shared_bytes": -1}, ValueError, "negative"),
        ({"shared_bytes": 1.5}, TypeError, "integer"),
    ],
)
def test_an_illegal_launch(blur, options, error, match):
    refused(blur, error, match, **options)


def test_launch_bounds_and_static_shared_memory(module, recorded):
    bounded, x = module.kernel("bounded"), torch.zeros(1)
    bounded((1,), (128,), (x,), shared_bytes=159 * 1024)
    refused(bounded, ValueError, "__launch_bounds__ allows at most 128", (x,), block=(129,))
    refused(bounded, ValueError, "4096 bytes of static", (x,), shared_bytes=159 * 1024 + 1)


def test_too_many_registers_for_the_block(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    text = """extern "C" __global__ void greedy(float* x) {
      float a[160];
      #pragma unroll
      for (int i = 0; i < 160; ++i) a[i] = x[i * 64 + threadIdx.x];
      __syncthreads();
      #pragma unroll
      for (int i = 0; i < 160; ++i) x[i] = a[159 - i] * a[i];
    }"""
    kernel = compile_cuda(text, options=["--maxrregcount=200"]).only
    assert kernel.resources.registers > 128
    refused(kernel, ValueError, "registers a thread allows at most", (torch.zeros(1),), block=(512,))


# ----------------------------------------------------------------------------------------------------------------------
# On the emulator


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    return lambda text, **options: compile_cuda(text, **options).only


def test_a_kernel_runs(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    blur = compile_cuda(BLUR).kernel("blur")
    x, y = torch.randn(1000), torch.full((1000,), float("nan"))
    blur((4,), (256,), (x, y, 1.5, 1000))
    assert torch.equal(y, 1.5 * x)
    z = np.empty(1000, np.float32)
    blur((4,), (256,), (x.numpy(), z, -2, 1000))
    np.testing.assert_array_equal(z, -2 * x.numpy())


def test_every_kind_of_number_arrives(emulated):
    kernel = emulated("""#include <cuda_fp16.h>
    #include <cuda_bf16.h>
    struct Pair { int first; float second; };
    extern "C" __global__ void numbers(double* out, bool f, short s, unsigned u, long long q, double d, __half h,
                                       __nv_bfloat16 b, Pair p, float4 v, const float* none) {
      double values[] = {double(f), double(s), double(u), double(q), d, double(__half2float(h)),
                         double(__bfloat162float(b)), double(p.first), double(p.second), double(v.w), double(!none)};
      for (int i = 0; i < 11; ++i) out[i] = values[i];
    }""")
    out, pair = torch.zeros(11, dtype=torch.float64), struct.pack("<if", -7, 0.5)
    vector = np.array([1, 2, 3, 4.5], np.float32)
    kernel((1,), (1,), (out, True, -5, 2**32 - 1, -(2**40), 0.1, 1.5, -2.5, pair, vector, None))
    assert out.tolist() == [1, -5, 2**32 - 1, -(2**40), 0.1, 1.5, -2.5, -7, 0.5, 4.5, 1]


def test_bfloat16_and_half_tensors(emulated):
    kernel = emulated("""#include <cuda_fp16.h>
    #include <cuda_bf16.h>
    extern "C" __global__ void convert(const __nv_bfloat16* b, __half* h) {
      h[threadIdx.x] = __float2half(__bfloat162float(b[threadIdx.x]));
    }""")
    b, h = torch.arange(-16, 16, dtype=torch.bfloat16) / 8, torch.zeros(32, dtype=torch.float16)
    kernel((1,), (32,), (b, h))
    assert torch.equal(h, b.to(torch.float16))


def test_dynamic_shared_memory(emulated):
    kernel = emulated("""extern "C" __global__ void reverse(float* x, int n) {
      extern __shared__ float tile[];
      tile[threadIdx.x] = x[threadIdx.x];
      __syncthreads();
      x[threadIdx.x] = tile[n - 1 - threadIdx.x];
    }""")
    x = torch.arange(64.0)
    kernel((1,), (64,), (x, 64), shared_bytes=256)
    assert torch.equal(x, torch.arange(63.0, -1, -1))


GRID = """#include <cooperative_groups.h>
extern "C" __global__ void turn(const float* x, float* y, float* z, int n) {
    auto grid = cooperative_groups::this_grid();
    for (int i = grid.thread_rank(); i < n; i += grid.size()) y[i] = x[i] + 1.0f;
    grid.sync();
    for (int i = grid.thread_rank(); i < n; i += grid.size()) z[i] = y[n - 1 - i];
}"""


def test_a_cooperative_launch_on_the_emulator(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    module = compile_cuda(GRID, arch="sm_75")
    x, y, z = torch.arange(5000.0), torch.zeros(5000), torch.zeros(5000)
    module(16, 128, (x, y, z, 5000), cooperative=True)
    assert torch.equal(z, x.flip(0) + 1)
    with pytest.raises(ValueError, match=r"'turn'.* 9999 blocks of 128 threads, but only \d+ .* on sm_75 \(T4\)"):
        module(9999, 128, (x, y, z, 5000), cooperative=True)
    with pytest.raises(EmulatorFault, match="cooperative=True"):
        module(16, 128, (x, y, z, 5000))


OVERLAPPING = """#include "common/programmatic_launch.cuh"
extern "C" __global__ void patient(float* x) {
    launch_dependents();
    wait_for_earlier_kernels();
    x[threadIdx.x] += 1.0f;
}
extern "C" __global__ void hasty(float* x) { x[threadIdx.x] += 1.0f; }
extern "C" __global__ void leaver(float* x) {
    if (threadIdx.x >= 8)
        return;
    wait_for_earlier_kernels();
    x[threadIdx.x] += 1.0f;
}
__device__ __noinline__ void called() { wait_for_earlier_kernels(); }
extern "C" __global__ void caller(float* x) {
    called();
    x[threadIdx.x] += 1.0f;
}
extern "C" __global__ void scoped(float* x) {
    asm volatile("{\\n .reg .pred p;\\n setp.ne.u32 p, 0, 1;\\n}");
    wait_for_earlier_kernels();
    x[threadIdx.x] += 1.0f;
}"""


def overlapping(monkeypatch, arch, **defines):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    options = (f"-I{data_folder('cuda')}",)
    return compile_cuda(OVERLAPPING, arch=arch, defines={"OVERLAP": 1, **defines}, options=options)


@pytest.mark.parametrize("name", ["patient", "caller", "scoped"])
def test_an_overlapping_launch_on_the_emulator(monkeypatch, name):
    x = torch.zeros(32)
    kernel = overlapping(monkeypatch, "sm_90").kernel(name)
    kernel(1, 32, (x,), overlap=True)
    kernel(1, 32, (x,))
    assert (x == 2).all()
    with pytest.raises(ValueError, match=f"'{name}': overlap and cooperative exclude each other"):
        kernel(1, 32, (x,), overlap=True, cooperative=True)
    with pytest.raises(ValueError, match="no blocks"):
        kernel(0, 32, (x,), overlap=True)


@pytest.mark.parametrize(
    ("name", "defines", "match"),
    [
        (
            "hasty",
            {},
            r"'hasty': overlap=True, and it never executes griddepcontrol\.wait.*wait_for_earlier_kernels\(\)",
        ),
        ("patient", {"OVERLAP": 0}, r"'patient': overlap=True, and it never executes"),
        (
            "leaver",
            {},
            r"'leaver': overlap=True, and threads can go from line 9 to their end without griddepcontrol\.wait",
        ),
    ],
)
def test_an_overlapping_launch_that_does_not_wait(monkeypatch, name, defines, match):
    x = torch.zeros(32)
    module = overlapping(monkeypatch, "sm_90a", **defines)
    for _ in range(2):
        with pytest.raises(ValueError, match=match):
            module.kernel(name)(1, 32, (x,), overlap=True)
    assert not x.any()


def test_before_hopper_an_overlapping_launch_is_as_any_other(monkeypatch):
    x = torch.zeros(32)
    module = overlapping(monkeypatch, "sm_80")
    assert "griddepcontrol" not in module.ptx
    for name in ("patient", "hasty"):
        module.kernel(name)(1, 32, (x,), overlap=True)
    assert (x == 2).all()


def test_a_card_is_asked_to_overlap_only_what_waits(monkeypatch):
    module, launches = overlapping(monkeypatch, "sm_90a"), []
    launcher = gpu_module.GpuLauncher.__new__(gpu_module.GpuLauncher)
    launcher.__dict__["overlapping"] = lambda *launch: launches.append(launch)
    kernels = [module.kernel(name) for name in ("patient", "hasty")]
    module.device = "gpu"
    for kernel in kernels:
        kernel._launch = launcher
    kernels[0](1, 32, (1,), overlap=True)
    assert launches == [(1, 32, (1,), 0)]
    with pytest.raises(ValueError, match="'hasty': overlap=True, and it never executes"):
        kernels[1](1, 32, (1,), overlap=True)
    assert len(launches) == 1


def test_a_fault_names_the_line_and_the_parameter(emulated):
    kernel = emulated('extern "C" __global__ void over(float* picture) {\n  picture[threadIdx.x] = 1;\n}')
    with pytest.raises(EmulatorFault, match=r"line 2.*picture") as caught:
        kernel((1,), (64,), (torch.zeros(40),))
    assert all("emulator" not in str(entry.path) for entry in caught.traceback)


SLOW = """extern "C" __global__ void slow(float* y, int turns) {
  __shared__ float s[32]; float v = threadIdx.x;
  for (int j = 0; j < turns; j++) { s[threadIdx.x] = v; __syncthreads(); v = s[31 - threadIdx.x]; __syncthreads(); }
  y[threadIdx.x] = v;
}"""


def test_a_long_launch_shows_a_bar_and_can_be_interrupted(emulated, interruptible, capsys):
    slow, y = compile_cuda(SLOW), np.zeros(32, np.float32)
    slow((1,), (32,), (y, 10))
    assert capsys.readouterr().err == ""
    timer = threading.Timer(2.6, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt, match="kernel 'slow' was interrupted in the emulator") as caught:
        slow((1,), (32,), (y, 2_000_000_000))
    timer.join()
    assert "emulating slow:   0%" in capsys.readouterr().err
    assert not [place for place in caught.traceback if "emulator" in str(place.path)]
    slow((1,), (32,), (y, 10))
    assert np.array_equal(y, np.arange(32))


def test_a_translation_is_kept_beside_the_compiled_kernel(emulated, monkeypatch, tmp_path):
    monkeypatch.setenv("STYLEFORGE_CACHE", str(tmp_path))
    y = np.zeros(32, np.float32)
    compile_cuda(SLOW)((1,), (32,), (y, 3))
    assert len(list((tmp_path / "kernels" / "translated").glob("*.py"))) == 1
    assert np.array_equal(y, np.arange(32)[::-1])


# ----------------------------------------------------------------------------------------------------------------------
# On a GPU; tools/check_gpu.py measures there as well


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_module.available(), reason="torch sees no NVIDIA GPU")
class TestGpu:
    @pytest.fixture
    def blur(self, monkeypatch):
        monkeypatch.delenv("STYLEFORGE_DEVICE", raising=False)
        return compile_cuda(BLUR).kernel("blur")

    def test_it_launches(self, blur):
        x, y = torch.randn(1000, device="cuda"), torch.zeros(1000, device="cuda")
        blur((4,), (256,), (x, y, 1.5, 1000))
        assert torch.equal(y, 1.5 * x)

    def test_a_wrong_device(self, blur):
        x, y = tensors()
        refused(blur, ValueError, r"'x' .*on the CPU.*x\.cuda\(\)", (x, y.cuda(), 1.0, 8))
        refused(blur, ValueError, r"'y' .*on the CPU", (x.cuda(), y.numpy(), 1.0, 8))

    def test_it_follows_the_current_stream_and_is_captured(self, blur):
        x, y = torch.ones(1000, device="cuda"), torch.zeros(1000, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            blur((4,), (256,), (x, y, 2.0, 1000))
        torch.cuda.synchronize()
        assert not y.any()
        x.fill_(3)
        graph.replay()
        torch.cuda.synchronize()
        assert (y == 6).all()
