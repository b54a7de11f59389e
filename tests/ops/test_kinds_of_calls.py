"""The memory of kinds of calls: what makes two calls alike, what is never remembered, and what is forgotten."""

import importlib

import pytest
import torch

from styleforge_lib import ops
from styleforge_lib.ops.calls import Known, kind_of
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE, chosen_device

DEVICE = "cuda" if chosen_device() == "gpu" else "cpu"


@pytest.fixture(autouse=True)
def on_the_kernels_device(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv(DEVICE_VARIABLE, "emulator")


def tensor(*shape, offset=0, dtype=torch.float32):
    """Return a tensor that begins `offset` elements past an aligned address."""
    count = torch.Size(shape).numel()
    return torch.randn(count + 16, device=DEVICE).to(dtype)[offset : offset + count].view(shape)


def test_calls_of_one_kind():
    assert kind_of((1e-5, True), tensor(2, 3, 4, 5), None) == kind_of((1e-5, True), tensor(2, 3, 4, 5), None)
    with torch.no_grad():
        asked = tensor(2, 3, 4, 5).requires_grad_()
        assert kind_of((), torch.nn.Parameter(tensor(2, 3, 4, 5))) == kind_of((), asked) is not None


@pytest.mark.parametrize(
    "other",
    [
        lambda x, w: kind_of((1e-5, False), x, w),
        lambda x, w: kind_of((1e-3, True), x, w),
        lambda x, w: kind_of((1e-5, True), x, None),
        lambda x, w: kind_of((1e-5, True), x, w[:2]),
        lambda x, w: kind_of((1e-5, True), x.view(2, 3, 5, 4), w),
        lambda x, w: kind_of((1e-5, True), x.half(), w),
        lambda x, w: kind_of((1e-5, True), x, w.half()),
        lambda x, w: kind_of((1e-5, True), x.to(memory_format=torch.channels_last), w),
        lambda x, w: kind_of((1e-5, True), x, tensor(6)[::2]),
        lambda x, w: kind_of((1e-5, True), x, w.to("meta")),
        lambda x, w: kind_of((1e-5, True), tensor(2, 3, 4, 5, offset=1), w),
    ],
)
def test_each_of_these_makes_another_kind(other):
    x, weight = tensor(2, 3, 4, 5), tensor(3)
    assert kind_of((1e-5, True), x, weight) != other(x, weight)


class Tagged(torch.Tensor):
    """A subclass, whose ways nobody knows."""


def test_what_must_be_looked_at_has_no_kind(monkeypatch):
    x, wanted = tensor(2, 3), tensor(3).requires_grad_()
    assert kind_of((), x, wanted) is None
    assert kind_of((), x, tensor(3).as_subclass(Tagged)) is None
    assert kind_of((), [1.0]) is None
    assert kind_of((), x, 1.0) is None
    assert kind_of((), x, tensor(3).to_sparse()) is None
    with torch.autocast(DEVICE):
        assert kind_of((), x) is None
    with torch.autograd.forward_ad.dual_level():
        assert kind_of((), x) is None
    if DEVICE == "cpu":
        monkeypatch.delenv(DEVICE_VARIABLE)
        assert kind_of((), x) is None


def test_what_is_not_met_for_long_is_forgotten():
    known, made = Known(most=4), []
    for kind in ("a", "b", "a", "c", "a", "d", "a", "e", "b"):
        if known.get(kind) is None:
            made.append(kind)
            known.keep(kind, print)
    assert made == ["a", "b", "c", "d", "e", "b"]
    for kind in range(100):
        known.keep(kind, print)
        assert len(known._young) + len(known._old) <= 4
    assert known.get(None) is None
    assert known.keep(None, print) is print
    assert known.get(None) is None
    assert known.get(([],)) is None


# ----------------------------------------------------------------------------------------------------------------------
# The operators that remember


@pytest.fixture
def looked_at(monkeypatch):
    """Count the calls of an operator that are looked at, not remembered; nothing is remembered from before."""
    counted = []
    for name in ("instance_norm", "relu", "residual_add"):
        module = importlib.import_module(f"styleforge_lib.ops.{name}")
        check = module.check_tensors
        monkeypatch.setattr(module, "_KNOWN", Known())
        monkeypatch.setattr(
            module,
            "check_tensors",
            lambda *args, check=check, **more: (counted.append(args[0]), check(*args, **more)),
        )
    return counted


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_second_norm_of_a_kind_is_remembered(layout, looked_at, launched):
    for seed in range(3):
        torch.manual_seed(seed)
        x, residual = (tensor(2, 8, 9, 7).to(memory_format=layout) for _ in range(2))
        weight, bias = tensor(8), tensor(8)
        out = ops.instance_norm(x, weight, bias, 1e-3, True, residual)
        expected = (torch.nn.functional.instance_norm(x, weight=weight, bias=bias, eps=1e-3) + residual).relu()
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
        assert out.is_contiguous(memory_format=layout)
    assert looked_at == ["instance_norm"]
    assert len(launched) == 3 if layout is torch.contiguous_format else 6


def test_a_remembered_norm_is_refused_and_differentiated_as_before(looked_at):
    x, weight = tensor(2, 8, 9, 7), tensor(8)
    ops.instance_norm(x, weight)
    with pytest.raises(ValueError, match=r"weight has shape \(7,\), and x has 8 channels"):
        ops.instance_norm(x, weight[:7])
    with pytest.raises(TypeError, match="weight must be a torch tensor"):
        ops.instance_norm(x, [1.0] * 8)
    out = ops.instance_norm(x, weight.requires_grad_())
    assert out.requires_grad
    with torch.no_grad():
        assert not ops.instance_norm(x, weight).requires_grad
    assert len(looked_at) == 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_second_relu_and_sum_of_a_kind_are_remembered(layout, looked_at, launched):
    for seed in range(3):
        torch.manual_seed(seed)
        a, b = (tensor(2, 8, 9, 7).to(memory_format=layout) for _ in range(2))
        assert torch.equal(ops.relu(a), a.relu())
        assert torch.equal(ops.residual_add(a, b), a + b)
    assert looked_at == ["relu", "residual_add"]
    assert len(launched) == 6
    with pytest.raises(ValueError, match="out shares memory with x"):
        ops.relu(a, out=a)
    assert ops.relu(a.requires_grad_()).requires_grad


def test_an_option_that_is_no_number(looked_at):
    with pytest.raises(TypeError, match="eps"):
        ops.instance_norm(tensor(2, 8, 9, 7), eps=[1e-5])
