"""The %%cuda cell, in a real IPython shell; the same calls work in IPython 7.34, which Colab has, and in 9."""

import sys
import types

import pytest
import torch

pytest.importorskip("IPython")
import IPython
from IPython.core.interactiveshell import InteractiveShell

from styleforge_lib.runtime import CompileError, Module

RELU = """extern "C" __global__ void relu(float* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] = fmaxf(x[i], FLOOR);
}
"""


@pytest.fixture
def shell(monkeypatch, tmp_path):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(colors="nocolor" if IPython.version_info[0] >= 9 else "NoColor")
    shell.run_line_magic("load_ext", "styleforge_lib")
    yield shell
    InteractiveShell.clear_instance()


def run(shell, cell):
    return shell.run_cell(cell, store_history=False)


def test_it_binds_the_name_and_reports_in_one_line(shell, capsys):
    result = run(shell, f"%%cuda relu -D FLOOR=0.0f\n{RELU}")
    assert result.success
    assert result.result is None
    out = capsys.readouterr().out
    assert out.startswith("relu: ")
    assert out.count("\n") == 1
    assert "registers, 0 B shared, no spills (sm_80), on the emulator" in out
    module = shell.user_ns["relu"]
    assert isinstance(module, Module)
    assert module.kernels == ("relu",)
    assert run(shell, "relu.resources.registers").result == module.resources.registers


def test_options(shell, capsys):
    assert run(shell, f"%%cuda relu -D FLOOR=LOWEST -D LOWEST=1 -DUNUSED --arch sm_75\n{RELU}").success
    assert "(sm_75)" in capsys.readouterr().out


def test_several_kernels_have_a_line_each(shell, capsys):
    other = RELU.replace("relu", "other")
    assert run(shell, f"%%cuda both -D FLOOR=0\n{RELU}{other}").success
    assert sorted(line.split(":")[0] for line in capsys.readouterr().out.splitlines()) == ["other", "relu"]
    assert set(shell.user_ns["both"].kernels) == {"relu", "other"}


def test_an_error_points_at_the_line_of_the_cell(shell, capsys):
    result = run(shell, f"%%cuda relu\n{RELU}")
    assert isinstance(result.error_in_exec, CompileError)  # so that "Run all" stops here
    out = capsys.readouterr().out
    assert 'line 4: identifier "FLOOR" is undefined' in out
    assert ">   4 |   if (i < n) x[i] = fmaxf(x[i], FLOOR);" in out
    assert "Traceback" not in out
    assert ".py" not in out
    assert "relu" not in shell.user_ns


def test_a_failed_cell_leaves_the_former_kernel(shell, capsys):
    run(shell, f"%%cuda relu -D FLOOR=0\n{RELU}")
    module = shell.user_ns["relu"]
    assert not run(shell, f"%%cuda relu\n{RELU}").success
    assert shell.user_ns["relu"] is module


def test_warnings_are_told_with_their_line(shell, capsys):
    run(shell, f"%%cuda relu -D FLOOR=0\n{RELU.replace('int i =', 'int unused; int i =')}")
    assert 'line 3: warning: variable "unused" was declared but never referenced' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        (f"%%cuda 3x\n{RELU}", "must be a Python identifier"),
        (f"%%cuda class\n{RELU}", "must be a Python identifier"),
        (f"%%cuda\n{RELU}", "name"),
        (f"%%cuda relu --nonsense\n{RELU}", "nonsense"),
        (f"%%cuda relu --arch ampere\n{RELU}", "ampere"),
        (f"%%cuda relu --arch compute_80 -D FLOOR=0\n{RELU}", "real architecture"),
        (f"%%cuda relu -D 1=2\n{RELU}", "not the name of a macro"),
        ("%%cuda relu\n__device__ int f() { return 1; }\n", "no kernel"),
        ('%%cuda relu\nstruct P { int a; };\nextern "C" __global__ void k(P* p) {}\n', "points to P"),
    ],
)
def test_a_wrong_line_is_one_message(shell, capsys, cell, complaint):
    assert not run(shell, cell).success
    captured = capsys.readouterr()
    assert complaint in captured.out + captured.err
    assert "Traceback" not in captured.out + captured.err


def test_xray_shows_each_launch_and_launches(shell, capsys, monkeypatch):
    seen, launched = [], []

    def xray(kernel, grid, block, args, *, shared_bytes=0, cooperative=False):
        args[0].fill_(9)  # the x-ray runs the kernel: it must be given copies
        seen.append((kernel.name, grid, block, args[1], shared_bytes))
        return types.SimpleNamespace(show=lambda: seen.append("shown"))

    monkeypatch.setitem(sys.modules, "styleforge_lib.lab.xray", types.SimpleNamespace(xray=xray))
    assert run(shell, f"%%cuda relu -D FLOOR=0 --xray\n{RELU}").success
    bound = shell.user_ns["relu"]
    program = types.SimpleNamespace(launch=lambda name, grid, block, args, **options: launched.append(args[0].copy()))
    bound.module.__dict__["program"] = program
    x = torch.ones(4)
    bound((1,), (32,), (x, 4), shared_bytes=8)
    assert seen == [("relu", (1,), (32,), 4, 8), "shown"]
    assert launched[0].tolist() == [1, 1, 1, 1]
    assert bound.resources.registers > 0
