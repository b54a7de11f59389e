"""The command that checks a GPU: without one it says so, and one failure hides no other."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import check_gpu

from styleforge_lib.paths import data_folder


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(check_gpu.gpu, "available", lambda: False)
    assert check_gpu.main([]) == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err


@pytest.fixture
def pretended(monkeypatch):
    """Pretend that there is a GPU, with three checks of which the second fails."""

    def fails(bench):
        raise ValueError("it is broken")

    monkeypatch.setattr(check_gpu.gpu, "available", lambda: True)
    monkeypatch.setattr(check_gpu.torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(check_gpu, "Bench", lambda: type("Bench", (), {"rows": []})())
    checks = [("first", lambda bench: "fine"), ("second", fails), ("third", lambda bench: "fine too")]
    monkeypatch.setattr(check_gpu, "CHECKS", checks)


def test_one_failure_hides_no_other(pretended, capsys, tmp_path):
    assert check_gpu.main(["--json", str(tmp_path / "out.json")]) == 1
    out = capsys.readouterr().out
    assert "pass  third" in out
    assert "2 of 3 checks passed; failed: second" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert [result["passed"] for result in written["checks"]] == [True, False, True]
    assert written["checks"][1]["said"] == "ValueError: it is broken"


def test_some_of_the_checks(pretended):
    assert check_gpu.main(["--only", "ir"]) == 0
    assert check_gpu.main(["--only", "nothing"]) == 1


def test_kernels_that_do_not_compile_fail_every_check(pretended, monkeypatch):
    monkeypatch.setattr(check_gpu, "Bench", lambda: 1 / 0)
    assert check_gpu.main([]) == 1


def test_the_kernels_of_the_checks_compile_for_every_generation(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    for arch in ("sm_75", "sm_90a"):
        module = check_gpu.compile_cuda(check_gpu.KERNELS, arch=arch)
        for name in module.kernels:
            module.kernel(name).resources.occupancy(128)
        assert module.kernel("spilling").resources.spill_stores > 0
        chain = check_gpu.compile_cuda(
            check_gpu.CHAIN, arch=arch, defines={"OVERLAP": 1}, options=(f"-I{data_folder('cuda')}",)
        )
        assert ("griddepcontrol.wait" in chain.ptx) == (arch == "sm_90a")
        assert chain.kernel("follow").parameters[2].dtype == "uint64"
