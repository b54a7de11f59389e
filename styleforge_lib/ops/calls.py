"""What the usual call costs the host: how a kind of call is computed is decided once, and remembered.

Contents
    kind_of         all that decides how a call is computed, as a key; None where the call must be looked at
    Known           kinds of calls, and the launch of each

Checks, the choice of a kernel and of its launch take the host several times as long as the launch, and longer than the
card takes for a small tensor. All of it follows from shapes, strides, dtypes, devices, alignments and options, so it is
done for the first call of a kind, and the next one finds the launch that came out of it. What may change between two
calls of a kind is looked at every time: gradients, transformations, modes, autocast.
"""

from collections.abc import Callable, Hashable

import torch

from styleforge_lib.ops.elementwise import PLAIN, VECTOR_BYTES, emulator_asked_for, is_observed

KINDS_KEPT = 512


def kind_of(options: tuple[Hashable, ...], *tensors: torch.Tensor | None) -> tuple | None:
    """Return the kind of a call; None where it is no usual one, and must be looked at.

    Usual are plain tensors, the first of them where the kernels run, of which no gradient is wanted, with nobody
    looking on and no autocast. Two calls of a kind agree in the options and in each tensor's shape, layout, dtype,
    device and alignment.
    """
    if is_observed() or torch._C._is_any_autocast_enabled():
        return None
    if type(tensors[0]) not in PLAIN or not (tensors[0].is_cuda or emulator_asked_for()):
        return None
    differentiated, kind = torch.is_grad_enabled(), [options]
    try:
        for tensor in tensors:
            if tensor is None:
                kind.append(None)
            elif type(tensor) not in PLAIN or (differentiated and tensor.requires_grad):
                return None
            else:
                layout, place = tensor.is_contiguous() or tensor.stride(), tensor.data_ptr() % VECTOR_BYTES
                kind.append((tensor.shape, layout, tensor.dtype, tensor.device, place))
    except RuntimeError:  # sparse tensors have no strides, and others no address
        return None
    return tuple(kind)


class Known:
    """What was prepared for each kind of call. The kinds that were not met for longest are forgotten.

    Two generations: what is found among the old ones moves to the young, and when these are full, the old ones go. So a
    hit among the young costs one look. No lock: a launch that two threads prepare at once is prepared twice.
    """

    def __init__(self, most: int = KINDS_KEPT):
        self._most = most // 2
        self._young: dict[tuple, Callable] = {}
        self._old: dict[tuple, Callable] = {}

    def get(self, kind: tuple | None) -> Callable | None:
        """Return what is kept for a kind; None for an unknown one."""
        try:
            found = self._young.get(kind)
        except TypeError:  # an option that is no number: the operator's own checks say so
            return None
        if found is None and (found := self._old.get(kind)) is not None:
            self.keep(kind, found)
        return found

    def keep(self, kind: tuple | None, launch: Callable) -> Callable:
        """Keep a launch for the next call of this kind, and return it."""
        if kind is not None:
            if len(self._young) >= self._most:
                self._young, self._old = {}, self._young
            self._young[kind] = launch
        return launch
