"""The emulator's benchmark: its kernels compute what they claim, and its rows are complete."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from styleforge_lib.runtime.emulator import Program

TOOL = Path(__file__).parents[2] / "tools" / "bench_emulator.py"


@pytest.fixture(scope="module")
def bench():
    pytest.importorskip("cupy")
    specification = importlib.util.spec_from_file_location("bench_emulator", TOOL)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(bench, source, grid, block, *arguments):
    program = Program(bench.compile_to_ptx(source, arch="sm_80"))
    program.launch(program.kernels[0], grid, block, arguments)


def test_instance_norm(bench):
    x = np.random.default_rng(0).standard_normal((5, 20, 20)).astype(np.float32) * 3 + 7
    y = np.full_like(x, np.nan)
    run(bench, bench.INSTANCE_NORM, (5,), (96,), x, y, np.int32(400), np.float32(1e-5))
    wide = x.astype(np.float64)
    wanted = (wide - wide.mean((1, 2), keepdims=True)) / np.sqrt(wide.var((1, 2), keepdims=True) + 1e-5)
    assert np.abs(y - wanted).max() < 2e-6


def test_convolution(bench):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((3, 32, 48)).astype(np.float32), rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    y = np.full((8, 32, 48), np.nan, np.float32)
    run(bench, bench.CONVOLUTION, (3, 2, 1), (16, 16), x, w, y, np.int32(3), np.int32(32), np.int32(48))
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    assert np.abs(y - np.einsum("ocij,chwij->ohw", w.astype(np.float64), windows)).max() < 1e-5


def test_rows(bench, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.csv"
    monkeypatch.setattr(sys, "argv", ["bench_emulator.py", "--only", "one block", "--repeat", "1", "--csv", str(path)])
    bench.main()
    (row,) = csv.DictReader(path.open())
    assert row["kernel"] == "saxpy 256, one block"
    assert row["kernel"] in capsys.readouterr().out
    assert float(row["ms"]) > 0
    assert int(row["warp_instructions"]) > 100
