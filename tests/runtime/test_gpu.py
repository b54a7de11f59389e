"""The launcher of the GPU, with a driver that only writes down what it is given; no card is needed."""

import ctypes
import struct
import types

import numpy as np
import pytest
import torch

from styleforge_lib.runtime import gpu
from styleforge_lib.runtime.arguments import LaunchLimits
from styleforge_lib.runtime.compiler import compile_text
from styleforge_lib.runtime.gpu import GpuLauncher, quick_check
from styleforge_lib.runtime.signature import parse_signature

TEXT = """#include <cuda_fp16.h>
#include <cuda_bf16.h>
struct Triple { int a, b, c; };
extern "C" __global__ void quick(const float* x, int n, float4* y, float s, unsigned u, __half h) {}
extern "C" __global__ void careful(__nv_bfloat16 b, const float* x, bool f, Triple t, void* any) {}
extern "C" __global__ void bare(int n) {}
"""


class CardTensor:
    """Stands in for a torch tensor on a card."""

    def __init__(self, pointer, dtype=torch.float32, contiguous=True, card=0):
        self.pointer, self.dtype, self.contiguous, self.card = pointer, dtype, contiguous, card
        self.device, self.layout, self.shape = torch.device("cuda", max(card, 0)), torch.strided, (4,)

    def data_ptr(self):
        return self.pointer

    def is_contiguous(self, memory_format=None):
        return self.contiguous

    def get_device(self):
        return self.card

    def dim(self):
        return 1

    def stride(self):
        return (2,)


class DriverError(Exception):
    def __init__(self, status):
        super().__init__(f"CUDA_ERROR_{status}")
        self.status = status


class Driver:
    """Writes down each launch: function, sizes, stream, and the parameters as the real driver would copy them."""

    def __init__(self):
        self.launches, self.failures = [], []

    def launch(self, function, *rest):
        *sizes, shared, stream, packet, extra = rest
        if self.failures:
            raise DriverError(self.failures.pop())
        addresses = ctypes.cast(packet, ctypes.POINTER(ctypes.c_void_p))
        values = [ctypes.string_at(addresses[index], parameter.size) for index, parameter in enumerate(self.parameters)]
        self.launches.append(
            types.SimpleNamespace(function=function, sizes=sizes, shared=shared, stream=stream, v=values)
        )
        assert extra == 0


@pytest.fixture(scope="module")
def parameters():
    compiled = compile_text(TEXT, arch="compute_80")
    return {
        entry: parse_signature(entry, mangled, compiled.ptx, TEXT) for entry, mangled in compiled.signatures.items()
    }


@pytest.fixture
def make(parameters, monkeypatch):
    """Make a launcher over the driver that writes down, with cards 0 and 1; card 0 is current."""
    monkeypatch.setattr(gpu, "_TENSORS", frozenset({CardTensor}))
    monkeypatch.setattr(gpu, "array", lambda kernel, parameter, value: array(parameter, value))
    monkeypatch.setattr(gpu, "_ensure_context", lambda: ensured.append(1))
    monkeypatch.setattr(
        torch.cuda, "device", lambda index: entered.append(index) or __import__("contextlib").nullcontext()
    )
    ensured, entered = [], []

    def array(parameter, value):
        if isinstance(value, CardTensor) and value.contiguous and value.dtype in (torch.float32, parameter.dtype):
            return gpu.Array(value.pointer, str(value.device), value)
        if value is None:
            return gpu.Array(0, "any", None)
        raise TypeError(f"'{parameter.name}' refused")

    def build(name):
        launcher, driver = GpuLauncher.__new__(GpuLauncher), Driver()
        driver.parameters = parameters[name]
        launcher.name, launcher.parameters = name, parameters[name]
        launcher._launch, launcher._error = driver.launch, DriverError
        launcher._stream, launcher._current = (lambda card: 7000 + card), (lambda: 0)
        launcher._functions, launcher._shapes, launcher._packets = {0: 100, 1: 101}, {}, []
        launcher._resident = set()
        launcher._packing = struct.Struct("<" + "".join(parameter.format for parameter in parameters[name]))
        launcher._quick = quick_check(parameters[name])
        launcher.limits = LaunchLimits("sm_80", 1024, "it", 0, 166912)
        driver.ensured, driver.entered = ensured, entered
        return launcher, driver

    return build


