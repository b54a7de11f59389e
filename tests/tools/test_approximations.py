"""What is promised of approximate instructions: the inputs reach every kind of number, and a broken promise is seen."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from address import ROOT
from approximations import APPROXIMATIONS, DENSE, errors


def exact(name, x, dtype):
    with np.errstate(all="ignore"):
        return torch.from_numpy(APPROXIMATIONS[name].function(x.double().numpy())).to(dtype)


def test_inputs():
    x = APPROXIMATIONS["ex2_float32"].inputs(torch.float32).numpy()
    assert len(x) > 0.9 * DENSE
    assert np.isnan(x).any()
    assert np.isinf(x).any()
    assert ((np.abs(x) < np.finfo(np.float32).tiny) & (x != 0)).sum() > 100
    assert (x > 1e37).sum() > 100
    assert (x < -1e37).sum() > 100
    near = APPROXIMATIONS["sin_float32"].inputs(torch.float32).numpy()
    assert np.abs(near[np.isfinite(near)]).max() == np.float32(2 * np.pi) or np.abs(near[7:]).max() < 2 * np.pi
    halves = APPROXIMATIONS["tanh_float16"].inputs(torch.float16)
    assert sorted(halves.view(torch.int16).tolist()) == list(range(-32768, 32768))


@pytest.mark.parametrize("name", [name for name in APPROXIMATIONS if "float64" not in name and "ftz" not in name])
def test_the_rounded_value_keeps_the_promise_and_a_worse_one_does_not(name):
    dtype = torch.float16 if "_float16" in name else torch.bfloat16 if "bfloat16" in name else torch.float32
    promise = APPROXIMATIONS[name]
    x = promise.inputs(dtype)
    got = exact(name, x, dtype)
    if promise.flush:
        got = torch.where(got.abs() < torch.finfo(dtype).tiny, torch.zeros_like(got), got)
    assert errors(promise, x, got).max() <= 1
    judged = ((x.double() >= promise.low) & (x.double() <= promise.high) & (x.abs() >= promise.least)).numpy()
    plain = np.flatnonzero((got.isfinite() & (got.abs() > 1e-3) & (got.abs() < 1e3)).numpy() & judged)
    worse, at = got.clone(), int(plain[len(plain) // 2])
    unit = {"absolute": 1.0, "ulp": torch.finfo(dtype).eps * 2}.get(promise.kind, 1.0)
    worse[at] = got[at] + 3 * promise.promised * unit * max(1.0, abs(float(got[at])))
    wrong = errors(promise, x, worse)
    assert wrong[at] > 1
    assert (np.delete(wrong, at) <= 1).all()
    for spoiled in (float("nan"), float("inf"), -float("inf")):
        worse[at] = spoiled
        assert errors(promise, x, worse)[at] == np.inf


def test_special_values_are_judged():
    promise = APPROXIMATIONS["rcp_float32"]
    x = torch.tensor([0.0, -0.0, float("inf"), float("nan")])
    assert errors(promise, x, 1 / x).tolist() == [0, 0, 0, 0]
    assert errors(promise, x, torch.tensor([1.0, -1.0, 1.0, 1.0])).min() == np.inf


def test_every_probe_has_a_promise():
    text = (ROOT / "tools" / "approximate_probes.cu").read_text("utf-8")
    assert [name for name in APPROXIMATIONS if f" {name}(" not in text] == []
    assert text.count("__global__") == len(APPROXIMATIONS)
    for promise in APPROXIMATIONS.values():
        assert f'"{promise.instruction}' in text
