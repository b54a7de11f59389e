"""Translations on disk: the same results, and nothing is taken from a file that is damaged or not the user's own."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import compile_ptx

from styleforge_lib.runtime.emulator import Program, Trace, program, translation_cache

TEXT = r"""
extern "C" __global__ void k(const float* x, float* y, int n) {
  __shared__ float s[64]; int i = threadIdx.x;
  s[i] = x[i] * 1.5f + 0.1f; __syncthreads();
  float v = 0; for (int j = 0; j <= i % n; j++) v += s[j] / 3.0f;
  y[i] = i & 1 ? v : -0.0f;
}
extern "C" __global__ void permute(unsigned* y, unsigned a) { y[threadIdx.x] = __byte_perm(a, threadIdx.x, threadIdx.x * 0x1111); }
"""  # noqa: E501


@pytest.fixture(scope="module")
def ptx():
    return compile_ptx(TEXT)


def run(ptx, folder, trace=None):
    x, y, z = np.arange(64, dtype=np.float32), np.zeros(64, np.float32), np.zeros(32, np.uint32)
    emulated = Program(ptx, cache=folder)
    emulated.launch("k", (1,), (64,), (x, y, np.int32(7)), trace=trace)
    emulated.launch("permute", (1,), (32,), (z, np.uint32(0x12345678)))
    return np.concatenate([y.view(np.uint32), z])


def never(*_):
    raise AssertionError("it was translated again")


def test_second_program_does_not_translate(ptx, tmp_path, monkeypatch):
    wanted = run(ptx, None)
    fresh, kept = Trace(), Trace()
    assert np.array_equal(run(ptx, tmp_path, fresh), wanted)
    assert len(list(tmp_path.glob("*.py"))) == 2
    monkeypatch.setattr(program, "translate_block", never)
    assert np.array_equal(run(ptx, tmp_path, kept), wanted)
    assert fresh.lines() == kept.lines()
    with pytest.raises(AssertionError, match="translated again"):
        run(ptx, None)


@pytest.mark.parametrize("change", ["cut", "other byte", "empty", "not text"])
def test_a_damaged_file_is_translated_again(ptx, tmp_path, change):
    wanted = run(ptx, tmp_path)
    for path in tmp_path.glob("*.py"):
        data = path.read_bytes()
        damaged = {
            "cut": data[: len(data) // 2],
            "other byte": data.replace(b"np", b"no", 1),
            "empty": b"",
            "not text": b"\xff" * 99,
        }
        path.write_bytes(damaged[change])
        assert translation_cache.read(tmp_path, path.stem) is None
    assert np.array_equal(run(ptx, tmp_path), wanted)
    assert all(translation_cache.read(tmp_path, path.stem) is not None for path in tmp_path.glob("*.py"))


def test_a_damaged_compiled_copy_is_translated_again(ptx, tmp_path):
    wanted = run(ptx, tmp_path)
    run(ptx, tmp_path)
    copies = list(tmp_path.glob("__pycache__/*.pyc"))
    assert len(copies) == 2 or sys.dont_write_bytecode
    for path in copies:
        path.write_bytes(path.read_bytes()[:40])
    assert np.array_equal(run(ptx, tmp_path), wanted)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no such modes")
@pytest.mark.parametrize("whose", ["file", "folder"])
def test_what_others_may_write_is_not_run(ptx, tmp_path, monkeypatch, whose):
    run(ptx, tmp_path)
    (path, other) = tmp_path.glob("*.py")
    assert translation_cache.read(tmp_path, path.stem) is not None
    if whose == "folder":
        tmp_path.chmod(0o770)
    else:
        path.chmod(0o666)
        other.chmod(0o666)
    assert translation_cache.read(tmp_path, path.stem) is None
    tmp_path.chmod(0o700)
    path.chmod(0o600)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert translation_cache.read(tmp_path, path.stem) is None


def test_whatever_changes_the_translation_changes_the_key(ptx, monkeypatch):
    key = translation_cache.key_of(ptx, "k", ["kernel.cu"])
    others = [
        translation_cache.key_of(ptx + " ", "k", ["kernel.cu"]),
        translation_cache.key_of(ptx, "permute", ["kernel.cu"]),
        translation_cache.key_of(ptx, "k", []),
    ]
    translation_cache._version.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(np, "__version__", "0.0")
        others.append(translation_cache.key_of(ptx, "k", ["kernel.cu"]))
    translation_cache._version.cache_clear()
    assert key == translation_cache.key_of(ptx, "k", ["kernel.cu"])
    assert len({key, *others}) == 5


def test_a_folder_that_cannot_be_made_is_no_error(ptx, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert np.array_equal(run(ptx, tmp_path / "file" / "folder"), run(ptx, None))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_writers_at_once(ptx, tmp_path):
    """Each of some processes finds either nothing or a whole file."""
    (tmp_path / "k.ptx").write_text(ptx)
    text = (
        "import sys, numpy as np; from pathlib import Path; from styleforge_lib.runtime.emulator import Program\n"
        "folder = Path(sys.argv[1])\n"
        "for _ in range(5):\n"
        "    z = np.zeros(32, np.uint32)\n"
        "    Program((folder / 'k.ptx').read_text(), cache=folder).launch('permute', (1,), (32,), (z, np.uint32(7)))\n"
        "    for path in folder.glob('*.py'): path.unlink(missing_ok=True)\n"
        "print(z.sum())\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", text, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    sums = {worker.communicate()[0] for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(sums) == 1
    assert not list(tmp_path.glob("*.tmp"))
