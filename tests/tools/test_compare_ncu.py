"""The command that holds the emulator's counts against Nsight Compute's: every step, with a made-up profiler."""

import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import compare_ncu
from compare_ncu import METRICS, compare, emulate, own_csv, read_csv

# Of each probe: sectors a global load, sectors a global store or atomic, passes a shared load. By hand, from the text.
BY_HAND = {
    "coalesced": (4, 4, None),
    "strided_2": (8, 4, None),
    "strided_8": (32, 4, None),
    "strided_32": (32, 4, None),
    "misaligned": (5, 4, None),
    "broadcast": (1, 4, None),
    "few_lanes": (1, 1, None),
    "bytes": (1, 1, None),
    "halves": (2, 2, None),
    "half2_add": (4, 4, None),
    "float2_copy": (8, 8, None),
    "float4_copy": (16, 16, None),
    "float4_strided": (32, 16, None),
    "float4_repeated": (4, 16, None),
    "strided_store": (4, 8, None),
    "misaligned_store": (4, 5, None),
    "atomics_without_result": (4, 4, None),
    "atomics_colliding": (4, 1, None),
    "shared_rows": (4, 4, 1),
    "shared_stride_2": (4, 4, 2),
    "shared_broadcast": (4, 4, 1),
    "shared_halves": (4, 2, 1),
    "transpose_unpadded": (4, 4, 32),
    "transpose_padded": (4, 4, 1),
    "shared_float2": (4, 8, 2),
    "shared_float4": (4, 16, 4),
    "shared_float4_stride_2": (4, 16, 8),
    "ldmatrix_x1": (4, 4, 8),
    "ldmatrix_x2": (4, 8, 16),
    "ldmatrix_x4": (4, 16, 32),
    "ldmatrix_x4_padded": (4, 16, 4),
    "ldmatrix_x4_trans": (4, 16, 4),
    "async_copy_4": (4, 4, 1),
    "async_copy_16": (16, 16, 4),
}


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch):
    monkeypatch.setenv("STYLEFORGE_DEVICE", "emulator")


@pytest.fixture(scope="module")
def emulated():
    return emulate("sm_80")


def per_request(count):
    return None if count is None else count.units / count.requests


def test_the_emulators_counts_are_those_of_the_text(emulated):
    found = {}
    for name, probe in emulated.items():
        kept = probe.counts.get(("global", "atomic")) or probe.counts.get(("global", "store"))
        loads = probe.counts.get(("global", "load")), kept, probe.counts.get(("shared", "load"))
        found[name] = tuple(map(per_request, loads))
    assert {name: found[name] for name in BY_HAND} == BY_HAND
    gathered = found["gather"][0]
    assert 8 < gathered < 32, "lanes of a warp meet in some sectors"
    assert all(np.any(probe.out != 0) for probe in emulated.values())


def test_dry_run(capsys, tmp_path):
    kept = tmp_path / "ncu.csv"
    assert compare_ncu.main(["--dry-run", "--keep", str(kept)]) == 0
    said = capsys.readouterr().out
    assert "transpose_unpadded" in said
    assert "0 are not" in said
    assert "1,024" in kept.read_text() or "2,048" in kept.read_text(), "with thousands separators, as ncu writes them"


def test_without_a_gpu_or_without_ncu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(compare_ncu.gpu, "available", lambda: False)
    assert compare_ncu.main([]) == 2
    assert "no NVIDIA GPU here" in capsys.readouterr().err
    monkeypatch.setattr(compare_ncu.gpu, "available", lambda: True)
    assert compare_ncu.main(["--ncu", str(tmp_path / "none")]) == 2
    assert "no ncu" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------------
# A profiler that is made up


PROFILER = """#!{python}
import pathlib, shutil, subprocess, sys
arguments = sys.argv[1:]
if "--version" in arguments:
    print("NVIDIA (R) Nsight Compute Command Line Profiler\\nVersion 2025.3.1.0 (build 1) (public-release)")
elif "--query-metrics" in arguments:
    print(pathlib.Path({metrics!r}).read_text())
else:
    log = arguments[arguments.index("--log-file") + 1]
    child = arguments[arguments.index("--log-file") + 2:]
    pathlib.Path({arguments!r}).write_text("\\n".join(arguments))
    pathlib.Path(log).write_text(pathlib.Path({csv!r}).read_text())
    if {launches}:
        sys.exit(subprocess.run(child).returncode)
    shutil.copy({results!r}, child[child.index("--launch") + 1])
    sys.exit({status})
"""


@pytest.fixture
def profiler(monkeypatch, tmp_path, emulated):
    """Return a function that makes an `ncu` which prints a table, and launches the child if asked; pretend a GPU."""
    monkeypatch.setattr(compare_ncu.gpu, "available", lambda: True)
    monkeypatch.setattr(compare_ncu.gpu, "card_arch", lambda: "sm_80")
    monkeypatch.setattr(compare_ncu, "emulate", lambda arch: emulated)
    np.savez(tmp_path / "results.npz", **{name: probe.out for name, probe in emulated.items()})

    def make(text, status=0, launches=False):
        names = {name.removesuffix(".sum") for counters in METRICS.values() for name in counters.every()}
        (tmp_path / "metrics").write_text("Device NVIDIA H200\n" + "\n".join(f"{name}   Counter  #" for name in names))
        (tmp_path / "table").write_text(text)
        path = tmp_path / "ncu"
        files = {"metrics": "metrics", "csv": "table", "arguments": "arguments", "results": "results.npz"}
        files = {key: str(tmp_path / name) for key, name in files.items()}
        path.write_text(PROFILER.format(python=sys.executable, status=status, launches=launches, **files))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return ["--ncu", str(path), "--json", str(tmp_path / "record.json")]

    return make


