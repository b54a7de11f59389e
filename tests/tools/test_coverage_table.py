"""The table of what the emulator executes: it is up to date, and nothing on the whitelist is without a test."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import coverage_table
from coverage_table import PAGE, RECORD, ROOT, RULES, page, spelled, without_test

REMEDY = "run python tools/coverage_table.py"


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text("utf-8"))


def test_the_page_is_up_to_date(record):
    assert PAGE.read_text("utf-8") == page(record), f"{REMEDY} --page"


def test_nothing_on_the_whitelist_is_without_a_test(record):
    missing = without_test(record)
    assert not missing, f"no test executes {missing}: write one, then {REMEDY}"


def test_the_tests_exist(record):
    """Each is held to the record when it runs (tests/runtime/emulator/conftest.py); a renamed one would not be."""
    texts: dict[str, str] = {}
    for test in set(record["witnesses"].values()):
        path, _, name = test.partition("::")
        text = texts.setdefault(path, (ROOT / path).read_text("utf-8"))
        assert f"def {name.partition('[')[0]}(" in text, f"{test}: {REMEDY}"


def test_what_is_missing_is_found(record, monkeypatch):
    fewer = {**record, "witnesses": {k: v for k, v in record["witnesses"].items() if not k.startswith("shf.")}}
    assert "shf" in without_test(fewer)
    more = {**record, "asked": {**record["asked"], "add": ["f32", "frob"]}}
    assert without_test(more) == ["add.frob"]
    monkeypatch.setitem(RULES, "frob", RULES["add"])
    assert without_test(record) == ["frob"]


def test_words_as_ptx_spells_them():
    words = ["shared_cta", "L2_cache_hint", "acq_rel", "mbarrier_complete_tx_bytes"]
    assert [spelled(word) for word in words] == [
        "shared::cta",
        "L2::cache_hint",
        "acq_rel",
        "mbarrier::complete_tx::bytes",
    ]


def test_the_page_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coverage_table, "PAGE", ROOT / "docs" / "coverage.md")
    monkeypatch.setattr(Path, "write_text", lambda self, text, encoding: (tmp_path / self.name).open("w").write(text))
    assert coverage_table.main(["--page"]) == 0
    assert "forms" in capsys.readouterr().out
    assert (tmp_path / "coverage.md").stat().st_size > 1000
