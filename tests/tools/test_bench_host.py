"""The bench of what calls cost the host: its dry run makes every call, ours and PyTorch's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import bench_host

from styleforge_lib.runtime.kernel import DEVICE_VARIABLE


def test_the_dry_run(monkeypatch, capsys, launched):
    monkeypatch.setenv(DEVICE_VARIABLE, "emulator")
    monkeypatch.setattr(bench_host, "accelerate", lambda net: net)  # whose own tests emulate it
    rows = bench_host.host("a run", dry=True)
    assert len(capsys.readouterr().out.splitlines()) == len(rows) == 11
    assert {(row.operator, row.method) for row in rows} == {("call", "host")}
    words = ("instance_norm_held", "instance_norm_nhwc", "relu_float32", "residual_add_float32")
    assert all(any(name.startswith(word) for name in launched) for word in words), launched


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(bench_host.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_host.py"])
    assert bench_host.main() == 2
    assert "--dry-run" in capsys.readouterr().err
