"""The bench: tables, the replay of records, errors against float64, and the measuring itself with a clock stood in."""

import math

import pytest
import torch

from styleforge_lib.lab import records
from styleforge_lib.lab.bench import CLOCKS, Candidate, Table, bench, errors, replay
from styleforge_lib.lab.records import Measurement


def row(version, ms, **others):
    given = {"operator": "op", "shape": "8", "dtype": "float32", "p20_ms": ms * 0.9, "p80_ms": ms * 1.1}
    return Measurement(**{**given, "version": version, "median_ms": ms, "gpu": "GPU A", "run": "2026-11-01T", **others})


SLOW = row("slow", 4.0, bytes=4_000_000, rel_error=1e-4, psnr_db=80.0)
FAST = row("fast <b>", 1.0, dtype="float16", layout="nhwc", rel_error=math.nan, psnr_db=math.nan)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Stand in a record of SLOW and FAST for the committed one; return the file that would be appended to."""
    own = tmp_path / "local.csv"
    records.append([SLOW, FAST], tmp_path / "measurements.csv")
    monkeypatch.setattr(records, "committed_path", lambda: tmp_path / "measurements.csv")
    monkeypatch.setenv("STYLEFORGE_RECORDS", str(own))
    return own


# ---- tables --------------------------------------------------------------------------------------------------------


def test_text():
    assert str(Table([SLOW, FAST])).splitlines() == [
        "version   precision              ms  20-80 %  GB/s    error  PSNR dB",
        "slow      float32                 4  3.6-4.4     1  1.0e-04     80.0",
        "fast <b>  float16 channels_last   1  0.9-1.1            nan      nan",
        "Median of many calls, L2 flushed before each call. Measured on GPU A, 2026-11-01.",
    ]


def test_empty_columns_are_left_out_and_a_second_clock_is_named():
    heading, *_ = Table([row("a", 1.0), row("a", 2.0, method="warm")]).cells()
    assert heading == ["version", "precision", "timed", "ms", "20-80 %"]
    assert "L2 flushed before each call; calls back to back." in Table([SLOW, row("a", 2.0, method="warm")]).note


def test_html_is_escaped_and_says_the_same():
    table = Table([SLOW, FAST])
    page = table._repr_html_()
    assert "<b>" not in page
    assert "fast &lt;b&gt;" in page
    assert page.count("<tr>") == 3
    assert table.note in page


def test_ratios():
    cells = Table([SLOW, FAST]).against("slow").cells()
    assert [line[-1] for line in cells] == ["speed-up", "1.00x", "4.00x"]
    assert [line[-1] for line in Table([SLOW, FAST]).against("fast <b>").cells()] == ["speed-up", "0.25x", "1.00x"]
    with pytest.raises(KeyError, match="no version 'best' here; there are slow, fast"):
        Table([SLOW, FAST]).against("best")


def test_rows_by_name():
    half = row("slow", 2.0, dtype="float16")
    table = Table([SLOW, half])
    assert table["slow"] is SLOW
    assert table["slow", "float16"] is half
    assert list(table) == [SLOW, half]
    with pytest.raises(KeyError, match="float64"):
        table["slow", "float64"]


# ---- replay --------------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_record_is_replayed_and_nothing_runs(recorded, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = []
    table = bench("op", [Candidate(version="slow", run=lambda: ran.append(1))], shape="8")
    assert (table.rows, table.replayed, ran) == ([SLOW], True, [])
    assert "Replayed from the record of GPU A, 2026-11-01." in str(table)
    assert not recorded.exists()


def test_what_the_record_lacks_is_named(recorded):
    candidates = [Candidate(version="slow"), Candidate(version="fast <b>"), Candidate(version="new", dtype="float16")]
    table = replay("op", candidates, shape="8")
    assert [r.version for r in table] == ["slow"], "the float16 row does not stand in for a float32 one"
    assert table.missing == ("fast <b> float32 (cold)", "new float16 (cold)")
    assert "No record of fast <b> float32 (cold), new float16 (cold)." in str(table)
    assert "&lt;b&gt;" in table._repr_html_()


@pytest.mark.parametrize("asked", [{"shape": "9"}, {"shape": "8", "methods": ("warm",)}])
def test_another_shape_or_clock_is_not_replayed(recorded, asked):
    table = replay("op", [Candidate(version="slow")], **asked)
    assert table.rows == []
    assert "run this on a machine with an NVIDIA GPU" in str(table)
    assert "slow float32" in table._repr_html_()


# ---- measuring -----------------------------------------------------------------------------------------------------


def test_on_a_gpu_each_row_is_measured_and_appended(recorded, monkeypatch):
    """The clock is stood in: the first candidate takes 2 ms, the second 1 ms."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(records, "machine", lambda: {"gpu": "GPU B", "driver": "600", "torch": "2.13.0"})
    clock = iter([(2.0, 1.5, 2.5), (1.0, 0.5, 1.5)])
    monkeypatch.setitem(CLOCKS, "cold", lambda run: run() or next(clock))
    ran = []
    candidates = [
        Candidate(version="one", run=lambda: ran.append("one"), bytes=10, flops=20, rel_error=1e-3, psnr_db=60.0),
        Candidate(version="two", run=lambda: ran.append("two"), dtype="float16", layout="nhwc"),
    ]
    table = bench("op", candidates, shape="8", run="2026-11-02T")
    assert ran == ["one", "two"]
    assert not table.replayed
    assert [(r.median_ms, r.p20_ms, r.p80_ms) for r in table] == [(2.0, 1.5, 2.5), (1.0, 0.5, 1.5)]
    assert {(r.operator, r.shape, r.method, r.run, r.gpu, r.driver, r.torch, r.peers) for r in table} == {
        ("op", "8", "cold", "2026-11-02T", "GPU B", "600", "2.13.0", "one/float32;two/float16")
    }
    assert (table["one"].bytes, table["one"].flops, table["one"].rel_error) == (10, 20, 1e-3)
    assert (table["two"].dtype, table["two"].layout) == ("float16", "nhwc")
    assert records.read(recorded) == table.rows
    assert "Measured on GPU B, 2026-11-02." in str(table)


