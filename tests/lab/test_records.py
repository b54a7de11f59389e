"""The record: what is written is what is read, and a file that is not one is refused with its line."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleforge_lib.lab import records
from styleforge_lib.lab.records import Measurement, append, latest, read

ROW = Measurement(
    operator="instance_norm",
    version="warp shuffle",
    shape="1x32x64x64",
    dtype="float32",
    median_ms=0.5,
    p20_ms=0.25,
    p80_ms=0.75,
    bytes=1 << 40,
    flops=0,
    rel_error=1e-7,
    psnr_db=math.inf,
    run="2026-11-01T10:00:00Z",
    gpu="GPU A",
)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Let each test say which machine this is."""
    be(monkeypatch, "")


def be(monkeypatch, gpu):
    monkeypatch.setattr(records, "machine", lambda: {"gpu": gpu})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "records.csv"


# ---- reading and writing -------------------------------------------------------------------------------------------


def test_round_trip(path):
    empty = replace(ROW, bytes=None, flops=None, rel_error=None, psnr_db=None)
    assert append([ROW, empty], path) == path
    assert read(path) == [ROW, empty]


def test_not_a_number_stays_one(path):
    append([replace(ROW, rel_error=math.nan, psnr_db=math.nan)], path)
    (row,) = read(path)
    assert math.isnan(row.rel_error)
    assert math.isnan(row.psnr_db)


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)  # one line


@given(version=texts, peers=texts, ms=st.floats(1e-9, 1e9))
def test_any_text_survives_and_times_keep_five_digits(tmp_path_factory, version, peers, ms):
    path = tmp_path_factory.mktemp("records") / "records.csv"
    append([replace(ROW, version=version, peers=peers, median_ms=ms)], path)
    (row,) = read(path)
    assert (row.version, row.peers) == (version, peers)
    assert row.median_ms == pytest.approx(ms, rel=1e-4)


def test_appending_keeps_what_is_there_and_writes_one_header(path):
    append([ROW], path)
    before = path.read_text()
    append([replace(ROW, version="later")], path)
    assert path.read_text().startswith(before)
    assert [row.version for row in read(path)] == ["warp shuffle", "later"]
    assert path.read_text().count("median_ms") == 1


def test_an_empty_file_gets_its_header(path):
    path.parent.mkdir()
    path.touch()
    append([ROW], path)
    assert read(path) == [ROW]


def test_a_missing_file_has_no_rows(path):
    assert read(path) == []


OTHER_HEADERS = {
    "of an older version": "operator,version,shape,dtype,median_ms\n",
    "of another order": ",".join(reversed(records._COLUMNS)) + "\n",
    "of no record": "time,temperature\n1,2\n",
    "none": "\n",
}


@pytest.mark.parametrize("text", OTHER_HEADERS.values(), ids=OTHER_HEADERS)
@pytest.mark.parametrize("use", [read, lambda path: append([ROW], path)], ids=["read", "append"])
def test_another_header_is_refused_and_the_file_left_alone(path, text, use):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match="its first line must be operator,version,shape") as refused:
        use(path)
    assert str(path) in str(refused.value)
    assert path.read_text() == text


def damaged(column, text):
    def change(cells):
        cells[records._COLUMNS.index(column)] = text
        return cells

    return change


BAD_ROWS = {
    "a word for a time": (damaged("median_ms", "fast"), "could not convert"),
    "no time": (damaged("median_ms", ""), "no median_ms"),
    "no quantile": (damaged("p80_ms", ""), "no p80_ms"),
    "half a byte": (damaged("bytes", "1.5"), "invalid literal"),
    "cut off": (lambda cells: cells[:7], "21 columns"),
    "cut off after the times": (lambda cells: cells[:12], "21 columns"),
    "two rows in one": (lambda cells: cells * 2, "21 columns"),
}


