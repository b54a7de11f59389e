"""The drop-in modules against what they replace."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune

from styleforge_lib import FusedInstanceNorm2d
from styleforge_lib.ops import instance_norm
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE, chosen_device

DEVICE = "cuda" if chosen_device() == "gpu" else "cpu"
OPTIONS = [
    {},
    {"affine": True, "eps": 0.1},
    {"affine": True, "bias": False},
    {"track_running_stats": True},
    {"affine": True, "track_running_stats": True, "momentum": 0.3, "eps": 1e-3},
    {"track_running_stats": True, "momentum": None},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


@pytest.fixture(autouse=True)
def on_the_kernels_device(monkeypatch):
    """Where there is no GPU, ask for the emulator: a CPU tensor would otherwise go to PyTorch."""
    if DEVICE == "cpu":
        monkeypatch.setenv(DEVICE_VARIABLE, "emulator")


def pair(channels=5, **options):
    """Make a module and its drop-in with the same random parameters."""
    torch.manual_seed(0)
    theirs = nn.InstanceNorm2d(channels, **options).to(DEVICE)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = FusedInstanceNorm2d(channels, **options).to(DEVICE)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def alike(a, b, dtype=torch.float32):
    """Assert that two results agree as far as their dtype tells."""
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


@each_option
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(3, 5, 7, 6), (5, 8, 8)], ids=["batched", "unbatched"])
def test_values_and_running_statistics(options, training, shape, launched):
    ours, theirs = (module.train(training) for module in pair(**options))
    with torch.no_grad():
        for _ in range(2):  # running statistics move with each call
            x = torch.randn(shape, device=DEVICE) * 3 + 2
            got, expected = ours(x), theirs(x)
            assert got.shape == expected.shape
            assert got.dtype is expected.dtype
            alike(got, expected)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert bool(launched) is not options.get("track_running_stats", False)


@each_option
def test_state_dict_arguments_and_words(options):
    ours, theirs = pair(**options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert repr(ours) == repr(theirs).replace("InstanceNorm2d", "FusedInstanceNorm2d")
    assert isinstance(ours, nn.InstanceNorm2d)
    theirs.load_state_dict(copy.deepcopy(ours).state_dict())


def test_factory_arguments():
    module = FusedInstanceNorm2d(3, affine=True, track_running_stats=True, device="meta", dtype=torch.float16)
    assert {value.device.type for value in (*module.parameters(), module.running_mean)} == {"meta"}
    assert module.weight.dtype is torch.float16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_dtypes_and_layouts(dtype, layout, launched):
    ours, theirs = (module.to(dtype) for module in pair(8, affine=True))
    x = torch.randn(2, 8, 9, 5, device=DEVICE).to(dtype).to(memory_format=layout)
    with torch.inference_mode():
        alike(ours(x), theirs(x), dtype)
    assert bool(launched) is (dtype is not torch.float64)


def test_it_trains_as_the_original_does(launched):
    """A few steps of a small network: the losses and the parameters go the same way."""
    losses, parameters = [], []
    for kind in (FusedInstanceNorm2d, nn.InstanceNorm2d):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 6, 3), kind(6, affine=True), nn.ReLU(), nn.Conv2d(6, 3, 3), kind(3, affine=True)
        net = nn.Sequential(*layers).to(DEVICE)
        x, target = torch.randn(2, 2, 3, 12, 10, device=DEVICE).unbind(0)
        optimizer, mine = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), []
        for _ in range(6):
            loss = (net(x) - target[..., 2:-2, 2:-2]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mine.append(loss.item())
        losses.append(mine)
        parameters.append(list(net.parameters()))
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for a, b in zip(*parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert sum("backward_apply" in name for name in launched) == 12


@pytest.mark.parametrize("size", [(2, 3), (1, 2, 3, 4, 5), (2, 4, 5, 6), (1, 5, 1, 1)], ids=str)
def test_the_same_errors(size):
    ours, theirs = pair(affine=True)
    words = []
    for module in (ours, theirs):
        with pytest.raises(ValueError) as error, torch.no_grad():
            module(torch.randn(size, device=DEVICE))
        words.append(str(error.value))
    assert words[0] == words[1]


def test_the_same_warning_for_another_number_of_channels():
    ours, theirs = pair()
    x = torch.randn(2, 3, 4, 5, device=DEVICE)
    with torch.no_grad(), pytest.warns(UserWarning, match="does not match num_features"):
        got = ours(x)
    with torch.no_grad(), pytest.warns(UserWarning, match="does not match num_features"):
        alike(got, theirs(x))


def test_a_mixture_of_dtypes_is_pytorchs_business(launched):
    ours, theirs = pair(affine=True)
    x = torch.randn(2, 5, 4, 6, device=DEVICE, dtype=torch.bfloat16)
    answers = []
    for module in (ours, theirs):
        with torch.no_grad():
            try:
                answers.append(module(x))
            except RuntimeError as error:
                answers.append(str(error))
    assert type(answers[0]) is type(answers[1])
    assert answers[0] == answers[1] if isinstance(answers[0], str) else torch.equal(*answers)
    assert not launched


def test_statistics_that_were_put_in_by_hand_are_used():
    ours, theirs = pair()
    for module in (ours, theirs):
        module.track_running_stats = True
        module.running_mean, module.running_var = torch.zeros(2, 5, device=DEVICE) + 2
        module.eval()
    x = torch.randn(2, 5, 4, 4, device=DEVICE)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_torch_compile_sees_the_whole_graph(launched):
    ours, theirs = pair(affine=True)
    x = torch.randn(2, 5, 4, 6, device=DEVICE)
    with torch.no_grad():
        alike(torch.compile(ours, backend="eager", fullgraph=True)(x), theirs(x))
    assert not launched


def alike_gradients(x, own, dtype):
    """Assert that the gradients of all tensors agree with PyTorch's."""
    found = []
    for function in (instance_norm, functional.instance_norm):
        leaves = [
            value.detach().clone().requires_grad_()
            for value in (x, own.get("weight"), own.get("bias"))
            if value is not None
        ]
        names = [name for name in ("weight", "bias") if own.get(name) is not None]
        out = function(leaves[0], **{**own, **dict(zip(names, leaves[1:], strict=True))})
        out.backward(torch.linspace(-1, 1, out.numel(), device=DEVICE).to(dtype).view(out.shape))
        found.append([leaf.grad for leaf in leaves])
    for a, b in zip(*found, strict=True):
        alike(a, b, dtype)


