"""A module's `__constant__` and `__device__` variables, from the host: `module.variable("weights").write(w)`.

Contents
    Variable        one variable: `write(values)`, `read(into)`, on a GPU and on the emulator alike
"""

import ctypes
from collections.abc import Callable

import numpy as np
import torch


class Variable:
    """A variable of a module. name: as in the source. size: in bytes.

    What is written stays for all launches that follow, until it is written again: a module that is compiled once more
    begins with the initial values of its text. On a GPU each card has its own; meant is torch's current one, and the
    copies follow what stands on torch's current stream. The compiler does not say what type a variable has: an array of
    the same size in bytes is copied as it is.
    """

    def __init__(self, name: str, size: int, copy: Callable[[torch.Tensor | np.ndarray, int, bool], None], gpu: bool):
        self.name, self.size = name, size
        self._copy, self._gpu = copy, gpu

    def write(self, values: torch.Tensor | np.ndarray) -> None:
        """Copy a contiguous array of the variable's size into it: torch on the CPU or the module's device, or NumPy.

        TypeError, ValueError: what is given is no such array.
        """
        self._copy(values, self._address(values), True)

    def read(self, into: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
        """Copy the variable into a contiguous array of its size, and return that; errors as for `write`."""
        if isinstance(into, np.ndarray) and not into.flags.writeable:
            raise ValueError(f"variable '{self.name}': the array to read into is read-only. Pass np.empty_like(x).")
        self._copy(into, self._address(into), False)
        return into

    def _address(self, array: torch.Tensor | np.ndarray) -> int:
        where = f"variable '{self.name}'"
        if isinstance(array, torch.Tensor):
            if array.layout is not torch.strided or array.device.type not in (
                ("cpu", "cuda") if self._gpu else ("cpu",)
            ):
                device = "the CPU or a GPU" if self._gpu else "the CPU, where the emulator runs: pass x.cpu()"
                raise ValueError(f"{where}: needs an ordinary tensor on {device}, not one on {array.device}")
            contiguous, address = array.is_contiguous(), array.data_ptr()
        elif isinstance(array, np.ndarray):
            contiguous, address = array.flags.c_contiguous, array.ctypes.data
        else:
            raise TypeError(f"{where}: needs a torch tensor or a NumPy array, not {type(array).__name__}")
        if not contiguous:
            raise ValueError(f"{where}: the array is not contiguous, shape {tuple(array.shape)}. Pass x.contiguous().")
        if array.nbytes != self.size:
            given = f"{array.dtype}, shape {tuple(array.shape)}"
            raise ValueError(f"{where} has {self.size} bytes, and the array {array.nbytes}: {given}")
        return address

    def __repr__(self) -> str:
        return f"<Variable {self.name}: {self.size} bytes, {'gpu' if self._gpu else 'emulator'}>"


def emulated_copy(held: np.ndarray) -> Callable[[torch.Tensor | np.ndarray, int, bool], None]:
    """Return what copies between an array and the bytes that the emulator keeps for a variable."""

    def copy(array: torch.Tensor | np.ndarray, address: int, write: bool) -> None:
        mine = held.ctypes.data
        ctypes.memmove(*((mine, address) if write else (address, mine)), held.nbytes)

    return copy