@pytest.mark.parametrize(("change", "why"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_with_its_line(path, change, why):
    append([ROW, ROW], path)
    header, good, bad = path.read_text().splitlines()
    path.write_text("\n".join([header, good, ",".join(change(bad.split(","))), ""]))
    with pytest.raises(ValueError, match=why) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path}:3: not a measurement (")


def test_the_learners_rows_come_after_the_committed_ones(path, monkeypatch, tmp_path):
    committed, own = tmp_path / "measurements.csv", path
    append([ROW], committed)
    append([replace(ROW, version="mine")], own)
    monkeypatch.setattr(records, "committed_path", lambda: committed)
    monkeypatch.setenv("STYLEFORGE_RECORDS", str(own))
    assert [row.version for row in read()] == ["warp shuffle", "mine"]
    monkeypatch.setenv("STYLEFORGE_RECORDS", str(committed))
    assert [row.version for row in read()] == ["warp shuffle"], "one file is read once"


WRONG_ON_PURPOSE = {  # what a lesson measures to show that it fails
    ("instance_norm", "one pass"): "E[x^2] - E[x]^2 at mean 4000 and deviation 0.5, in notebook 04",
}


def test_the_committed_rows_are_complete():
    """What the notebooks replay: every row says on what it was measured, and its quantiles are in order."""
    rows = read(records.committed_path())
    assert rows
    for row in rows:
        assert all([row.gpu, row.driver, row.cuda, row.torch, row.python, row.run]), row.key
        assert 0 < row.p20_ms <= row.median_ms <= row.p80_ms, row.key
        wrong = WRONG_ON_PURPOSE.get((row.operator, row.version))
        assert row.rel_error is None or 0 <= row.rel_error < 0.1 or wrong, row.key


# ---- choosing ------------------------------------------------------------------------------------------------------


def test_the_newest_row_of_each_key():
    old = replace(ROW, run="2026-01-01T00:00:00Z", median_ms=9.0)
    others = [replace(ROW, **{name: "other"}) for name in ("version", "shape", "dtype", "layout", "method")]
    assert latest([ROW, old, *others]) == [ROW, *others]
    assert latest([old, ROW]) == [ROW]


def test_the_order_is_that_of_measuring():
    rows = [replace(ROW, version=name, run="2026-11-02") for name in "abc"]
    again = replace(rows[0], run="2026-11-03")
    assert latest([again, *rows]) == [rows[1], rows[2], again]


def test_this_machines_rows_come_first(monkeypatch):
    mine = replace(ROW, gpu="GPU B", run="2020-01-01")
    assert latest([mine, ROW]) == [ROW], "without a GPU: the newest run's"
    be(monkeypatch, "GPU B")
    assert latest([mine, ROW]) == [mine]
    be(monkeypatch, "GPU C")
    assert latest([mine, ROW]) == [ROW], "a GPU that was never measured replays as well"


def test_rows_of_two_machines_are_never_mixed(monkeypatch):
    """GPU B lacks the float16 row: it is left out, not borrowed."""
    half = replace(ROW, dtype="float16")
    be(monkeypatch, "GPU B")
    mine = replace(ROW, gpu="GPU B")
    assert latest([half, ROW, mine]) == [mine]


def test_a_star_matches_what_begins_so():
    rows = [replace(ROW, operator=name) for name in ("net", "net.conv1", "net.conv1.pad", "network")]
    assert [row.operator for row in latest(rows, operator="net.*")] == ["net.conv1", "net.conv1.pad"]
    assert [row.operator for row in latest(rows, operator="net")] == ["net"]
    assert latest(rows, operator="n*", dtype="float16") == []


def test_an_unknown_column_is_named():
    with pytest.raises(ValueError, match="no column 'precision'; it has operator, version"):
        latest([ROW], precision="float32")


def test_rates():
    row = replace(ROW, median_ms=2.0, bytes=6_000_000, flops=8_000_000_000)
    assert (row.gbytes, row.tflops) == (3.0, 4.0)
    assert replace(row, bytes=None, flops=None).gbytes is replace(row, bytes=None, flops=None).tflops is None
    assert row.where == "GPU A, 2026-11-01"
