"""The list of stages: it is the network, stage by stage, and its costs are those that torch and a pencil count."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from styleforge_lib.models.stages import stages
from styleforge_lib.models.transformer_net import TransformerNet

RAGGED = (2, 3, 37, 50)  # neither side a multiple of 4


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return TransformerNet()


def run_all(plan, x):
    """Run the stages one after the other; "add" adds what its block was given, which one stage alone cannot know."""
    outs = []
    for stage in plan:
        assert tuple(x.shape) == stage.in_shape, stage.name
        if stage.kind == "pad" and stage.layer.endswith("conv1") and stage.layer.startswith("res"):
            kept = x
        x = x + kept if stage.kind == "add" else stage.run(x)
        assert tuple(x.shape) == stage.out_shape, stage.name
        outs.append(x)
    return outs


@pytest.mark.parametrize("shape", [RAGGED, (1, 3, 5, 5), (1, 3, 64, 48)])
@torch.inference_mode()
def test_the_stages_are_the_network(net, shape):
    x = torch.rand(shape) * 255
    out = run_all(stages(net, shape), x)[-1]
    torch.testing.assert_close(out, net(x), rtol=0, atol=0)


@torch.inference_mode()
def test_every_stage_runs_on_its_own(net):
    """As the bench does, on random tensors: "add" adds its input to itself, which costs the same."""
    for stage in stages(net, RAGGED):
        assert tuple(stage.run(torch.randn(stage.in_shape)).shape) == stage.out_shape, stage.name


@pytest.mark.parametrize("shape", [RAGGED, (1, 3, 256, 256)])
def test_the_flops_of_convolutions_are_those_of_torchs_counter(net, shape):
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        TransformerNet()(torch.empty(shape))
    by_module = counter.get_flop_counts()
    plan = [stage for stage in stages(net, shape) if stage.kind == "conv"]
    for stage in plan:
        (counted,) = by_module[f"TransformerNet.{stage.layer}.conv2d"].values()
        assert stage.flops == counted, stage.name
    assert sum(stage.flops for stage in plan) == counter.get_total_flops()


def test_the_traffic_of_one_stage_of_each_kind(net):
    found = {stage.name: stage for stage in stages(net, (1, 3, 8, 12))}
    picture, full, quarter = 8 * 12, 32 * 8 * 12, 128 * 2 * 3
    padded = 3 * 16 * 20
    by_hand = {
        "conv1.pad": (3 * picture + padded, 0),
        "conv1.conv": (padded + full + 32 * 3 * 81 + 32, full * 2 * 3 * 81),
        "conv1.norm": (2 * full + 2 * 32, full * 8),
        "conv1.relu": (2 * full, full),
        "res1.conv2.add": (3 * quarter, quarter),
        "deconv1.upsample": (quarter + 4 * quarter, 0),
    }
    assert {name: (found[name].elements, found[name].flops) for name in by_hand} == by_hand


def test_a_batch_reads_the_weights_once(net):
    one, two = stages(net, (1, 3, 8, 8)), stages(net, (2, 3, 8, 8))
    for a, b in zip(one, two, strict=True):
        parameters = {"conv": 1, "norm": 1}.get(a.kind, 0)
        own = sum(p.numel() for p in a.run.parameters()) if parameters else 0
        assert b.elements - own == 2 * (a.elements - own), a.name
        assert b.flops == 2 * a.flops


def test_names_and_order(net):
    names = [stage.name for stage in stages(net, (1, 3, 8, 8))]
    assert len(set(names)) == len(names) == 64
    assert names[:5] == ["conv1.pad", "conv1.conv", "conv1.norm", "conv1.relu", "conv2.pad"]
    first = names.index("res1.conv1.pad")
    assert names[first : first + 8] == [
        *(f"res1.conv1.{kind}" for kind in ("pad", "conv", "norm", "relu")),
        *(f"res1.conv2.{kind}" for kind in ("pad", "conv", "norm", "add")),
    ]
    assert names[-2:] == ["deconv3.pad", "deconv3.conv"]
