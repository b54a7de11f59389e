"""What the pages will show of the accelerated network, once it is measured: with invented rows and records."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import network_page
import page_blocks
import sync_pages

from styleforge_lib.lab.records import Measurement

RUN, OLDER = "2999-01-02T00:00:00Z", "2998-01-02T00:00:00Z"
PEERS = (
    ("eager + benchmark", "tf32", "nchw", 8.0),
    ("eager + graph", "tf32", "nchw", 7.0),
    ("compile", "tf32", "nchw", 4.0),
    ("eager + benchmark", "float32", "nchw", 20.0),
    ("eager + benchmark", "float16", "nhwc", 12.0),
    ("eager + graph", "float16", "nhwc", 11.0),
    ("compile", "float16", "nhwc", 3.0),
    ("compile max-autotune", "float16", "nhwc", 2.5),
)
MINE = (("accelerate", "float16", 0.5), ("accelerate", "tf32", 2.0), ("accelerate uint8", "float16", 0.4))


def rows_at(shape, run=RUN, mine=MINE, peers=PEERS):
    """Rows such as one run of tools/bench_accelerated.py appends at a shape: the second time is half of the first."""
    machine = {"gpu": page_blocks.GPU, "driver": "580", "torch": "2.11.0", "cuda": "13.0", "run": run}
    for version, dtype, layout, ms in [*((v, d, "nhwc", t) for v, d, t in mine), *peers]:
        times = {"median_ms": ms, "p20_ms": ms, "p80_ms": ms}
        row = Measurement(
            operator="transformer_net", version=version, shape=shape, dtype=dtype, layout=layout, **times, **machine
        )
        row = replace(row, psnr_db=75.4 if version.startswith("acc") else 73.6)
        again = "warm" if version in ("eager + graph", "compile max-autotune") else "graph"
        kept = 100 * 2**20 if version.startswith("acc") else 481 * 2**20
        yield from (row, replace(row, method=again, median_ms=ms / 2))
        yield replace(row, operator="transformer_net_memory", method="memory", bytes=kept)


@pytest.fixture
def committed(monkeypatch):
    """Return a function that puts rows behind the committed ones, without those of the accelerated network."""
    there = [row for row in page_blocks.committed() if not row.version.startswith("accelerate")]

    def add(rows=()):
        monkeypatch.setattr(page_blocks, "committed", lambda: (*there, *rows))

    add()
    return add


def test_while_nothing_is_measured_the_page_says_so(committed):
    assert "no kernel of this repository is among them yet" in network_page.peers_note()
    assert network_page.accelerate_words().startswith("Its times will stand beside")
    assert "is not measured beside them yet" in network_page.accelerate_table()
    assert "No layer is on record yet" in network_page.tuning_layers()
    assert {row.version for row in network_page.bars()} == {*page_blocks.EAGER, "compile", "compile max-autotune"}


def test_ours_stands_beside_the_peers_of_its_run(committed):
    shapes = ("1x3x256x256", "1x3x512x512", page_blocks.SHAPE, "1x3x1080x1920", "8x3x512x512")
    committed([row for shape in shapes for row in rows_at(shape)])
    assert network_page.peers_note().startswith("The orange bars are `accelerate`'s")
    words = network_page.accelerate_words()
    assert "in 0.500 ms; `compile max-autotune` in float16 channels_last took 2.50 ms in the same run" in words
    lines = [line.split(" | ") for line in network_page.accelerate_table().splitlines()[2:8]]
    assert [line[0] for line in lines] == [
        "| 256×256", "| 512×512", "| 1024×1024", "| 1080×1920", "| 8 × 512×512", "| 1024×1024"
    ]  # fmt: skip
    assert lines[0][4] == "eager + graph, tf32"
    assert lines[0][7:9] == ["**14.00**", "**14.00**"]
    assert lines[2][1:] == ["float16", "0.500", "0.250", "compile max-autotune, float16 channels_last", "2.50", "1.25",
                            "**5.00**", "**5.00**", "75, 74", "100, 481 |"]  # fmt: skip
    assert lines[5][1:6] == ["tf32", "2.00", "1.00", "compile, tf32", "4.00"]
    shown = network_page.bars()
    assert {row.run for row in shown} == {RUN}
    assert len(shown) == len(PEERS) + 2, "uint8 is the same bar again"
    data, draw = page_blocks.PICTURES["docs/peers.png"]()
    assert data[0]["version"] == "accelerate"
    assert Image.open(io.BytesIO(draw())).size[0] > 1000


def test_pytorchs_own_table_keeps_its_run(committed):
    before = page_blocks.peers_table()
    committed(rows_at(page_blocks.SHAPE))
    assert page_blocks.peers_table() == before


def test_of_two_runs_the_fuller_one_counts_and_of_equals_the_newer(committed):
    cut_off = list(rows_at(page_blocks.SHAPE, mine=[("accelerate", "float16", 0.1)], peers=PEERS[:1]))
    whole = list(rows_at(page_blocks.SHAPE, run=OLDER))
    committed([*whole, *cut_off])
    assert network_page.beside(page_blocks.SHAPE)["accelerate", "float16"]["cold"].run == OLDER
    committed([*whole, *rows_at(page_blocks.SHAPE)])
    assert network_page.beside(page_blocks.SHAPE)["accelerate", "float16"]["cold"].run == RUN
    committed(row for row in cut_off if row.version != "eager + benchmark")
    assert "is not measured beside them" in network_page.accelerate_table(), "ours alone is no comparison"
    assert network_page.accelerate_words().startswith("Its times will stand")


def test_a_machine_is_named_once_with_its_days():
    one, other = rows_at("1x3x8x8", run=OLDER), rows_at("1x3x8x8")
    said = page_blocks.machine_of([*other, *one])
    assert said == f"{page_blocks.GPU}, driver 580, PyTorch 2.11.0, CUDA 13.0, {OLDER[:10]} and {RUN[:10]}"


def test_layers_are_held_against_their_floors(committed):
    row = next(rows_at(page_blocks.SHAPE))
    layer = replace(row, operator="transformer_net.res1.conv2", version="accelerate Hopper", flops=19_327_352_832)
    layer = replace(layer, bytes=33_849_344, median_ms=0.04, method="graph")
    committed([layer])
    line = network_page.tuning_layers().splitlines()[2]
    assert line.startswith("| res1.conv2 | `Hopper` | 28.8 | 7.9")
    assert line.endswith("| 40.0 | 72 % |")


def test_what_the_profiler_said(monkeypatch, tmp_path):
    monkeypatch.setattr(network_page, "NCU", tmp_path / "ncu.json")
    assert "has not looked" in network_page.tuning_ncu()
    row = {"kernel": "conv2d_hopper", "ns": 35000, "tensor_percent": 61.2, "issue_percent": 20.4, "dram_read": 11e6,
           "dram_written": None, "l2_bytes": 9e7, "registers": 93, "shared_bytes": 113_664}  # fmt: skip
    rows = [{**row, "layer": f"res{number}.conv1"} for number in (1, 2, 3)]
    rows.insert(1, {**row, "layer": "res1.conv1", "kernel": "close_planes"})
    record = {"machine": {"gpu": "NVIDIA H200", "ncu": "2025.3"}, "run": RUN, "shape": page_blocks.SHAPE, "rows": rows}
    network_page.NCU.write_text(json.dumps(record))
    lines = network_page.tuning_ncu().splitlines()
    assert lines[2] == "| res1.conv1 | `conv2d_hopper` | 35.0 | 61 | 20 | 11.0 | – | 90.0 | 93 | 114 |"
    assert [line.split()[1] for line in lines[2:4]] == ["res1.conv1", "res2.conv1"]
    assert "Nsight Compute 2025.3 on NVIDIA H200, 2999-01-02, float16 at 1024×1024" in lines[-1]


def test_a_record_of_commits(monkeypatch, tmp_path):
    monkeypatch.setattr(network_page, "BY_COMMIT", tmp_path / "commits.txt")
    monkeypatch.setattr(network_page, "_of_record", lambda name: ("What python tools/a.py printed on a GPU.", text))
    text = (
        "commit aaaaaaa\nres.conv2      Hopper      0.68   4.9e-06 right       45.8      37.4      516\n"
        "commit bbbbbbb\nres.conv2      Hopper      0.68   4.9e-06 right       40.0      34.4      560\n"
        "res.conv2      TensorCore  0.68   4.9e-06 right       72.9      64.2      301\n"
        "commit aaaaaaa\nres.conv2      Hopper      0.68   4.9e-06 right       45.8      37.1      516\n"
    )
    assert "Not yet measured" in network_page.tuning_commits()
    network_page.BY_COMMIT.write_text(text)
    lines = network_page.tuning_commits().splitlines()
    assert lines[2:4] == ["| `aaaaaaa` | 37.1 |", "| `bbbbbbb` | 34.4 |"]
    assert lines[-1].endswith("From what `tools/a.py` printed on a GPU.")


def test_texts_of_records_are_read():
    assert network_page.tuning_mma().count("\n") > 9
    assert "| 512×512 | 0.2515 | 0.2959 | 0.2356 |" in network_page.tuning_overlap()
    assert network_page.tuning_blocks().count("| 5 |") == 5


def test_the_page_of_the_steps_names_commits_that_say_what_it_quotes():
    """A figure in the table of steps stands in the message of the last commit that the line names."""
    page = (sync_pages.ROOT / "docs" / "tuning.md").read_text("utf-8")
    steps = page.partition("## The steps")[2].partition("\n## ")[0]
    for line in (line for line in steps.splitlines() if re.search(r"`[0-9a-f]{7}`", line)):
        *_, commit = re.findall(r"`([0-9a-f]{7})`", line)
        shown = ["git", "-C", str(sync_pages.ROOT), "show", "-s", "--format=%B", commit]
        said = subprocess.run(shown, capture_output=True, text=True, check=False)
        if said.returncode:
            pytest.skip(f"needs the history, with commit {commit}; git said: {said.stderr.strip()}")
        quoted = re.findall(r"(?<![\w×])(?:\d+\.\d+|\d\d+)(?![\w×.])", line.partition("| [")[0])
        missing = [figure for figure in quoted if figure not in said.stdout and figure != "32"]
        assert not missing, f"{commit} says nothing of {missing}"
