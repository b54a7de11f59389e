"""Executes PTX on NumPy: knows nothing of torch, CuPy or notebooks.

`Program(ptx).launch(name, grid, block, args)` runs a kernel; `EmulatorFault` says what it did wrong.

How it works, in the order of the files: `parse` (text to instructions), `inline` and `calls`, `control_flow` (blocks,
liveness, reconvergence order), `translate` (a block becomes a Python function over arrays), `lanes` (sets of
threads), `address_space` (what there is to be reached), `located` and `address_sums` (where lanes point), `memory`
(load, store), `atomics`, `float16`, `bfloat16`, `warps`, `system` (printf, assert), `schedule` with `orders` (who
runs next), `batches` (in how many threads), `barriers`, `async_copies`, and of Hopper `mbarriers` with `spots` (where
they lie) and `mbarrier_waits`, `bulk_copies` with `tensor_maps`, `warpgroups` (wgmma) with `warpgroup_operands`,
`warpgroup_products` and `tokens`, `clusters` and `observations` (what orders them);
`metrics`, `arithmetic`, `races` with `shadows` and `alike`, `addresses` and `timeline` (what the x-ray shows),
`translation_cache`, `program` (the public face), `faults`.
"""

from .faults import EmulatorFault, Race
from .metrics import LineMetrics, Requests, Trace
from .orders import ORDERS
from .program import Program

__all__ = ["ORDERS", "EmulatorFault", "LineMetrics", "Program", "Race", "Requests", "Trace"]
