"""The commands around the accelerated network: their dry runs go through every path."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import bench_accelerated
import check_convolutions
import check_network
import psnr
import sanitize
import tune_residual_blocks
from address import ROOT

from styleforge_lib.ops import (
    conv2d_hopper,
    conv2d_hopper_persistent,
    conv2d_hopper_pictures,
    residual_blocks_hopper,
)
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE, Kernel


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv(DEVICE_VARIABLE, "emulator")


def test_bench(monkeypatch, capsys):
    monkeypatch.setattr(bench_accelerated, "TINY", ((1, 8, 8),))
    rows = bench_accelerated.accelerated("a run", compiled=False, dry=True)
    assert {row.version for row in rows if row.operator == "transformer_net"} == {
        "accelerate",
        "accelerate uint8",
        "eager",
    }
    assert len({row.operator for row in rows}) == 1 + 1 + 16
    kept = {row.version: row.bytes for row in rows if row.method == "memory"}
    # A plan's six quarters of 128 float16, and statistics and scales beside them.
    assert 6 * 2 * 2 * 128 * 2 < kept["accelerate"] == kept["accelerate uint8"] < 100_000
    assert kept["eager"] == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3 + 2 + 16


def test_bench_of_overlapping_launches(monkeypatch, capsys):
    monkeypatch.setattr(bench_accelerated, "TINY", ((1, 5, 6),))
    monkeypatch.setattr(bench_accelerated.acceleration, "OVERLAP", False)
    monkeypatch.setattr(bench_accelerated.conv2d_hopper, "DEPENDENTS_EARLY", True)
    assert bench_accelerated.main(["--dry-run", "--overlap", "off,late"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["1x3x5x6,", "off", "late"]
    with pytest.raises(SystemExit):
        bench_accelerated.main(["--dry-run", "--overlap", "sideways"])
    assert "no way 'sideways'; there are off, on, late" in capsys.readouterr().err


def test_ratios_are_of_one_precision_and_method(capsys):
    def timed(version, dtype, cold, warm):
        row = bench_accelerated.Measurement(
            operator="o", version=version, shape="1", dtype=dtype, median_ms=cold, p20_ms=1, p80_ms=1
        )
        return f"{version} {dtype}", [row, bench_accelerated.replace(row, median_ms=warm)], 0

    bench_accelerated.ratios(
        [timed("accelerate", "float16", 2.0, 1.0), timed("eager", "float16", 4.0, 3.0), timed("eager", "tf32", 9, 9)]
    )
    assert capsys.readouterr().out.split() == (
        ["accelerate", "float16", "is", "2.00x", "(cold),", "3.00x", "(warm)", "as", "fast", "as", "eager", "float16"]
    )


def test_psnr(monkeypatch, capsys):
    monkeypatch.setattr(psnr, "SMALL", 8)
    assert psnr.main(["--dry-run"]) == 0
    assert "all reached" in capsys.readouterr().out
    row = {"style": "s", "photo": "p", "size": "1x1", "dtype": "float16", "psnr_db": 44.0, "pytorch_float16_db": 44.0}
    monkeypatch.setattr(psnr, "measure", lambda *args: iter([{**row, "same_bits": True, "passed": False}]))
    assert psnr.main(["--dry-run"]) == 1
    assert "1 MISSED" in capsys.readouterr().out


def test_check_finds_a_wrong_kernel(monkeypatch, capsys):
    monkeypatch.setattr(check_convolutions, "SMALL", (9, 12))
    assert check_convolutions.main(["--dry-run", "--only", "res.conv2"]) == 0
    made = check_convolutions.prepare

    def spoiled(*args, **kwargs):
        kernel = made(*args, **kwargs)

        def launch(x, out, **ways):
            kernel(x, out, **ways)
            out.view(-1)[7] += 0.1

        return launch

    monkeypatch.setattr(check_convolutions, "prepare", spoiled)
    assert check_convolutions.main(["--dry-run", "--only", "res.conv2"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_check_of_an_older_card(monkeypatch, capsys):
    monkeypatch.setattr(check_convolutions, "SMALL", (9, 12))
    assert check_convolutions.main(["--dry-run", "--arch", "sm_75", "--only", "deconv2"]) == 0
    assert "sm_75" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tool", "launcher", "given"),
    [
        (check_convolutions, conv2d_hopper, ("--arch", "sm_90a", "--layer", "deconv1")),
        (check_convolutions, conv2d_hopper_persistent, ("--arch", "sm_90a", "--layer", "deconv2")),
        (tune_residual_blocks, residual_blocks_hopper, ()),
    ],
)
def test_what_is_sanitized_goes_through_several_tiles(tool, launcher, given, monkeypatch):
    """One block makes both phases of deconv1's three tiles; the others have fewer blocks than tiles."""
    for module in (conv2d_hopper, conv2d_hopper_persistent, conv2d_hopper_pictures, residual_blocks_hopper):
        monkeypatch.setattr(module, "multiprocessors", module.multiprocessors)  # restored behind the test
    grids, call = [], Kernel.__call__

    def spy(kernel, grid, *args, **more):
        if kernel.name == launcher.__name__.rpartition(".")[2]:
            grids.append(grid)
        call(kernel, grid, *args, **more)

    monkeypatch.setattr(Kernel, "__call__", spy)
    monkeypatch.setattr(check_convolutions, "SMALL", (9, 70))
    monkeypatch.setattr(tune_residual_blocks, "SMALL", ((1, 5, 19),))
    monkeypatch.setattr(tune_residual_blocks, "COMPARED", {1: ("layers", "added", "blocks")})
    assert tool.main(["--dry-run", "--sanitize", *given]) == 0
    blocks = {conv2d_hopper: (3, 1), conv2d_hopper_persistent: 1, residual_blocks_hopper: 2}[launcher]
    assert grids
    assert set(grids) == {blocks}