def test_the_parameters_arrive_in_their_places(make):
    launcher, driver = make("quick")
    launcher((5, 6), (64, 2), (CardTensor(0x1000), -3, CardTensor(0x2000), 1.5, 2**32 - 1, 0.25), 256)
    (launch,) = driver.launches
    assert (launch.function, launch.sizes, launch.shared, launch.stream) == (100, [5, 6, 1, 64, 2, 1], 256, 7000)
    assert [struct.unpack("<" + code, value)[0] for code, value in zip("QiQfIe", launch.v, strict=True)] == [
        0x1000,
        -3,
        0x2000,
        1.5,
        2**32 - 1,
        0.25,
    ]
    assert not driver.entered  # the usual case switches no card
    assert len(launcher._packets) == 1
    launcher((5, 6), (64, 2), (CardTensor(0x1000), 4, CardTensor(0x2000), np.float64(2), 1, 0), 256)
    assert struct.unpack("<i", driver.launches[1].v[1]) == (4,)
    assert len(launcher._packets) == 1


@pytest.mark.parametrize(("first", "second"), [(None, 0x2000), (0x1000, None), (None, None)])
def test_a_null_pointer_is_usual(make, monkeypatch, first, second):
    """Kernels are given None for what is left out at every call; only one without any array needs the current card."""
    launcher, driver = make("quick")
    with monkeypatch.context() as patch:
        if first or second:
            patch.setattr(launcher, "_launch_with_care", None)
        x, y = (None if pointer is None else CardTensor(pointer) for pointer in (first, second))
        launcher((1,), (1,), (x, 1, y, 1.0, 1, 1.0), 0)
    (launch,) = driver.launches
    assert (launch.v[0], launch.v[2]) == (struct.pack("<Q", first or 0), struct.pack("<Q", second or 0))
    assert (launch.function, launch.stream) == (100, 7000)


def test_what_needs_care_arrives_too(make):
    launcher, driver = make("careful")
    triple = struct.pack("<iii", 1, 2, 3)
    launcher((1,), (1,), (1.0, CardTensor(0x1000), True, triple, None), 0)
    (launch,) = driver.launches
    assert launch.v == [b"\x80\x3f", struct.pack("<Q", 0x1000), b"\x01", triple, bytes(8)]


def test_a_kernel_of_numbers_runs_on_the_current_card(make):
    launcher, driver = make("bare")
    launcher((1,), (1,), (5,), 0)
    assert (driver.launches[0].function, driver.launches[0].v) == (100, [struct.pack("<i", 5)])


def test_another_card(make):
    launcher, driver = make("quick")
    launcher((1,), (1,), (CardTensor(0x1000, card=1), 1, CardTensor(0x2000, card=1), 1.0, 1, 1.0), 0)
    assert (driver.launches[0].function, driver.launches[0].stream, driver.entered) == (101, 7001, [1])
    with pytest.raises(ValueError, match="'x' is on cuda:1 and 'y' on cuda:0: one launch has one card"):
        launcher((1,), (1,), (CardTensor(0x1000, card=1), 1, CardTensor(0x2000), 1.0, 1, 1.0), 0)


@pytest.mark.parametrize(
    "arguments",
    [
        (CardTensor(0x1000, torch.float64), 1, CardTensor(0x2000), 1.0, 1, 1.0),
        (CardTensor(0x1000, contiguous=False), 1, CardTensor(0x2000), 1.0, 1, 1.0),
        (CardTensor(0x1000), 1.0, CardTensor(0x2000), 1.0, 1, 1.0),
        (CardTensor(0x1000), 2**31, CardTensor(0x2000), 1.0, 1, 1.0),
        (CardTensor(0x1000), 1, CardTensor(0x2000), 1e39, 1, 1.0),
        (CardTensor(0x1000), 1, CardTensor(0x2000), "1", 1, 1.0),
        (CardTensor(0x1000), 1, CardTensor(0x2000), 1.0, -1, 1.0),
        (CardTensor(0x1000), 1, CardTensor(0x2000), 1.0, 1, 1e6),
        (CardTensor(0x1000), 1, torch.zeros(4), 1.0, 1, 1.0),
        (CardTensor(0x1000), 1, CardTensor(0x2000), 1.0, 1),
    ],
)
def test_nothing_wrong_reaches_the_driver(make, arguments):
    launcher, driver = make("quick")
    with pytest.raises((TypeError, ValueError)):
        launcher((1,), (32,), arguments, 0)
    assert not driver.launches


