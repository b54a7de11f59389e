"""The command that compares the emulator with a GPU: it collects and runs every kernel, and it finds differences."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import compare_devices
from compare_devices import compare, difference, too_far
from kernel_plans import PLANS, Plan
from kernel_sources import Source, of_code

ADD = """extern "C" __global__ void add(const float* a, const float* b, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + b[i];
}"""


def row_of(text, **about):
    source = Source("here", text, **about)
    return compare(source, [source.compile("sm_80").only], dry=True)


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")


def test_dry_run_of_everything(tmp_path, capsys):
    """Every kernel is found, compiled for each architecture, has a plan, and gives one answer."""
    path = tmp_path / "out.json"
    status = compare_devices.main(["--dry-run", "--json", str(path)])
    said = capsys.readouterr().out
    assert status == 0, said
    rows = json.loads(path.read_text())["rows"]
    found = {(row["source"].partition("#")[0], row["kernel"]) for row in rows}
    assert {
        ("notebooks/01_first_kernel.ipynb", "relu_vector"),
        ("notebooks/01_first_kernel.ipynb", "relu_unguarded"),
        ("notebooks/02_measure_honestly.ipynb", "relu_vector"),  # a string in Python
        ("cuda/relu.cu", "relu_float16"),
        ("tools/device_probes.cu", "atomics_float"),
    } <= found
    both = [row["source"] for row in rows if row["kernel"] == "residual_add"]
    assert len(both) == 2, "the starter and its solution"
    assert all(row["verdict"] == "same" and row["differing"] == 0 for row in rows)
    assert [row["kernel"] for row in rows if not row["elements"]] == ["nothing"]
    assert len(rows) == len({(row["source"], row["kernel"]) for row in rows})
    assert f"{len(rows)} of {len(rows)} kernels agree" in said


def test_plans_are_for_kernels_that_exist():
    texts = [s.text if isinstance(s.text, str) else s.text.read_text("utf-8") for s in compare_devices.sources()]
    assert [name for name in PLANS if not any(f" {name}(" in text for text in texts)] == []


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(compare_devices.gpu, "available", lambda: False)
    assert compare_devices.main([]) == 2
    assert "--dry-run" in capsys.readouterr().err


@pytest.fixture
def pretended(monkeypatch):
    """Pretend that there is a GPU: the emulator, whose results `spoil` may change."""
    run, spoil = compare_devices.Buffers.run, {}

    def pretended_run(self, launch, device):
        held = run(self, launch, "cpu")
        if device == "cuda":
            for name, change in spoil.items():
                change(held[name], self.part[name].start)
        return held

    monkeypatch.setattr(compare_devices.gpu, "available", lambda: True)
    monkeypatch.setattr(compare_devices.torch.cuda, "get_device_name", lambda: "pretended")
    monkeypatch.setattr(compare_devices.Buffers, "run", pretended_run)
    in_this_process = lambda command: compare_devices.compare_all(compare_devices.sources(), "", False)  # noqa: E731
    monkeypatch.setattr(compare_devices, "outlived", in_this_process)
    monkeypatch.setattr(
        compare_devices, "sources", lambda: [Source("here", ADD), Source("there", ADD.replace("+ b", "- b"))]
    )
    return spoil


def test_devices_that_agree(pretended, capsys):
    assert compare_devices.main([]) == 0
    assert "2 of 2 kernels agree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "element", "value"),
    [
        pytest.param("out", 0, 12345.0, id="a value"),
        pytest.param("out", -1, 1.0, id="a write before the start"),
        pytest.param("a", 0, 12345.0, id="an input"),
    ],
)
def test_a_difference_is_found_and_shown(pretended, capsys, tmp_path, name, element, value):
    pretended[name] = lambda whole, start: whole.__setitem__(start + element, value)
    assert compare_devices.main(["--json", str(tmp_path / "out.json")]) == 1
    said = capsys.readouterr().out
    assert "0 of 2 kernels agree" in said
    assert f"{name} differs in 1" in said
    assert all(row["differing"] == 3 for row in json.loads((tmp_path / "out.json").read_text())["rows"])  # 3 sizes


def test_the_last_bit_counts_unless_the_kernel_is_approximate(pretended, monkeypatch):
    def last_bit(whole, start):
        at = next(k for k in range(start, len(whole)) if 1e-3 < abs(whole[k]) < 1e3)
        whole.view(torch.int32)[at] ^= 1

    pretended["out"] = last_bit
    monkeypatch.setitem(PLANS, "add", Plan(sizes=(4099,)))
    assert compare_devices.main([]) == 1
    monkeypatch.setitem(PLANS, "add", Plan(sizes=(4099,), within=2.0**-20))
    assert compare_devices.main([]) == 0
    pretended["out"] = lambda whole, start: whole.__setitem__(
        start, float("nan") if whole[start] == whole[start] else 1
    )
    assert compare_devices.main([]) == 1


def test_one_failure_hides_no_other(pretended, monkeypatch, capsys):
    broken = Source("broken", "this is not CUDA")
    wild = Source("wild", ADD.replace("if (i < n) ", ""))
    monkeypatch.setattr(compare_devices, "sources", lambda: [broken, wild, Source("here", ADD)])
    assert compare_devices.main([]) == 1
    said = capsys.readouterr().out
    assert "CompileError" in said
    assert "EmulatorFault" in said
    assert "1 of 3 kernels agree" in said


CHILD = """
import json, os, sys
def told(**what): os.write(int(os.environ["STYLEFORGE_COMPARE_PIPE"]), (json.dumps(what) + chr(10)).encode())
done, kernels = int(sys.argv[-1]), ["fine", "wild", "good", "fatal", "last"]
for name in kernels[done:]:
    told(begun="here:" + name)
    if name == "fatal":
        os.abort()
    told(row={"kernel": name, "source": "here", "verdict": "ERROR" if name == "wild" else "same"})
    if name == "wild":
        sys.exit(75)
