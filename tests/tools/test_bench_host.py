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
    assert {"instance_norm_float32", "instance_norm_nhwc_apply_float32", "relu_float32", "residual_add_float32"} <= set(
        launched
    )


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(bench_host.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_host.py"])
    assert bench_host.main() == 2
    assert "--dry-run" in capsys.readouterr().err