# ---- errors --------------------------------------------------------------------------------------------------------


def test_errors_against_a_computation_by_hand():
    reference = torch.tensor([3.0, 4.0], dtype=torch.float64)
    found = errors(torch.tensor([3.0, 4.5]), reference)
    assert found["rel_error"] == pytest.approx(0.1)
    assert found["psnr_db"] == pytest.approx(20 * math.log10(255 / math.sqrt(0.125)))


def test_no_error():
    x = torch.ones(3)
    assert errors(x, x.double()) == {"rel_error": 0.0, "psnr_db": math.inf}


def test_a_reference_of_zeros_gives_the_absolute_error():
    assert errors(torch.tensor([0.5]), torch.zeros(1, dtype=torch.float64))["rel_error"] == 0.5


@pytest.mark.parametrize("where", ["out", "reference", "both"])
def test_nan_stays_nan(where):
    out, reference = torch.ones(4), torch.ones(4, dtype=torch.float64)
    if where != "reference":
        out[1] = math.nan
    if where != "out":
        reference[1] = math.nan
    found = errors(out, reference)
    assert math.isnan(found["rel_error"])
    assert math.isnan(found["psnr_db"])


def test_infinity_is_infinitely_wrong():
    found = errors(torch.tensor([math.inf, 1.0]), torch.ones(2, dtype=torch.float64))
    assert found == {"rel_error": math.inf, "psnr_db": -math.inf}


def test_half_precision_is_compared_in_float64():
    out = torch.full((4,), 60000.0, dtype=torch.float16)
    found = errors(out, torch.full((4,), 60001.0, dtype=torch.float64))
    assert found["rel_error"] == pytest.approx((60001 - out[0].item()) / 60001)


def test_another_shape_is_refused_and_not_stretched():
    with pytest.raises(ValueError, match=r"out: its shape is \(1,\), but the reference has \(4,\)"):
        errors(torch.ones(1), torch.ones(4, dtype=torch.float64))
