"""The check of instance norm for a card: it passes what is right, and sees what is wrong."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import check_instance_norm
import tune_instance_norm

from styleforge_lib.runtime.kernel import DEVICE_VARIABLE


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv(DEVICE_VARIABLE, "emulator")


def test_right_kernels_pass():
    assert check_instance_norm.compare((2, 3, 5, 7), torch.float32, torch.contiguous_format, "cpu") == []


def test_a_wrong_result_is_named(monkeypatch):
    right = check_instance_norm.ours
    monkeypatch.setattr(check_instance_norm, "ours", lambda *args: right(*args) * 1.001)
    wrong = check_instance_norm.compare((2, 3, 5, 7), torch.float32, torch.contiguous_format, "cpu")
    assert any(words.startswith("out is off by") for words in wrong)
    assert any(words.startswith("dx is off by") for words in wrong)


def test_the_tuner_restores_the_rule():
    before = tune_instance_norm.norm.PIECE_BYTES
    with tune_instance_norm.constants({"PIECE_BYTES": 512}):
        assert tune_instance_norm.norm.PIECE_BYTES == 512
    assert before == tune_instance_norm.norm.PIECE_BYTES


@pytest.mark.parametrize("tool", [check_instance_norm, tune_instance_norm])
def test_without_a_gpu(tool, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["tool"])
    assert tool.main() == 2
    assert "--dry-run" in capsys.readouterr().err
