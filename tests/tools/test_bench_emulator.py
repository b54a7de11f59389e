"""The emulator's benchmark: its kernels compute what they claim, and its rows are complete."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_emulator.py"


@pytest.fixture(scope="module")
def bench():
    pytest.importorskip("cupy")
    specification = importlib.util.spec_from_file_location("bench_emulator", TOOL)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(bench, kernel, grid, block, *arguments):
    bench.program().launch(kernel, grid, block, arguments)


def test_instance_norm(bench):
    x = np.random.default_rng(0).standard_normal((5, 20, 20)).astype(np.float32) * 3 + 7
    y = np.full_like(x, np.nan)
    run(bench, "instance_norm", (5,), (96,), x, y, np.int32(400), np.float32(1e-5))
    wide = x.astype(np.float64)
    wanted = (wide - wide.mean((1, 2), keepdims=True)) / np.sqrt(wide.var((1, 2), keepdims=True) + 1e-5)
    assert np.abs(y - wanted).max() < 2e-6


def test_convolution(bench):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((3, 32, 48)).astype(np.float32), rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    y = np.full((8, 32, 48), np.nan, np.float32)
    run(bench, "conv3x3", (3, 2, 1), (16, 16), x, w, y, np.int32(3), np.int32(32), np.int32(48))
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    assert np.abs(y - np.einsum("ocij,chwij->ohw", w.astype(np.float64), windows)).max() < 1e-5


def test_convolution_on_tensor_cores(bench):
    rng = np.random.default_rng(2)
    x, w = (rng.integers(-4, 5, shape).astype(np.float16) for shape in ((16, 16, 64), (9, 64, 64)))
    y = np.full((16, 16, 64), np.nan, np.float16)
    run(bench, "conv3x3_mma", (2, 1), (256,), x, w, y, np.int32(16), np.int32(16))
    padded = np.pad(x.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode="reflect")
    wanted = sum(padded[t // 3 : t // 3 + 16, t % 3 : t % 3 + 16] @ w[t].T.astype(np.float64) for t in range(9))
    assert np.array_equal(y, wanted.astype(np.float16))


def test_attention(bench):
    q, k, v = np.random.default_rng(3).standard_normal((3, 2, 70, 32)).astype(np.float32)
    y = np.full_like(q, np.nan)
    run(bench, "attention", (1, 2), (128,), q, k, v, y, np.int32(70))
    scores = np.exp(q.astype(np.float64) @ k.swapaxes(1, 2) / np.sqrt(32))
    assert np.abs(y - (scores / scores.sum(-1, keepdims=True)) @ v).max() < 5e-6


def test_ffn(bench):
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((3, 16)).astype(np.float16) / 4, rng.standard_normal((16, 64)).astype(np.float16) / 4
    y = np.full((3, 64), np.nan, np.float16)
    run(bench, "ffn", (1, 3), (32,), x, w, y, np.int32(16), np.int32(32))
    h = x.astype(np.float64) @ w
    assert np.abs(y - h / (1 + np.exp(-2 * (0.797885 * h + 0.035677 * h**3)))).max() < 4e-3


def test_rows(bench, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.csv"
    monkeypatch.setattr(sys, "argv", ["bench_emulator.py", "--only", "one block", "--repeat", "1", "--csv", str(path)])
    bench.main()
    (row,) = csv.DictReader(path.open())
    assert row["kernel"] == "saxpy 256, one block"
    assert row["kernel"] in capsys.readouterr().out
    assert float(row["cpu_ms"]) > 0
    assert float(row["wall_ms"]) > 0
    assert int(row["warp_instructions"]) > 100
    assert row["threads"] == "1"


def test_a_row_says_in_how_many_threads_a_launch_ran(bench, monkeypatch):
    monkeypatch.setenv("STYLEFORGE_EMULATOR_THREADS", "2")
    name = "mma conv 3x3 64->64 128x128 float16"
    row = bench.measure(name, bench.cases()[name], 1)
    assert row["threads"] == 2
    assert row["gflop_per_s"] == pytest.approx(bench.cases()[name].operations / row["wall_ms"] / 1e6, rel=0.01)