def test_check_of_the_network_finds_other_bits_and_wrong_numbers(monkeypatch, capsys):
    monkeypatch.setattr(check_network, "PICTURES", (1, 3, 6, 9))
    monkeypatch.setattr(check_network, "FEATURES", (1, 32, 3, 5))
    assert check_network.main(["--dry-run", "--numbers", "float16"]) == 0
    assert capsys.readouterr().out.count("right\n") == 2 + 4 + 1  # and "all right"
    made, calls = check_network.accelerate, []

    def spoiled(net, **options):
        fast = made(net, **options)

        def paint(x):
            calls.append(x)
            return fast(x) + len(calls) * 1e-3

        return paint

    monkeypatch.setattr(check_network, "accelerate", spoiled)
    assert check_network.main(["--dry-run", "--numbers", "float16"]) == 1
    assert capsys.readouterr().out.count("WRONG") == 2 + 1
    assert len(calls) == 2 * 3


def test_check_of_exact_float32(monkeypatch, capsys):
    monkeypatch.setattr(check_convolutions, "SMALL", (9, 12))
    assert check_convolutions.main(["--dry-run", "--numbers", "float32", "--only", "deconv2"]) == 0
    assert "CudaCore" in capsys.readouterr().out


def test_residual_blocks_are_compared_bit_by_bit(monkeypatch, capsys):
    monkeypatch.setattr(tune_residual_blocks, "SMALL", ((1, 2, 3),))
    monkeypatch.setattr(tune_residual_blocks, "COMPARED", {1: ("layers", "added", "blocks")})
    assert tune_residual_blocks.main(["--dry-run"]) == 0
    ways_of = tune_residual_blocks.ways_of

    def spoiled(*arguments):
        ways = ways_of(*arguments)
        out = ways.made["blocks"]
        ways.made["blocks"] = lambda: out() + 0.01
        return ways

    monkeypatch.setattr(tune_residual_blocks, "ways_of", spoiled)
    assert tune_residual_blocks.main(["--dry-run"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_the_table_of_residual_blocks():
    """Ranges of neighbours at which one launch wins both times."""
    one = {"layers": (1, 1), "added": (9, 9), "blocks": (8, 8)}
    lost = {"layers": (1, 1), "added": (9, 7), "blocks": (8, 8)}
    five = {"layers": (9, 9), "blocks": (9, 9), "stage": (8, 8)}
    rows = {(1, 10): one, (1, 30): one, (1, 20): one, (1, 40): lost, (1, 50): one, (5, 10): five}
    rows[5, 20] = {**five, "blocks": (7, 9)}
    assert tune_residual_blocks.table(rows).endswith("= {1: ((10, 30), (50, 50)), 5: ((10, 10),)}")


def test_sanitize_names_every_tool_kernel_and_kind_of_numbers():
    for tool in sanitize.TOOLS:
        found = [one for one in sanitize.watched(sanitize.TOOLS, ("float16", "tf32")) if one.tool == tool]
        scripts = [one.program[0] for one in found]
        assert scripts[:2] == ["check_instance_norm.py", "check_operators.py"]
        assert [one.program[1:] for one in found if one.program[0] == "check_network.py"] == [
            ("--numbers", "float16"),
            ("--numbers", "tf32"),
        ]
        (blocks,) = (one for one in found if one.program[0] == "tune_residual_blocks.py")
        assert blocks.program[1:] == ("--sanitize", "--numbers", "float16")  # none of tf32
        layers = [one.program[2:] for one in found if one.program[0] == "check_convolutions.py"]
        for kind in ("float16", "tf32"):
            for name in check_convolutions.NETWORK:
                assert ("--numbers", kind, "--layer", name) in layers
        assert ("--arch", "sm_75", "--numbers", "float16") in layers
        assert len(layers) == 2 * len(check_convolutions.NETWORK) + 1
        for one in found:
            assert one.command()[:3] == ["compute-sanitizer", "--tool", tool]
            assert str(ROOT) not in str(one)


@pytest.mark.parametrize(
    ("said", "status", "clean"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, True),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0, True),
        ("========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)", 0, False),
        ("========= ERROR SUMMARY: 0 errors", 1, False),
        ("", 0, False),
    ],
)
def test_sanitize_believes_only_a_summary(said, status, clean, tmp_path, monkeypatch):
    (tmp_path / "compute-sanitizer").write_text(f"#!/bin/sh\necho '{said}'\nexit {status}\n")
    (tmp_path / "compute-sanitizer").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found, words = sanitize.run(sanitize.watched(["memcheck"], ["float16"])[0])
    assert found is clean
    assert words.strip() == said