@pytest.mark.parametrize(
    "arguments",
    [
        (CardTensor(0x1000), 1, CardTensor(0x2004), 1.0, 1, 1.0),  # float4* at 4 bytes past 16
        (CardTensor(0x1002), 1, CardTensor(0x2000), 1.0, 1, 1.0),
        (CardTensor(0), 1, CardTensor(0x2000), 1.0, 1, 1.0),  # an empty tensor
        (CardTensor(0x1000, card=-1), 1, CardTensor(0x2000, card=-1), 1.0, 1, 1.0),  # the CPU
        (CardTensor(0x1000), 1, CardTensor(0x2000, card=1), 1.0, 1, 1.0),
        (CardTensor(0x1000, card=-1), 1, CardTensor(0x2000), 1.0, 1, 1.0),
        (CardTensor(0x1000), 1, CardTensor(0x2000, card=-1), 1.0, 1, 1.0),
        (None, 1, CardTensor(0x2000, card=-1), 1.0, 1, 1.0),
        (None, 1, CardTensor(0x2004), 1.0, 1, 1.0),
        (CardTensor(0x1000), None, CardTensor(0x2000), 1.0, 1, 1.0),
        (CardTensor(0x1000), np.int16(1), CardTensor(0x2000), 1.0, 1, 1.0),
    ],
)
def test_the_quick_way_takes_only_the_usual_case(make, arguments):
    launcher, _ = make("quick")
    assert launcher._quick(*arguments) == (-1, ())


def test_an_illegal_shape_is_refused_and_a_legal_one_remembered(make):
    launcher, driver = make("bare")
    for _ in range(2):
        with pytest.raises(ValueError, match="no blocks"):
            launcher((0,), (1,), (5,), 0)
    launcher([3], [32], (5,), 0)  # a list cannot be a key, and needs none
    launcher((3,), (32,), (5,), 0)
    assert list(launcher._shapes) == [((3,), (32,), 0)]
    for size in range(1, gpu._SHAPES_KEPT + 10):
        launcher((size,), (32,), (5,), 0)
    assert len(launcher._shapes) <= gpu._SHAPES_KEPT
    assert [launch.sizes[0] for launch in driver.launches] == [3, 3, *range(1, gpu._SHAPES_KEPT + 10)]


def test_a_thread_without_a_context_gets_one(make):
    launcher, driver = make("quick")
    driver.failures = [201]
    launcher((1,), (1,), (CardTensor(0x1000), 1, CardTensor(0x2000), 1.0, 1, 1.0), 0)
    assert len(driver.launches) == 1
    assert driver.ensured


def test_what_the_driver_refuses_is_one_sentence(make):
    launcher, driver = make("quick")
    driver.failures = [700]
    with pytest.raises(RuntimeError, match=r"'quick' was not launched: CUDA_ERROR_700.*xray"):
        launcher((1,), (1,), (CardTensor(0x1000), 1, CardTensor(0x2000), 1.0, 1, 1.0), 0)


