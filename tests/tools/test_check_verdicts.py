"""The command that holds verdicts on a GPU against the emulator's: its cheats are cheats, and it sees differences."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import check_verdicts
from check_verdicts import ENTRIES, case_of, compare, judge

CHEATS = [entry for entry in ENTRIES if not entry.right]
FIRST = next(entry for entry in ENTRIES if entry.name == "a first relu")
CUT_OFF = next(entry for entry in ENTRIES if entry.name == "a sum cut off")


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")


@pytest.mark.parametrize("entry", CHEATS, ids=lambda entry: entry.name)
def test_a_cheat_is_caught(entry):
    passed, words = judge(entry, "emulator")
    assert not passed
    assert case_of(words)
    assert entry.faults == words.startswith("a fault")


def test_there_are_many_and_each_in_its_own_way():
    assert len(CHEATS) >= 15
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    texts = {(entry.text, entry.budget) for entry in CHEATS}
    assert len(texts) == len(CHEATS)


def test_dry_run(capsys):
    assert check_verdicts.main(["--dry-run", "--only", "a sum"]) == 0
    assert "2 of 2 verdicts agree: 0 right kernels, 2 cheats" in capsys.readouterr().out
    assert check_verdicts.main(["--dry-run", "--only", "nothing of the kind"]) == 1


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(check_verdicts.gpu, "available", lambda: False)
    assert check_verdicts.main([]) == 2
    assert "--dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "here", "there", "said"),
    [
        (FIRST, (True, "33 cases right, to the last bit"), (True, "33 cases right, to the last bit"), ""),
        (
            FIRST,
            (True, "33 cases right, to the last bit"),
            (True, "33 cases right, within twice PyTorch's own error"),
            "",
        ),
        (
            FIRST,
            (True, "33 cases right, to the last bit"),
            (True, "32 cases right, to the last bit"),
            "the words differ",
        ),
        (FIRST, (True, "33 cases right"), (False, "1 wrong in case 'flat 1'"), "the verdicts differ"),
        (FIRST, (False, "1 wrong in case 'flat 1'"), (False, "1 wrong in case 'flat 1'"), "a right kernel fails"),
        (CUT_OFF, (True, "33 cases right"), (True, "33 cases right"), "a cheat passes"),
        (CUT_OFF, (False, "1 wrong in case 'flat 1'"), (False, "2 wrong in case 'flat 1'"), "the words differ"),
        (CUT_OFF, (False, "1 wrong in case 'flat 1'"), (False, "1 wrong in case 'flat 2'"), "the verdicts differ"),
        (CHEATS[0], (False, "a fault in case 'flat 1'"), (False, "it wrote outside, in case 'flat 1'"), ""),
    ],
)
def test_differences(entry, here, there, said, monkeypatch):
    monkeypatch.setattr(check_verdicts, "judge", lambda entry, on: here if on == "emulator" else there)
    row = compare(entry, "gpu")
    assert row.said == said
    assert row.agrees == (not said)


def test_the_record(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check_verdicts.gpu, "available", lambda: True)
    monkeypatch.setattr(
        check_verdicts, "judge", lambda entry, on: (entry.right or on == "gpu", "right" if entry.right else on)
    )
    path = tmp_path / "record.json"
    assert check_verdicts.main(["--json", str(path), "--only", "a first"]) == 0
    assert check_verdicts.main(["--json", str(path), "--only", "a sum"]) == 1
    assert "a sum cut off: the verdicts differ" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert [row["said"] for row in rows] == ["the verdicts differ"] * 2


def test_the_record_is_of_every_entry_and_every_verdict_agrees():
    record = json.loads(check_verdicts.RECORD.read_text())
    assert {row["name"] for row in record["rows"]} == {entry.name for entry in ENTRIES}
    assert [row["name"] for row in record["rows"] if row["said"]] == []
    assert record["machine"]["gpu"]
