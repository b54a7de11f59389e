"""The check of the lessons' operators: the library's kernels pass, and a wrong one does not."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import check_operators

from styleforge_lib.ops import find_operator
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv(DEVICE_VARIABLE, "emulator")


def test_right_kernels_pass(capsys):
    assert check_operators.main(["relu", "residual_add"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4  # float32 and float16


def test_a_wrong_kernel_fails(monkeypatch):
    wrong = replace(find_operator("relu"), launch=lambda x, out: out.copy_(x))
    monkeypatch.setattr(check_operators, "find_operator", lambda name: wrong)
    assert check_operators.main(["relu"]) == 1


def test_an_unknown_name(capsys):
    with pytest.raises(SystemExit):
        check_operators.main(["gelu"])
    assert "gelu" in capsys.readouterr().err
