"""The bench of instance norm: its dry run goes through every candidate, and its table tells the right ratios."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import bench_instance_norm
import torch

from styleforge_lib.lab.bench import time_graph
from styleforge_lib.lab.records import Measurement
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE


def test_the_dry_run(monkeypatch, capsys):
    monkeypatch.setenv(DEVICE_VARIABLE, "emulator")
    rows = bench_instance_norm.norms("a run", compiled=False, dry=True)
    assert {row.version for row in rows} == {"copy", "eager", "ours"}
    assert len(rows) == len(bench_instance_norm.TINY) * 4 * 2 * 3 * 2
    assert {row.operator for row in rows} == set(bench_instance_norm.OPERATORS.values())
    assert all(row.rel_error < 1e-3 for row in rows if row.version == "ours")
    assert len(capsys.readouterr().out.splitlines()) == 2 * 2 + len(rows) // 3


def test_an_unknown_operator(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_instance_norm.py", "--dry-run", "--operators", "batch_norm"])
    with pytest.raises(SystemExit):
        bench_instance_norm.main()
    assert "batch_norm" in capsys.readouterr().err


def test_a_line():
    times = {"copy": 0.5, "eager": 8.0, "compile": 2.0, "ours": 1.0}
    rows = [
        Measurement(operator="o", version=name, shape="1x2", dtype="float32", median_ms=ms, p20_ms=ms, p80_ms=ms)
        for name, ms in times.items()
    ]
    rows[-1] = Measurement(**{**vars(rows[-1]), "rel_error": 1e-7})
    assert bench_instance_norm.line(rows).split()[-4:] == ["1.0e-07", "8.00", "2.00", "2.00"]


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(bench_instance_norm.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_instance_norm.py"])
    assert bench_instance_norm.main() == 2
    assert "--dry-run" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_graph_clock():
    x = torch.randn(1 << 20, device="cuda")
    median, low, high = time_graph(x.neg)
    assert 0 < low <= median <= high < 1
