"""The command that looks at the network's kernels with Nsight Compute: parser and record, without a profiler."""

import json
import stat
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import ncu_network
from ncu import launches
from ncu_network import by_layer, made_up, wanted_metrics

STEPS = [["conv1", "HopperFromPicture", True], ["res1.conv1", "Hopper", True], ["deconv3", "HopperToPicture", False]]
TENSOR = "sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_elapsed"
TABLE = f"""==PROF== Connected to process 171 (/usr/bin/python3.12)
"ID","Process ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum","{TENSOR}","sm__cycles_elapsed.max"
"","","","ns","byte","%","cycle"
"0","171","conv2d_from_picture_hopper(const float *, int)","60,128","12,345,678","31.5","n/a"
"1","171","close_planes","2,048","0","0","3,500"
"2","171","void conv2d_hopper(const __half *)","35,000","11,000,000","61.25","59,000"
"3","171","close_planes","2,016","0","0","3,400"
"4","171","conv2d_to_picture_hopper","66,000","1","22","110,000"
"""


def test_each_launch_has_its_layer():
    rows = by_layer(launches(TABLE), STEPS)
    assert [(row["layer"], row["kernel"]) for row in rows] == [
        ("conv1", "conv2d_from_picture_hopper"),
        ("conv1", "close_planes"),
        ("res1.conv1", "conv2d_hopper"),
        ("res1.conv1", "close_planes"),
        ("deconv3", "conv2d_to_picture_hopper"),
    ]
    assert rows[0]["ns"] == 60128
    assert rows[0]["dram_read"] == 12_345_678
    assert rows[0]["cycles"] is None, "n/a"
    assert rows[2]["tensor_percent"] == rows[2]["wgmma_percent"] == 61.25, "the counter that the card has"
    shown = ncu_network.table(rows).splitlines()[3].split()
    assert shown[:4] == ["res1.conv1", "conv2d_hopper", "35.0", "61"]
    assert shown[4] == "-", "not counted"


def test_other_launches_than_the_plans_are_refused():
    without = "\n".join(line for line in TABLE.splitlines() if "deconv" not in line and "to_picture" not in line)
    with pytest.raises(ValueError, match=r"3 layers, and ncu saw 2 of their launches: conv2d_from_picture_hopper, cl"):
        by_layer(launches(without), STEPS)
    with pytest.raises(ValueError, match="no table of ncu"):
        launches("==WARNING== No kernels were profiled.\n")


def test_what_a_dry_run_reads():
    rows = by_layer(launches(made_up(STEPS)), STEPS)
    assert [row["layer"] for row in rows] == ["conv1", "conv1", "res1.conv1", "res1.conv1", "deconv3"]
    assert all(value is not None for row in rows for value in row.values())


PROFILER = """#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
if "--version" in arguments:
    print("Version 2025.3.1.0 (build 1)")
elif "--query-metrics" in arguments:
    print("gpu__time_duration   Counter\\ndram__bytes_read  Counter")
else:
    assert arguments[arguments.index("--profile-from-start") + 1] == "off"
    pathlib.Path({asked!r}).write_text(arguments[arguments.index("--metrics") + 1])
    pathlib.Path(arguments[arguments.index("--log-file") + 1]).write_text({table!r})
    pathlib.Path(arguments[arguments.index("--launch") + 1], "steps.json").write_text(json.dumps({steps!r}))
"""


def test_the_record_of_a_profiler(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ncu_network.gpu, "available", lambda: True)
    path, asked, record = tmp_path / "ncu", tmp_path / "asked", tmp_path / "record.json"
    path.write_text(PROFILER.format(python=sys.executable, asked=str(asked), table=TABLE, steps=STEPS))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    assert ncu_network.main(["--ncu", str(path), "--json", str(record)]) == 0
    assert "5 launches, 0.165 ms one by one" in capsys.readouterr().out
    kept = json.loads(record.read_text())
    assert kept["machine"]["ncu"] == "2025.3.1.0"
    assert kept["shape"] == "1x3x1024x1024"
    assert len(kept["rows"]) == 5
    of_launches = [name for name in wanted_metrics() if name.startswith("launch__")]
    assert asked.read_text().split(",") == ["gpu__time_duration.sum", "dram__bytes_read.sum", *of_launches]
    path.write_text(PROFILER.format(python=sys.executable, asked=str(asked), table="==ERROR== none", steps=STEPS))
    assert ncu_network.main(["--ncu", str(path), "--json", str(record)]) == 1
    assert "not profiled: no table of ncu" in capsys.readouterr().err


def test_without_a_gpu_or_without_ncu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ncu_network.gpu, "available", lambda: False)
    assert ncu_network.main([]) == 2
    assert "no NVIDIA GPU here" in capsys.readouterr().err
    monkeypatch.setattr(ncu_network.gpu, "available", lambda: True)
    assert ncu_network.main(["--ncu", str(tmp_path / "none")]) == 2
    assert "no ncu" in capsys.readouterr().err
