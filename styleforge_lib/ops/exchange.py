"""Memory in which the blocks of one launch tell each other numbers: the host's side of cuda/common/exchange.cuh."""

import itertools
from collections.abc import Iterator

import torch

PATIENCE = 4096  # looks, about 3 ms: far more than blocks that run ever need, and little where they do not
LAST_LAUNCH = 2**31 - 1

SPARE_WORDS = 1 << 19  # 4 MB, for the launches that a CUDA graph captures

_kept: dict[tuple[torch.device, int], tuple[torch.Tensor, Iterator[int]]] = {}
_spare: dict[torch.device, torch.Tensor] = {}


def exchange(words: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """Return at least `words` int64 words and a launch number that no word of them has.

    The memory of a stream is kept, since launches on one stream follow each other and each has its own number. A CUDA
    graph repeats its arguments, possibly beside other work, so what is captured gets memory of its own, for good, and
    0: the blocks then count themselves, from the zeros that they find first (`number_after` in the header). Such memory
    must be there before the capture, in which zeros would be written by each replay, for as long as a small norm takes;
    where there is none, they are. The emulator always gets new zeros: a fault may leave anything behind.
    """
    if device.type != "cuda":
        return torch.zeros(words, dtype=torch.int64, device=device), 1
    if torch.cuda.is_current_stream_capturing():
        spare = _spare.get(device)
        if spare is None or spare.numel() < words:
            return torch.zeros(words, dtype=torch.int64, device=device), 1
        _spare[device] = spare[words:]
        return spare[:words], 0
    key = (device, torch._C._cuda_getCurrentRawStream(device.index))  # without a torch.cuda.Stream around it
    memory, numbers = _kept.get(key, (None, None))
    launch = next(numbers) if memory is not None and memory.numel() >= words else LAST_LAUNCH
    if launch >= LAST_LAUNCH:
        memory, numbers = torch.zeros(max(words, 4096), dtype=torch.int64, device=device), itertools.count(1)
        _kept[key] = memory, numbers
        launch = next(numbers)
    if device not in _spare or _spare[device].numel() < SPARE_WORDS // 2:
        _spare[device] = torch.zeros(SPARE_WORDS, dtype=torch.int64, device=device)
        torch.cuda.current_stream(device).synchronize()  # whichever stream replays: the zeros are there
    return memory, launch