"""


def test_a_kernel_that_costs_its_process_the_card_hides_no_other():
    rows = list(compare_devices.outlived([sys.executable, "-c", CHILD]))
    assert [(row.kernel, row.verdict) for row in rows] == [
        ("fine", "same"),
        ("wild", "ERROR"),
        ("good", "same"),
        ("fatal", "ERROR"),
        ("last", "same"),
    ]
    assert "ended in the middle of it, with status -6" in rows[3].said
    (row,) = compare_devices.outlived([sys.executable, "-c", "import sys; sys.exit(3)"])
    assert "status 3 before any kernel" in row.said


@pytest.mark.parametrize("card_is_lost", [True, False])
def test_a_process_tells_its_rows_and_that_it_lost_the_card(pretended, monkeypatch, card_is_lost):
    def fails(whole, start):
        raise RuntimeError("an illegal instruction was encountered")

    pretended["out"] = fails
    reading, writing = os.pipe()
    monkeypatch.setenv(compare_devices.PIPE, str(writing))
    monkeypatch.setattr(compare_devices, "lost", lambda: card_is_lost)
    assert compare_devices.main(["--tell-from", "0"]) == (compare_devices.LOST if card_is_lost else 0)
    assert compare_devices.main(["--tell-from", "1"]) == (compare_devices.LOST if card_is_lost else 0)
    os.close(writing)
    with open(reading) as lines:
        said = [json.loads(line) for line in lines]
    assert [message["begun"] for message in said if "begun" in message] == (
        ["here:add", "there:add"] if card_is_lost else ["here:add", "there:add", "there:add"]
    )
    assert all("illegal instruction" in message["row"]["said"] for message in said if "row" in message)


def test_a_kernel_that_cannot_be_guessed_is_named():
    row = row_of('extern "C" __global__ void odd(const float* x, float* out, int rows, int columns) { out[0] = x[0]; }')
    assert row.verdict == "ERROR"
    assert "no plan for <Kernel odd(" in row.said
    assert "PLANS" in row.said
    row = row_of('extern "C" __global__ void in_place(float* x, int n) { x[0] = 1; }')
    assert "no plan" in row.said


def test_a_kernel_that_writes_nothing_is_an_error_unless_it_is_a_gap():
    text = 'extern "C" __global__ void idle(const float* x, float* out, int n) {}'
    assert "wrote nothing" in row_of(text).said
    assert row_of(text, gap=True).verdict == "same"


def test_an_exact_kernel_leaves_nothing_to_the_compiler(monkeypatch):
    text = ADD.replace("a[i] + b[i]", "a[i] - b[i] * b[i]")
    row = row_of(text)
    assert row.verdict == "LEFT OPEN"
    assert not row.passed
    assert "mul.f32" in row.said
    assert "__fmul_rn" in row.said
    assert row_of(text.replace("b[i] * b[i]", "__fmul_rn(b[i], b[i])")).verdict == "same"
    monkeypatch.setitem(PLANS, "add", Plan(within=2.0**-20))
    assert row_of(text).verdict == "same", "an approximate kernel may"


def test_only_some_texts(monkeypatch, capsys):
    monkeypatch.setattr(compare_devices, "sources", lambda: [Source("here", ADD), Source("broken", "not CUDA")])
    assert compare_devices.main(["--dry-run", "--from", "here"]) == 0
    assert "1 of 1 kernels agree" in capsys.readouterr().out
    assert compare_devices.main(["--dry-run"]) == 1


def test_where_kernels_are_found():
    starter, solved = (
        "%%cuda f -D N=4 -D FAST\n__global__ void f() {\n    // ▼ yours\n" + body + "    // ▲\n}"
        for body in ("", "    int i = N;\n")
    )
    (source,) = of_code("here", starter)
    assert source.defines == (("N", "4"), ("FAST", True))
    assert source.gap
    assert not next(of_code("here", solved)).gap
    python = '%load_ext x\na = "one"\nk = compile_cuda("""__global__ void g() {}""")\n'
    assert [source.text for source in of_code("here", python)] == ["__global__ void g() {}"]
    with pytest.raises(ValueError, match="f-string"):
        list(of_code("here", 'compile_cuda(f"__global__ void g() {{ {body} }}")'))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_difference_in_ulp(dtype):
    info, nan = torch.finfo(dtype), float("nan")
    tiny = info.tiny * info.eps
    a = torch.tensor([1.0, 1.0, 0.0, tiny, nan, nan, info.max, -1.0], dtype=dtype)
    b = torch.tensor([1.0, 1 + 2 * info.eps, -0.0, -tiny, nan, 1.0, float("inf"), 1.0], dtype=dtype)
    b[4:5].view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])[0] ^= 1  # another NaN
    differs, ulp = difference(a, b)
    assert differs.tolist() == [False, True, True, True, False, True, True, True]
    assert ulp[[0, 1, 2, 3, 4, 6]].tolist() == [0, 2, 1, 3, 0, 1]
    assert ulp[5] == 2.0 ** (8 * dtype.itemsize) - 1 or ulp[5] == 2.0 ** (8 * dtype.itemsize)
    assert too_far(a, b, 2.5 * info.eps).tolist() == [False, False, False, False, False, True, True, True]


def test_difference_of_integers():
    a = torch.tensor([0, 2**32 - 1, 5], dtype=torch.int64).to(torch.uint32)
    b = torch.tensor([0, 2**32 - 2, 5], dtype=torch.int64).to(torch.uint32)
    assert difference(a, b)[0].tolist() == [False, True, False]


def test_hostile_data_hold_every_kind_of_value():
    x = compare_devices.hostile((4099,), torch.Generator().manual_seed(1), torch.float32).numpy()
    assert np.isnan(x).any()
    assert np.isinf(x).any()
    assert ((np.abs(x) < np.finfo(np.float32).tiny) & (x != 0)).any()
    assert (np.signbit(x) & (x == 0)).any()
    k = compare_devices.hostile((4099,), torch.Generator().manual_seed(1), torch.int32)
    assert {-(2**31), 2**31 - 1, 0, 31} <= set(k.tolist())
