"""The memory that the blocks of a launch talk through: no launch finds another's number in it."""

import pytest
import torch

from styleforge_lib.ops import exchange


def test_on_the_emulator_each_launch_has_its_own():
    first, number = exchange.exchange(12, torch.device("cpu"))
    second, _ = exchange.exchange(12, torch.device("cpu"))
    assert number == 1
    assert not first.any()
    assert first.data_ptr() != second.data_ptr()


@pytest.fixture
def pretended_card(monkeypatch):
    """Pretend that there is a card: its memory is the CPU's, its streams are what the list says."""
    stream = [7]
    zeros = torch.zeros
    monkeypatch.setattr(exchange, "_kept", {})
    monkeypatch.setattr(exchange, "_spare", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: stream[0] is None)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: stream[0], raising=False)
    waited = type("Stream", (), {"synchronize": lambda self: None})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: waited())
    monkeypatch.setattr(torch, "zeros", lambda size, dtype, device: zeros(size, dtype=dtype))
    return stream


def test_a_stream_keeps_its_memory_and_counts(pretended_card, monkeypatch):
    card = torch.device("cuda", 0)
    memory, number = exchange.exchange(12, card)
    again, next_number = exchange.exchange(4096, card)
    assert again.data_ptr() == memory.data_ptr()
    assert next_number == number + 1
    larger, first_number = exchange.exchange(4097, card)
    assert larger.numel() == 4097
    assert first_number == 1
    pretended_card[0] = 8
    assert exchange.exchange(12, card)[0].data_ptr() != larger.data_ptr()
    pretended_card[0] = None  # a capture
    captured = [exchange.exchange(12, card) for _ in range(2)]
    assert captured[0][0].data_ptr() != captured[1][0].data_ptr()
    assert [(memory.numel(), number) for memory, number in captured] == [(12, 0)] * 2
    large, number = exchange.exchange(exchange.SPARE_WORDS, card)  # more than is left: each replay writes its zeros
    assert (large.numel(), number) == (exchange.SPARE_WORDS, 1)
    pretended_card[0] = 8
    exchange.exchange(12, card)
    assert exchange._spare[card].numel() == exchange.SPARE_WORDS - 24
    exchange._spare[card] = exchange._spare[card][exchange.SPARE_WORDS // 2 :]
    exchange.exchange(12, card)
    assert exchange._spare[card].numel() == exchange.SPARE_WORDS


def test_numbers_never_repeat_on_one_memory(pretended_card, monkeypatch):
    monkeypatch.setattr(exchange, "LAST_LAUNCH", 3)
    seen = [exchange.exchange(12, torch.device("cuda", 0)) for _ in range(8)]
    assert len({(memory.data_ptr(), number) for memory, number in seen}) == 8
    assert all(0 < number < 3 for _, number in seen)
