"""Occupancy, by the rules of cuda_occupancy.h; tools/check_gpu.py holds the same against a driver."""

import pytest

from styleforge_lib.runtime.resources import LIMITS, Resources, parse_ptxas

# Worked by hand: 65536 registers in units of 256 a warp and four partitions, shared memory in units of 128 bytes and
# 1 KiB taken from each block (sm_75: units of 256, nothing taken).
CASES = [
    # arch, registers, static shared, barriers, block, dynamic shared -> blocks, limited by
    ("sm_80", 32, 0, 0, 256, 0, 8, "threads"),
    ("sm_80", 33, 0, 0, 256, 0, 6, "registers"),  # 1280 a warp: 12 warps a partition, 48 in all
    ("sm_80", 255, 0, 0, 256, 0, 1, "registers"),
    ("sm_80", 255, 0, 0, 288, 0, 0, "registers"),  # 9 warps count as 12: 12 * 8192 is more than there is
    ("sm_80", 16, 0, 1, 32, 0, 32, "blocks"),
    ("sm_80", 16, 0, 16, 32, 0, 4, "barriers"),
    ("sm_80", 16, 20 * 1024, 1, 128, 0, 7, "shared memory"),  # 21 KiB of 164
    ("sm_80", 16, 0, 1, 128, 163 * 1024, 1, "shared memory"),
    ("sm_80", 16, 0, 1, 128, 163 * 1024 + 1, 0, "shared memory"),
    ("sm_75", 16, 0, 1, 256, 0, 4, "threads"),
    ("sm_75", 16, 0, 1, 256, 32 * 1024, 2, "shared memory"),
    ("sm_86", 16, 0, 1, 512, 0, 3, "threads"),
    ("sm_86", 16, 0, 1, 32, 0, 16, "blocks"),
    ("sm_89", 16, 0, 1, 32, 0, 24, "blocks"),
    ("sm_90a", 168, 0, 1, 384, 0, 1, "registers"),
    ("sm_90", 16, 0, 1, 128, 227 * 1024, 1, "shared memory"),
    ("sm_100a", 64, 0, 1, 1024, 0, 1, "registers"),
    ("sm_120", 40, 48 * 1024, 1, 128, 0, 2, "shared memory"),
]


@pytest.mark.parametrize(("arch", "registers", "static", "barriers", "block", "dynamic", "blocks", "limit"), CASES)
def test_occupancy(arch, registers, static, barriers, block, dynamic, blocks, limit):
    found = Resources(arch, registers, shared=static, barriers=barriers).occupancy(block, dynamic)
    assert found.blocks == blocks
    assert limit in found.limited_by
    assert found.warps == blocks * -(-block // 32)
    assert str(found)


def test_a_block_of_three_sizes_and_another_card():
    resources = Resources("sm_80", 32)
    assert resources.occupancy((16, 16)) == resources.occupancy(256)
    assert resources.occupancy((16, 16), arch="sm_75").max_warps == 32
    assert resources.occupancy(256).fraction == 1.0


@pytest.mark.parametrize("arch", LIMITS)
def test_occupancy_falls_as_a_kernel_grows(arch):
    blocks = [Resources(arch, registers).occupancy(256).blocks for registers in range(16, 256)]
    assert blocks == sorted(blocks, reverse=True)
    blocks = [Resources(arch, 16).occupancy(64, shared).blocks for shared in range(0, 70000, 500)]
    assert blocks == sorted(blocks, reverse=True)


def test_more_than_a_block_may_have():
    assert Resources("sm_80", 16).occupancy(1025).blocks == 0
    with pytest.raises(ValueError, match="at least one thread"):
        Resources("sm_80", 16).occupancy(0)
    with pytest.raises(ValueError, match="sm_75"):
        Resources("sm_80", 16).occupancy(32, arch="sm_52")


def test_functions_that_are_called_do_not_count_as_kernels():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_80'
ptxas info    : Function properties for k
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 2 barriers, 24 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Function properties for _Z6helperPf
    96 bytes stack frame, 80 bytes spill stores, 80 bytes spill loads
"""
    (k,) = parse_ptxas(log, "sm_80", {}).values()
    assert (k.registers, k.local, k.spill_stores, k.spill_loads, k.barriers, k.shared) == (40, 24, 8, 4, 2, 1024)
