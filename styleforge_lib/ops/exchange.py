"""Memory in which the blocks of one launch tell each other numbers: the host's side of cuda/common/exchange.cuh."""

import itertools
from collections.abc import Iterator

import torch

PATIENCE = 4096  # looks, about 3 ms: far more than blocks that run ever need, and little where they do not
LAST_LAUNCH = 2**31 - 1

_kept: dict[tuple[torch.device, int], tuple[torch.Tensor, Iterator[int]]] = {}


def exchange(words: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """Return at least `words` int64 words and a launch number that no word of them has.

    The memory of a stream is kept, since launches on one stream follow each other and each has its own number. A CUDA
    graph repeats its numbers, possibly beside other work, so what is captured gets memory of its own, which each replay
    clears; so does the emulator, where a fault may leave anything behind.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(words, dtype=torch.int64, device=device), 1
    key = (device, torch._C._cuda_getCurrentRawStream(device.index))  # without a torch.cuda.Stream around it
    memory, numbers = _kept.get(key, (None, None))
    launch = next(numbers) if memory is not None and memory.numel() >= words else LAST_LAUNCH
    if launch >= LAST_LAUNCH:
        memory, numbers = torch.zeros(max(words, 4096), dtype=torch.int64, device=device), itertools.count(1)
        _kept[key] = memory, numbers
        launch = next(numbers)
    return memory, launch