def opinfo_samples(dtype):
    """Return torch's own samples of instance norm."""
    pytest.importorskip("expecttest", reason="torch.testing's OpInfo needs the package expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (info for info in op_db if info.name == "nn.functional.instance_norm")
    return list(info.sample_inputs(DEVICE, dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_torchs_own_samples(dtype, launched):
    """Each sample through the module, in training and in eval, and through the function."""
    samples = opinfo_samples(dtype)
    assert len(samples) > 5
    tried = 0
    for sample, training in itertools.product(samples, (True, False)):
        given = dict(sample.kwargs)
        weight, bias = given.get("weight"), given.get("bias")
        own = {key: value for key, value in given.items() if key in ("weight", "bias", "eps")}
        with torch.no_grad():
            alike(instance_norm(sample.input, **own), functional.instance_norm(sample.input, **own), dtype)
        if training:
            alike_gradients(sample.input, own, dtype)
        if sample.input.dim() != 4:
            continue
        for tracked in (False, True):
            module = FusedInstanceNorm2d(
                sample.input.shape[1],
                eps=given.get("eps", 1e-5),
                momentum=given.get("momentum", 0.1),
                affine=weight is not None,
                bias=bias is not None,
                track_running_stats=tracked,
                device=DEVICE,
                dtype=dtype,
            ).train(training)
            statistics = {}
            if tracked:
                statistics = {key: given[key].clone() for key in ("running_mean", "running_var")}
            values = {"weight": weight, "bias": bias, **statistics}
            module.load_state_dict({key: value for key, value in values.items() if value is not None})
            statistics = {key: value.clone() for key, value in statistics.items()}
            with torch.no_grad():
                expected = functional.instance_norm(
                    sample.input,
                    weight=weight,
                    bias=bias,
                    use_input_stats=training or not tracked,
                    momentum=module.momentum,
                    eps=module.eps,
                    **statistics,
                )
                alike(module(sample.input), expected, dtype)
            for key, value in statistics.items():
                torch.testing.assert_close(getattr(module, key), value, rtol=0, atol=0, equal_nan=True)
            tried += 1
    assert tried >= 12
    assert bool(launched) is (dtype is not torch.float64)


@pytest.mark.parametrize("how", ["pruned", "parametrized"])
def test_a_weight_that_is_no_parameter_any_more(how):
    """What torch.nn.utils puts in the place of a parameter is what counts."""
    ours, theirs = pair(affine=True)
    for module in (ours, theirs):
        if how == "pruned":
            prune.l1_unstructured(module, "weight", amount=2)
        else:
            parametrize.register_parametrization(module, "weight", nn.Softplus())
    x = torch.randn(2, 5, 6, 7, device=DEVICE)
    with torch.no_grad():
        alike(ours(x), theirs(x))