@pytest.fixture
def cooperative(make, monkeypatch):
    """Make a launcher over a driver that writes down cooperative launches too; three blocks fit on a multiprocessor."""
    from cupy.cuda import driver as real

    launcher, driver = make("quick")
    asked = []

    def fits(function, threads, shared):
        asked.append((function, threads, shared))
        return 3

    monkeypatch.setattr(real, "occupancyMaxActiveBlocksPerMultiprocessor", fits)
    monkeypatch.setattr(real, "launchCooperativeKernel", lambda *arguments: driver.launch(*arguments, 0))
    card = types.SimpleNamespace(multi_processor_count=4, name="a card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    driver.asked = asked
    return launcher, driver


def test_a_cooperative_launch(cooperative):
    launcher, driver = cooperative
    arguments = (CardTensor(0x1000), -3, CardTensor(0x2000), 1.5, 7, 0.25)
    for _ in range(2):
        driver.entered.clear()
        launcher.together((6, 2), (32, 2), arguments, 128)
    one, two = driver.launches
    assert (one.function, one.sizes, one.shared, one.stream) == (100, [6, 2, 1, 32, 2, 1], 128, 7000)
    assert [struct.unpack("<" + code, value)[0] for code, value in zip("QiQfIe", two.v, strict=True)] == [
        0x1000, -3, 0x2000, 1.5, 7, 0.25]  # fmt: skip
    assert driver.asked == [(100, 64, 128)]
    assert not driver.entered  # the usual case is as quick as that of other launches


def test_a_cooperative_launch_that_does_not_fit(cooperative):
    launcher, driver = cooperative
    arguments = (CardTensor(0x1000), -3, CardTensor(0x2000), 1.5, 7, 0.25)
    with pytest.raises(ValueError, match=r"13 blocks of 64 threads, but only 12 .* on a card: 3 on each of 4"):
        launcher.together((13,), (64,), arguments, 0)
    with pytest.raises(TypeError):
        launcher.together((1,), (64,), arguments[:-1], 0)
    driver.failures = [201]
    launcher.together((12,), (64,), arguments, 0)
    assert len(driver.launches) == 1
    assert driver.ensured


@pytest.fixture
def overlapping(make, monkeypatch):
    """Make a launcher whose overlapping launches are written down, as the driver would read them."""
    launcher, driver = make("quick")
    driver.statuses = []

    def launch_kernel_ex(configuration, function, packet, extra):
        if driver.statuses:
            return driver.statuses.pop()
        *sizes, shared, stream, attributes, count = struct.unpack("<7I4xQQI4x", configuration)
        assert count == 1
        which, allowed = struct.unpack("<i4xi60x", ctypes.string_at(attributes, 72))
        assert (which, allowed) == (6, 1)  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        assert extra is None
        driver.launch(function, *sizes, shared, stream, packet, 0)
        return 0

    from cupy.cuda import driver as real

    monkeypatch.setattr(real, "CUDADriverError", DriverError)
    monkeypatch.setattr(gpu, "_launch_kernel_ex", lambda: launch_kernel_ex)
    return launcher, driver


def test_an_overlapping_launch(overlapping):
    launcher, driver = overlapping
    arguments = (CardTensor(0x1000), -3, CardTensor(0x2000), 1.5, 7, 0.25)
    for grid in ((6, 2), [6, 2], (6, 2)):  # the second goes the careful way
        launcher.overlapping(grid, (32, 2), arguments, 128)
    launcher.overlapping((1,), (1,), (CardTensor(0x1000), np.int64(4), CardTensor(0x2000, card=0), 1.5, 7, 0), 0)
    one, *_, last = driver.launches
    assert (one.function, one.sizes, one.shared, one.stream) == (100, [6, 2, 1, 32, 2, 1], 128, 7000)
    assert [struct.unpack("<" + code, value)[0] for code, value in zip("QiQfIe", one.v, strict=True)] == [
        0x1000, -3, 0x2000, 1.5, 7, 0.25]  # fmt: skip
    assert struct.unpack("<i", last.v[1]) == (4,)
    assert launcher._launch == driver.launch, "other launches are what they were"
    assert launcher.overlapping is launcher.overlapping
    assert len(launcher._packets) == 1


def test_an_overlapping_launch_that_the_driver_refuses(overlapping):
    launcher, driver = overlapping
    arguments = (CardTensor(0x1000), -3, CardTensor(0x2000), 1.5, 7, 0.25)
    driver.statuses = [201]
    launcher.overlapping((1,), (32,), arguments, 0)
    assert driver.ensured
    assert len(driver.launches) == 1
    driver.statuses = [801]
    with pytest.raises(RuntimeError, match=r"'quick' was not launched: CUDA_ERROR_801"):
        launcher.overlapping((1,), (32,), arguments, 0)
    with pytest.raises(ValueError, match="no blocks"):
        launcher.overlapping((0,), (32,), arguments, 0)


@pytest.mark.parametrize(
    ("arch", "card", "loaded"),
    [
        ("sm_75", (9, 0), b"ptx"),
        ("sm_89", (9, 0), b"ptx"),
        ("sm_90", (12, 0), b"ptx"),
        ("sm_80", (8, 6), b"cubin"),
        ("sm_90a", (9, 0), b"cubin"),
        ("sm_90a", (12, 0), b"cubin"),
        ("sm_100", (9, 0), b"cubin"),
    ],
)
def test_a_later_card_compiles_the_ptx(arch, card, loaded, monkeypatch):
    from cupy.cuda import driver

    monkeypatch.setattr(gpu, "_ensure_context", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    monkeypatch.setattr(driver, "moduleLoadData", lambda code: code)
    assert gpu.GpuModule(b"cubin", "ptx", arch)._handle(0) == loaded


def test_code_that_no_driver_makes_fit_is_refused(monkeypatch):
    from cupy.cuda import driver

    def refuse(code):
        raise DriverError(209)

    monkeypatch.setattr(gpu, "_ensure_context", lambda: None)
    monkeypatch.setattr(gpu, "card_arch", lambda: "sm_80")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(driver, "CUDADriverError", DriverError)
    monkeypatch.setattr(driver, "moduleLoadData", refuse)
    with pytest.raises(RuntimeError, match="does not take code compiled for sm_90a"):
        gpu.GpuModule(b"cubin", "ptx", "sm_90a")._handle(0)
