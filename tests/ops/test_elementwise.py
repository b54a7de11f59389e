"""ReLU and residual add: the final kernels against the checker, and the functions against PyTorch's."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from styleforge_lib import ops
from styleforge_lib.lab import check
from styleforge_lib.ops import elementwise
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE, chosen_device, compile_cuda

DEVICE = "cuda" if chosen_device() == "gpu" else "cpu"
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a")
ELEMENTWISE = tuple(ops.find_operator(name) for name in ("relu", "residual_add"))
both = pytest.mark.parametrize("operator", ELEMENTWISE, ids=lambda operator: operator.name)
each_dtype = pytest.mark.parametrize("dtype", ops.operator.FAST_DTYPES, ids=str)


@pytest.fixture
def on_the_kernels_device(monkeypatch):
    """Where there is no GPU, ask for the emulator: a CPU tensor would otherwise go to PyTorch."""
    if DEVICE == "cpu":
        monkeypatch.setenv(DEVICE_VARIABLE, "emulator")


def function(operator):
    return getattr(ops, operator.name)


def inputs_of(operator, shape=(2, 3, 5, 7), dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_(options.get("requires_grad", False))
        for _ in operator.inputs
    ]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two results are equal, NaN beside NaN."""
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0))


# ----------------------------------------------------------------------------------------------------------------------
# The kernels


@each_dtype
@both
def test_the_kernel_is_right_to_the_last_bit(operator, dtype, capsys):
    assert check(operator, operator.launch, dtype=dtype)
    assert "to the last bit" in capsys.readouterr().out


@each_dtype
@both
def test_one_block_takes_what_a_grid_leaves(operator, dtype, monkeypatch, on_the_kernels_device):
    monkeypatch.setattr(elementwise, "MAX_BLOCKS", 1)
    inputs = inputs_of(operator, (50021,), dtype)
    assert same(function(operator)(*inputs), operator.pytorch(*inputs))


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 3000),
    offsets=st.tuples(*[st.integers(0, 9)] * 3),
    half=st.booleans(),
    which=st.sampled_from(ELEMENTWISE),
    seed=st.integers(0, 2**31),
)
def test_any_size_at_any_alignment(size, offsets, half, which, seed):
    generator, dtype = torch.Generator().manual_seed(seed), torch.float16 if half else torch.float32
    values = [torch.randn(size, generator=generator).to(dtype) for _ in which.inputs]
    tensors = [torch.full((size + 16,), torch.nan, dtype=dtype, device=DEVICE) for _ in (*which.inputs, "out")]
    views = [tensor[offset : offset + size] for tensor, offset in zip(tensors, offsets, strict=False)]
    for view, value in zip(views, values, strict=False):
        view.copy_(value)
    which.launch(*views)
    assert same(views[-1].cpu(), which.pytorch(*values))
    assert tensors[-1].isnan().sum() == 16


@pytest.mark.parametrize("arch", ARCHITECTURES)
@both
def test_it_compiles_for_each_card_without_flushing_denormals_or_spilling(operator, arch):
    module = compile_cuda(f"{operator.name}.cu", arch=arch)
    assert module.kernels == (f"{operator.name}_float32", f"{operator.name}_float16")
    assert not module.warnings
    assert ".ftz" not in module.ptx
    for kernel in module.kernels:
        assert module.kernel(kernel).resources.local == 0
    assert "ld.global.nc.v4" in module.ptx, "float4 loads"


@each_dtype
@pytest.mark.parametrize("arch", ARCHITECTURES)
@both
def test_every_cards_code_runs_in_the_emulator(operator, arch, dtype):
    module = compile_cuda(f"{operator.name}.cu", arch=arch)
    inputs = [value.cpu() for value in inputs_of(operator, (1003,), dtype)]
    out = torch.full((1003,), torch.nan, dtype=dtype)
    kernel = module.kernel(f"{operator.name}_{str(dtype).removeprefix('torch.')}")
    kernel.emulate(1, 64, (*inputs, out, 1003))
    assert same(out, operator.pytorch(*inputs))


@both
def test_the_cost_is_each_tensor_once(operator):
    inputs = inputs_of(operator, (10, 10), torch.float16)
    assert operator.cost(*inputs) == ops.Cost(bytes=(len(inputs) + 1) * 200, flops=100)


# ----------------------------------------------------------------------------------------------------------------------
# The functions: the kernel where it applies, else PyTorch


@each_dtype
@both
def test_the_kernel_runs_on_its_device(operator, dtype, on_the_kernels_device, launched):
    inputs = inputs_of(operator, dtype=dtype)
    before = [value.clone() for value in inputs]
    result = function(operator)(*inputs)
    assert launched == [f"{operator.name}_{str(dtype).removeprefix('torch.')}"]
    assert same(result, operator.pytorch(*inputs))
    assert all(same(value, old) for value, old in zip(inputs, before, strict=True))


