"""The peers and a changed network, with this CPU standing in for the GPU and a bench that only takes notes."""

import pytest
import torch

from styleforge_lib.lab import bench_network, peers, records
from styleforge_lib.lab.bench import Table
from styleforge_lib.lab.records import Measurement


@pytest.fixture
def measured(monkeypatch):
    """Let everything run on the CPU; return what the bench is asked to time."""
    load, asked = peers.load_style, []

    def noted(operator, candidates, **options):
        (candidate,) = candidates
        asked.append((operator, options["shape"], candidate, options["peers"], torch.backends.cudnn.allow_tf32))
        return Table([])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(peers, "load_style", lambda style, device: load(style))
    monkeypatch.setattr(peers, "graphed", lambda run: run)
    monkeypatch.setattr(peers, "bench", noted)
    return asked


def switches():
    return torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_a_changed_network_is_measured_beside_the_one_it_was(measured):
    before = switches()

    def doubled(net):
        net.deconv3.conv2d.weight.mul_(2)
        return net

    bench_network("doubled", doubled, 16, 20)
    assert switches() == before
    names = [(c.version, c.dtype, c.layout) for _, _, c, _, _ in measured]
    assert names == [
        ("eager + benchmark", "tf32", "nchw"),
        ("doubled", "tf32", "nchw"),
        ("doubled + graph", "tf32", "nchw"),
        ("eager + benchmark", "float16", "nhwc"),
        ("doubled", "float16", "nhwc"),
        ("doubled + graph", "float16", "nhwc"),
    ]
    for operator, shape, candidate, beside, tf32 in measured:
        assert (operator, shape, tf32) == ("transformer_net", "1x3x16x20", True)
        assert beside == ";".join(f"{version}/{dtype}" for version, dtype, _ in names)
        assert (candidate.psnr_db > 50) == (candidate.version == "eager + benchmark")  # each knows its own error
        assert candidate.flops > 1e6


def test_the_peers_in_every_precision(measured):
    before = switches()
    peers.bench_peers(16, 16, compiled=False)
    assert switches() == before
    assert [c.version for _, _, c, _, _ in measured] == 3 * ["eager", "eager + benchmark", "eager + graph"]
    assert [tf32 for *_, tf32 in measured] == 3 * [False] + 6 * [True]
    assert all(c.psnr_db > 50 for _, _, c, _, _ in measured)


def test_without_a_gpu_the_record_is_replayed(tmp_path, monkeypatch):
    rows = [
        Measurement(operator="transformer_net", version=version, shape="1x3x8x8", dtype="tf32", median_ms=ms, p20_ms=ms,
                    p80_ms=ms, gpu="GPU A", run="2026-11-01T")
        for version, ms in (("eager + benchmark", 3.0), ("faster", 1.0), ("another", 2.0))
    ]  # fmt: skip
    records.append(rows, tmp_path / "measurements.csv")
    monkeypatch.setattr(records, "committed_path", lambda: tmp_path / "measurements.csv")
    monkeypatch.setenv("STYLEFORGE_RECORDS", str(tmp_path / "local.csv"))
    table = bench_network("faster", lambda net: pytest.fail("nothing is measured here"), 8, 8)
    assert [row.version for row in table] == ["eager + benchmark", "faster"]
    assert "faster float16" in table.note
