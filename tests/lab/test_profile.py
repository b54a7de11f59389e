"""The profile: each stage is found in what torch really called, and sums lose nothing."""

import importlib
import os

import pytest
import torch

from styleforge_lib.lab import records
from styleforge_lib.lab.profile import StageTime, as_records, by_kind, by_layer, merge_residual, profile, recorded
from styleforge_lib.models.stages import stages
from styleforge_lib.models.transformer_net import TransformerNet

MODULE = importlib.import_module("styleforge_lib.lab.profile")  # lab.profile is the function
RAGGED = (1, 3, 37, 50)
LAYERS = ["conv1", "conv2", "conv3", *(f"res{i}.conv{j}" for i in range(1, 6) for j in (1, 2)), "deconv1", "deconv2"]


@pytest.fixture(scope="module")
def net():
    return TransformerNet()


@pytest.fixture(scope="module")
def times(net):
    return profile(net, torch.rand(RAGGED), repeats=4)


def test_one_time_for_each_stage_in_order(times, net):
    plan = stages(net, RAGGED)
    assert [(t.layer, t.kind, t.flops, t.bytes) for t in times] == [
        (stage.layer, stage.kind, stage.flops, 4 * stage.elements) for stage in plan
    ]


def test_quantiles_lie_within_what_was_measured(times):
    assert all(0 < t.p20_ms <= t.ms <= t.p80_ms for t in times)


def test_one_repeat_and_half_the_bytes(net):
    (first, *_) = profile(net.half(), torch.rand(1, 3, 8, 8).half(), repeats=1)
    net.float()
    assert first.ms == first.p20_ms == first.p80_ms
    assert first.bytes == 2 * (3 * 8 * 8 + 3 * 16 * 16)


def test_the_order_is_that_of_torchs_own_calls(net, monkeypatch):
    """A plan that is not what the network runs is refused: no time is ever given to another stage."""
    plan = stages(net, RAGGED)
    plan[2], plan[3] = plan[3], plan[2]
    monkeypatch.setattr(MODULE, "stages", lambda *_: plan)
    with pytest.raises(RuntimeError, match="torch ran other operators than stages"):
        profile(net, torch.rand(RAGGED), repeats=1)


def test_another_network_is_refused(net):
    class Longer(TransformerNet):
        def forward(self, x):
            return torch.relu(super().forward(x))

    with pytest.raises(RuntimeError, match="other operators"):
        profile(Longer(), torch.rand(1, 3, 8, 8), repeats=2)


def test_sums(times):
    total = pytest.approx(sum(t.ms for t in times))
    assert sum(by_kind(times).values()) == total
    assert sum(by_layer(times).values()) == total
    assert sum(t.ms for t in merge_residual(times)) == total
    kinds = by_kind(times)
    assert list(kinds.values()) == sorted(kinds.values(), reverse=True)
    assert set(kinds) == set(MODULE.KINDS)
    assert list(by_layer(times)) == [*LAYERS, "deconv3"]


def test_merging_the_residual_blocks(times):
    merged = merge_residual(times)
    assert list(by_layer(merged)) == ["conv1", "conv2", "conv3", "residual x10", "deconv1", "deconv2", "deconv3"]
    conv = next(t for t in merged if (t.layer, t.kind) == ("residual x10", "conv"))
    ten = [t for t in times if t.layer.startswith("res") and t.kind == "conv"]
    assert len(ten) == 10
    assert (conv.ms, conv.flops, conv.bytes) == (
        pytest.approx(sum(t.ms for t in ten)),
        sum(t.flops for t in ten),
        sum(t.bytes for t in ten),
    )


def test_through_the_record_and_back(times, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "machine", lambda: {"gpu": "GPU A"})
    monkeypatch.setattr(records, "committed_path", lambda: tmp_path / "measurements.csv")
    monkeypatch.setenv("STYLEFORGE_RECORDS", str(tmp_path / "local.csv"))
    records.append(as_records(times, shape="1x3x37x50", dtype="tf32", layout="nchw", run="2026-11-01T00:00:00Z"))
    again, where = recorded(shape="1x3x37x50", dtype="tf32")
    assert where == "GPU A, 2026-11-01"
    assert [(t.layer, t.kind, t.flops, t.bytes) for t in again] == [(t.layer, t.kind, t.flops, t.bytes) for t in times]
    assert [t.ms for t in again] == pytest.approx([t.ms for t in times], rel=1e-4)
    with pytest.raises(LookupError, match="no recorded profile of 1x3x37x50 in float16 nhwc: `make bench`"):
        recorded(shape="1x3x37x50", dtype="float16", layout="nhwc")


@pytest.mark.parametrize(("dtype", "layout"), [("tf32", "nchw"), ("float16", "nhwc")])
def test_the_committed_profile_is_of_this_network(net, dtype, layout, monkeypatch):
    monkeypatch.setenv("STYLEFORGE_RECORDS", os.devnull + "-none")
    times, where = recorded(shape="1x3x1024x1024", dtype=dtype, layout=layout)
    plan = stages(net, (1, 3, 1024, 1024))
    assert [(t.layer, t.kind, t.flops) for t in times] == [(s.layer, s.kind, s.flops) for s in plan]
    assert where.startswith("NVIDIA ")
    assert isinstance(times[0], StageTime)