@both
def test_channels_last_stays_channels_last(operator, on_the_kernels_device, launched):
    inputs = [value.to(memory_format=torch.channels_last) for value in inputs_of(operator)]
    result = function(operator)(*inputs)
    assert launched
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert same(result, operator.pytorch(*inputs))


@both
def test_out_is_written_and_returned(operator, on_the_kernels_device, launched):
    inputs = inputs_of(operator)
    out = torch.full_like(inputs[0], torch.nan)
    assert function(operator)(*inputs, out=out) is out
    assert launched
    assert same(out, operator.pytorch(*inputs))


@both
def test_a_cpu_tensor_goes_to_pytorch(operator, monkeypatch, launched):
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    inputs = [value.cpu() for value in inputs_of(operator)]
    out = torch.empty_like(inputs[0])
    assert same(function(operator)(*inputs), operator.pytorch(*inputs))
    assert function(operator)(*inputs, out=out) is out
    assert same(out, operator.pytorch(*inputs))
    assert not launched


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda x: x.double(), id="float64"),
        pytest.param(lambda x: x.bfloat16(), id="bfloat16"),
        pytest.param(lambda x: (x * 10).int(), id="int32"),
        pytest.param(lambda x: x[..., ::2], id="strided"),
        pytest.param(lambda x: x.transpose(0, 1), id="transposed"),
        pytest.param(lambda x: x[:0], id="empty"),
        pytest.param(lambda x: x.clone().requires_grad_(), id="gradients"),
    ],
)
@both
def test_what_the_kernel_does_not_take_goes_to_pytorch(operator, prepare, on_the_kernels_device, launched):
    inputs = [prepare(value) for value in inputs_of(operator)]
    result = function(operator)(*inputs)
    assert not launched
    assert same(result, operator.pytorch(*inputs))
    if inputs[0].requires_grad:
        result.sum().backward()
        assert inputs[0].grad is not None


@both
def test_an_output_of_another_layout_goes_to_pytorch(operator, on_the_kernels_device, launched):
    inputs = inputs_of(operator)
    out = torch.empty_like(inputs[0], memory_format=torch.channels_last)
    assert function(operator)(*inputs, out=out) is out
    assert not launched
    assert same(out, operator.pytorch(*inputs))


@both
def test_without_gradients_a_parameter_is_taken_by_the_kernel(operator, on_the_kernels_device, launched):
    inputs = inputs_of(operator, requires_grad=True)
    with torch.no_grad():
        assert same(function(operator)(*inputs), operator.pytorch(*inputs))
    assert launched


# ----------------------------------------------------------------------------------------------------------------------
# Refusals


@both
def test_out_must_belong_to_the_inputs(operator, on_the_kernels_device):
    inputs, run, name = inputs_of(operator), function(operator), operator.name
    x = inputs[0]
    with pytest.raises(ValueError, match=rf"{name}: out has shape \(2, 3, 5\), and . has \(2, 3, 5, 7\)"):
        run(*inputs, out=x.new_empty(2, 3, 5))
    with pytest.raises(ValueError, match=rf"{name}: out has dtype torch.float16, and . has torch.float32"):
        run(*inputs, out=x.half())
    with pytest.raises(ValueError, match=rf"{name}: out has device meta"):
        run(*inputs, out=torch.empty_like(x, device="meta"))
    with pytest.raises(TypeError, match=rf"{name}: out must be a torch tensor, not list"):
        run(*inputs, out=[1.0])
    with pytest.raises(TypeError, match=rf"{name}: . must be a torch tensor, not float"):
        run(*[1.0] * len(inputs))
    with pytest.raises(ValueError, match=rf"{name}: out= takes no part in automatic differentiation"):
        run(*inputs_of(operator, requires_grad=True), out=torch.empty_like(x))


@both
def test_out_must_not_be_an_input(operator, on_the_kernels_device):
    memory = torch.randn(2, 40, device=DEVICE)
    inputs = [memory[0, :32], torch.randn(32, device=DEVICE)][: len(operator.inputs)]
    for out in (memory[0, :32], memory[0, 8:]):
        with pytest.raises(ValueError, match=rf"{operator.name}: out shares memory with {operator.inputs[0]}"):
            function(operator)(*inputs, out=out)
    function(operator)(*inputs, out=memory[1, :32])
    result = memory[1, :32].clone()
    assert same(result, operator.pytorch(*inputs))


def test_tensors_of_a_sum_must_agree():
    a = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"residual_add: b has shape \(3,\), and a has \(2, 3\); they must be equal"):
        ops.residual_add(a, torch.zeros(3))
    with pytest.raises(ValueError, match=r"residual_add: b has dtype torch.float16"):
        ops.residual_add(a, a.half())


def test_both_terms_may_be_the_same_tensor(on_the_kernels_device):
    a = torch.randn(100, device=DEVICE)
    assert same(ops.residual_add(a, a), 2 * a)


def test_a_name_finds_its_operator():
    assert [operator.name for operator in ops.operators()] == ["relu", "residual_add", "instance_norm"]
    assert ops.find_operator("relu").launch is importlib.import_module("styleforge_lib.ops.relu").launch
