"""The check of instance norm for a card: it passes what is right, and sees what is wrong."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import check_instance_norm
import tune_instance_norm

from styleforge_lib.ops import instance_norm_hopper
from styleforge_lib.ops.elementwise import C_TYPES
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

norm = importlib.import_module("styleforge_lib.ops.instance_norm")
CUDA = Path(norm.__file__).resolve().parents[2] / "cuda"


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


def test_what_the_sanitizer_watches_is_every_kernel(monkeypatch):
    """By the rules of a Hopper card: each kernel in each dtype, pieces of planes told by both, and clusters."""
    launched, told, clusters = set(), set(), set()

    class Module:
        def __init__(self, operator, device, arch=None, **defines):
            self.operator, self.defines = operator, defines
            clusters.add(defines.get("CLUSTER"))

        def kernel(self, name):
            launched.add((name, self.defines["TYPE"]))

            def launch(grid, block, args, **options):
                if "held" in name and args[6] is not None:  # slots for the exchange
                    told.add((name, self.defines["TYPE"]))

            return launch

        @property
        def only(self):
            return self.kernel(self.operator)

    for module in (norm, instance_norm_hopper):
        monkeypatch.setattr(module, "compiled", Module)
    monkeypatch.setattr(instance_norm_hopper, "available", lambda device: True)
    monkeypatch.setattr(norm, "multiprocessors", lambda device: check_instance_norm.PROCESSORS)
    for shape in check_instance_norm.SANITIZED:
        for dtype in norm.DTYPES:
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.empty(shape, dtype=dtype).to(memory_format=layout)
                norm.launch_fused(x, None, None, x, True, norm.EPS, torch.empty_like(x))
    texts = [(CUDA / f"instance_norm{part}.cu").read_text("utf-8") for part in ("", "_nhwc", "_hopper")]
    names = [name for text in texts for name in re.findall(r"^    (instance_norm_\w+)\(const TYPE", text, re.M)]
    assert len(names) == 6
    assert launched == {(name, c_type) for name in names for c_type in C_TYPES.values()}
    assert told == {(name, c_type) for name, c_type in launched if "held" in name}
    assert len(clusters - {None, 1}) > 1


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