def test_the_profiler_is_run_once_for_everything(profiler, emulated, tmp_path):
    assert compare_ncu.main(profiler(own_csv(emulated), launches=True)) == 0
    said = (tmp_path / "arguments").read_text().split("\n")
    metrics = said[said.index("--metrics") + 1].split(",")
    assert "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum" in metrics
    assert not set(metrics) & set(compare_ncu.ASIDE) - {n for c in METRICS.values() for n in c.every()}, "card lacks it"
    assert said[said.index("--clock-control") + 1] == "none"
    assert "coalesced" in said[said.index("--kernel-name") + 1]
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["machine"]["ncu"] == "2025.3.1.0"
    assert {row["verdict"] for row in record["rows"]} <= {"agrees", "explained"}
    assert len({row["kernel"] for row in record["rows"]}) == len(emulated) >= 12


def test_another_count_fails(profiler, emulated, capsys):
    text = own_csv(emulated)
    line = next(n for n in text.splitlines() if "strided_8(" in n and "t_sectors" in n and "op_ld.sum" in n)
    assert '"2,048"' in line
    assert compare_ncu.main(profiler(text.replace(line, line.replace("2,048", "2,008")))) == 0, "within 2 %"
    assert compare_ncu.main(profiler(text.replace(line, line.replace("2,048", "1,999")))) == 1
    assert "failed: strided_8, global load" in capsys.readouterr().out
    without = "\n".join(n for n in text.splitlines() if "strided_8(" not in n or "_global_op_ld" not in n)
    assert compare_ncu.main(profiler(without)) == 1
    assert "MISSING: ncu has no value" in capsys.readouterr().out


def test_what_only_ncu_counts_is_a_difference(emulated):
    counted = read_csv(own_csv(emulated))
    counted["coalesced"]["smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_st.sum"] = 64.0
    assert [(r.kernel, r.verb) for r in compare(emulated, counted) if not r.passed] == [("coalesced", "store")]


def test_an_explanation_holds_while_there_is_a_difference(emulated, monkeypatch):
    counted = read_csv(own_csv(emulated))
    monkeypatch.setattr(compare_ncu, "EXPLAINED", {("coalesced", ("global", "load")): "because"})
    assert [row.verdict for row in compare(emulated, counted) if row.kernel == "coalesced"] == ["DIFFERENT", "agrees"]
    counted["coalesced"]["l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum"] *= 2
    assert [row.verdict for row in compare(emulated, counted) if row.kernel == "coalesced"] == ["explained", "agrees"]


def test_a_profiler_that_fails_is_told(profiler, emulated, capsys):
    text = "==PROF== Connected\n==ERROR== ERR_NVGPUCTRPERM - no permission to read the counters\n"
    assert compare_ncu.main(profiler(text, status=9)) == 1
    assert "ERR_NVGPUCTRPERM" in capsys.readouterr().err
    assert compare_ncu.main(profiler("==WARNING== No kernels were profiled.\n")) == 1
    assert "No kernels were profiled" in capsys.readouterr().err


def test_other_results_fail(profiler, emulated, tmp_path, capsys):
    command = profiler(own_csv(emulated))
    results = {name: probe.out.copy() for name, probe in emulated.items()}
    results["gather"][7] += 1
    del results["bytes"]
    np.savez(tmp_path / "results.npz", **results)
    assert compare_ncu.main(command) == 1
    assert "other results than in the emulator: gather, bytes" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# Tables of ncu


LOADS = "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum"
WIDE = f"""==PROF== Connected to process 171 (/usr/bin/python3.12)
==PROF== Profiling "coalesced": 0%....50%....100% - 8 passes
"ID","Process ID","Kernel Name","Block Size","CC","{LOADS}","launch__registers_per_thread"
"","","","","","sector","register/thread"
"0","171","coalesced","(256, 1, 1)","9.0","1,024.00","16"
"1","171","void strided<float>(float const *)","(256, 1, 1)","9.0","n/a","16"
==PROF== Disconnected from process 171
"""


def test_a_table_with_a_row_for_each_kernel():
    found = read_csv(WIDE)
    assert found["coalesced"] == {LOADS: 1024}, "what was not asked for is left out"
    assert found["strided<float>"] == {}


def test_a_table_with_a_row_for_each_metric(emulated):
    found = read_csv(own_csv(emulated))
    assert found.keys() == emulated.keys()
    assert found["strided_8"]["l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum"] == 2048


def test_a_kernel_that_was_launched_twice_is_refused():
    with pytest.raises(ValueError, match="launched twice"):
        read_csv(WIDE + WIDE.splitlines()[4].replace('"0"', '"7"') + "\n")


def test_the_emulator_still_agrees_with_the_record(tmp_path, capsys):
    path = tmp_path / "record.json"
    status = compare_ncu.main(["--again", "--json", str(path)])
    assert status == 0, capsys.readouterr().out
    record = json.loads(compare_ncu.RECORD.read_text())
    assert json.loads(path.read_text()) == record
    assert record["machine"]["gpu"] == "NVIDIA H200"
    assert not record["other_results"]
    agreeing = {row["kernel"] for row in record["rows"]} - {row["kernel"] for row in record["rows"] if row["said"]}
    assert len(agreeing) >= 12


def test_explanations_are_of_probes_that_exist(emulated):
    assert {kernel for kernel, _ in compare_ncu.EXPLAINED} <= emulated.keys()
