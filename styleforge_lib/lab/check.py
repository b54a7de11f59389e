"""check(operator, launcher): is a kernel right? One line says so, or what is wrong and where.

Contents
    check               runs the operator's hostile cases and prints the verdict
    Verdict             what it returns: true if all cases are right
    Guarded             a tensor between guard zones
    _run, _hold         one case: launched twice on the same data, nothing else touched
    _judge              one output against the float64 reference
    _afford             what the kernels spent, against a budget

What counts as right. The reference is computed in float64 from the inputs as rounded to the dtype. An element may be
off by twice PyTorch's own error there, in the same dtype on the CPU, plus half an ulp of the dtype, which any kernel
that rounds its result must be allowed, plus the operator's floor, which is 0 unless PyTorch's yardstick is finer. NaN
and infinities must stand where the reference has them, and nowhere else. Where PyTorch's own result is not finite and
the reference is, that is no licence: half an ulp remains.

What else is held. Outputs are filled with NaN and must be written everywhere. Inputs and outputs lie between guard
zones of NaN, so that a read outside spoils the result and a write outside is seen. Inputs must keep every bit. The same
data must give the same bits again; fresh data in the same memory must not give the old answer. The data are new on each
call, and a failure names the seed that repeats it. Data, reference and yardstick come from the CPU, so that a verdict
does not depend on the device.
"""

import inspect
import math
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from styleforge_lib.lab.budget import Budget, spending
from styleforge_lib.lab.words import verdict
from styleforge_lib.ops import Case, Operator, find_operator
from styleforge_lib.runtime.emulator import EmulatorFault
from styleforge_lib.runtime.kernel import Kernel, Module, chosen_device

GUARD_BYTES = 1 << 13  # what a block of 512 threads writes with one float4 each
INPUT_GUARD, POISON = 0x7FF7, 0x7FF5  # as 16, 32 or 64 bits a NaN; two, so that copying one guard to the other is seen
LAUNCHES = {"cpu": 2, "cuda": 8}  # of the same data: a race needs a few chances, and the emulator has one schedule


@dataclass(frozen=True)
class Verdict:
    """The answer of `check`: true if every case is right.

    words: what was printed after the title. cases: how many were right. seed: repeats the same data.
    """

    passed: bool
    words: str
    cases: int
    seed: int

    def __bool__(self) -> bool:
        return self.passed

    def _ipython_display_(self) -> None:
        """Show nothing: the line has been printed."""


class _WrongError(Exception):
    """What is wrong with the case at hand: "`head` in case 'ragged'`tail`"."""

    def __init__(self, head: str, tail: str = ""):
        super().__init__(head, tail)
        self.head, self.tail = head, tail


def check(
    operator: str | Operator,
    launcher: Callable[..., object],
    *,
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    title: str | None = None,
    budget: Budget | None = None,
) -> Verdict:
    """Hold `launcher` against the operator's hostile cases, print one line, and return a Verdict.

    operator: a name, such as "relu", or an Operator. launcher(*inputs, *outputs): launches the kernel on contiguous
    tensors and writes into the outputs, which are allocated and filled with NaN: `launcher(x, out)` for relu,
    `launcher(a, b, out)` for residual_add. The tensors are on the GPU where `compile_cuda` launches there, else on the
    CPU. dtype: of the floating inputs. seed: left out, the data are new each time. title: what the line calls it, the
    operator's name if left out. budget: what the kernels may spend, counted on the emulator; left out, anything.

    The first case that is wrong ends the check. A fault that the emulator finds is a wrong case; an error of the
    launcher's own Python is raised as it is. The line of a kernel that passes is always the same.
    """
    operator = find_operator(operator) if isinstance(operator, str) else operator
    if dtype not in operator.dtypes:
        raise ValueError(f"check: {operator.name} is for {' and '.join(map(str, operator.dtypes))}, not {dtype}")
    _check_launcher(operator, launcher)
    device = "cuda" if chosen_device() == "gpu" else "cpu"
    given, seed = seed is not None, secrets.randbits(32) if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    right, exact, wrong = 0, True, ""
    for case in tqdm(operator.cases, desc=f"check {operator.name}", delay=2, leave=False, file=sys.stderr):
        values = case.make(generator, dtype)
        try:
            exact &= _hold(operator, launcher, case, values, case.make(generator, dtype), device, budget)
        except _WrongError as error:
            repeat = "" if given else f" (seed={seed} repeats this)"
            wrong = f"{error.head} in case '{case.name} {_size(values)}'{error.tail}{repeat}"
            break
        right += 1
    title = title or operator.name + ("" if dtype is torch.float32 else f" {str(dtype).removeprefix('torch.')}")
    praise = f"{right} case{'s' * (right != 1)} right, " + (
        "to the last bit" if exact else "within twice PyTorch's own error"
    )
    praise += ", within budget" if budget else ""
    verdict(not wrong, title, praise=praise, hint=wrong)
    return Verdict(not wrong, wrong or praise, right, seed)


def _check_launcher(operator: Operator, launcher: Callable[..., object]) -> None:
    """Raise TypeError unless the launcher can be called with the operator's tensors."""
    names = (*operator.inputs, *operator.outputs)
    wanted = f"check calls launcher({', '.join(names)}) for {operator.name}"
    if isinstance(launcher, (Module, Kernel)):
        raise TypeError(f"{wanted}; wrap {launcher!r} in a function that gives it a grid and a block")
    try:
        inspect.signature(launcher).bind(*names)
    except ValueError:  # a built-in that does not tell its signature
        return
    except TypeError as error:
        raise TypeError(f"{wanted}, and {launcher!r} does not take that: {error}") from None


# ----------------------------------------------------------------------------------------------------------------------
# One case


class Guarded:
    """A contiguous tensor whose memory lies between guard zones.

    The tensor starts `offset` elements past an address that is aligned as a fresh allocation is.
    """

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, offset: int, fill: int):
        self.name, self.fill = name, fill
        size = math.prod(shape) * dtype.itemsize
        self._start = GUARD_BYTES + offset * dtype.itemsize
        self._end = self._start + size
        words = -(-(self._end + GUARD_BYTES) // 2)
        self._bytes = torch.full((words,), fill, dtype=torch.int16, device=device).view(torch.uint8)
        self._fresh = self._bytes.clone()
        self.tensor = self._bytes[self._start : self._end].view(dtype).view(shape)

    @classmethod
    def holding(cls, name: str, value: torch.Tensor, device: str, offset: int) -> "Guarded":
        """Return one that holds `value`."""
        guarded = cls(name, tuple(value.shape), value.dtype, device, offset, INPUT_GUARD)
        guarded.write(value)
        return guarded

    def write(self, value: torch.Tensor) -> None:
        """Put other numbers in the same memory."""
        self.tensor.copy_(value)
        self._fresh.copy_(self._bytes)

    def poison(self) -> None:
        """Fill the tensor with its guard's NaN again."""
        self._bytes.copy_(self._fresh)

    def unwritten(self) -> torch.Tensor:
        """Return, for each element, whether it has the bits that it was filled with."""
        filled = self._fresh[self._start : self._end].view(self.tensor.dtype).view(self.tensor.shape)
        return (_bits(self.tensor) == _bits(filled)).cpu()

    def hold(self) -> None:
        """Raise unless the guard zones are whole, and for an input every element too."""
        count = self.tensor.numel()
        if (after := self._changed(self._end, None)) is not None:
            where = f"{len(after)} past the end of {self.name}, the first at index {count + int(after[0])} of {count}"
            raise _WrongError(f"it wrote outside: {where},")
        if (before := self._changed(0, self._start)) is not None:
            raise _WrongError(f"it wrote outside: {len(before)} before the start of {self.name},")
        if self.fill == INPUT_GUARD and (inside := self._changed(self._start, self._end)) is not None:
            first = _index(int(inside[0]), self.tensor.shape)
            raise _WrongError(f"it changed its input {self.name}", f": {len(inside)} of {count}, the first at {first}")

    def _changed(self, start: int, end: int | None) -> torch.Tensor | None:
        """Return which elements, counted from `start`, have other bits than were put there; None if all are whole."""
        now, then = self._bytes[start:end], self._fresh[start:end]
        if torch.equal(now, then):
            return None
        return torch.unique((now != then).nonzero().flatten().cpu() // self.tensor.dtype.itemsize)


def _hold(
    operator: Operator,
    launcher: Callable,
    case: Case,
    values: tuple,
    fresh: tuple,
    device: str,
    budget: Budget | None,
) -> bool:
    """Raise _WrongError unless the launcher gets this case right; return whether it does to the last bit.

    fresh: other values of the same case, for the same memory.
    """
    inputs = [
        Guarded.holding(name, value, device, case.input_offset) if isinstance(value, torch.Tensor) else value
        for name, value in zip(operator.inputs, values, strict=True)
    ]
    answers = _answers(operator, values)
    outputs = [
        Guarded(name, tuple(peer.shape), peer.dtype, device, case.output_offset, POISON)
        for name, (_, peer, _) in zip(operator.outputs, answers, strict=True)
    ]

    _run(launcher, inputs, outputs)
    exact = True
    for out, answer in zip(outputs, answers, strict=True):
        exact &= _judge(operator, out, *answer)
    first = [out.tensor.clone() for out in outputs]
    if budget is not None:
        _afford(budget, launcher, inputs, outputs)
    for _ in range(LAUNCHES[device] - 1):
        _run(launcher, inputs, outputs)
        _same_bits(outputs, first)

    if [_shape(value) for value in fresh] != [_shape(value) for value in values]:
        return exact  # a case that draws its shape
    inputs = [_refilled(holder, value) for holder, value in zip(inputs, fresh, strict=True)]
    _run(launcher, inputs, outputs)
    for out, old, answer in zip(outputs, first, _answers(operator, fresh), strict=True):
        try:
            exact &= _judge(operator, out, *answer)
        except _WrongError as error:
            if torch.equal(_bits(out.tensor), _bits(old)):
                raise _WrongError("it gave its earlier answer to fresh data", error.tail) from None
            raise
    return exact


def _afford(budget: Budget, launcher: Callable, inputs: list, outputs: list[Guarded]) -> None:
    """Raise _WrongError if a call of the launcher spends more than the budget allows."""
    spent = spending(lambda: _run(launcher, inputs, outputs), [out.tensor for out in outputs])
    if words := budget.overspent(spent):
        raise _WrongError("over budget", f": {words}")


def _answers(operator: Operator, values: tuple) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return, for each output, the float64 reference, what PyTorch makes of the same inputs, and the sizes of terms."""
    wide = [
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in values
    ]
    with torch.no_grad():
        expected, peer = operator.reference(*wide), operator.pytorch(*values)
        terms = expected if operator.terms is None else operator.terms(*wide)
    answers = ((item,) if isinstance(item, torch.Tensor) else item for item in (expected, peer, terms))
    return list(zip(*answers, strict=True))


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _refilled(holder: object, value: object) -> object:
    """Put a tensor into the memory that held another; any other value stands for itself."""
    if isinstance(value, torch.Tensor):
        holder.write(value)
        return holder
    return value


def _run(launcher: Callable, inputs: list, outputs: list[Guarded]) -> None:
    """Launch once into poisoned outputs, and raise unless it wrote all of them and nothing else."""
    holders = [item for item in (*inputs, *outputs) if isinstance(item, Guarded)]
    for out in outputs:
        out.poison()
    try:
        returned = launcher(*(item.tensor if isinstance(item, Guarded) else item for item in (*inputs, *outputs)))
    except EmulatorFault as fault:
        raise _WrongError("a fault", f": {fault.sentence}") from None
    if outputs[0].tensor.is_cuda:
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:  # an illegal access, told after the launch
            why = str(error).partition("\n")[0]
            raise _WrongError(
                "a fault", f": {why}. This process has lost the card: restart it, and look with xray()"
            ) from None
    for holder in holders:
        holder.hold()
    for out in outputs:
        missing = out.unwritten()
        if missing.any():
            count, total = int(missing.sum()), missing.numel()
            hint = (
                f". Write into {out.name}: what the launcher returns is not looked at" if returned is not None else ""
            )
            raise _WrongError(
                f"{out.name} was left unwritten: {count} of {total}", f", {_where(missing, _first(missing))}{hint}"
            )


# ----------------------------------------------------------------------------------------------------------------------
# One output


def _judge(operator: Operator, out: Guarded, expected: torch.Tensor, peer: torch.Tensor, terms: torch.Tensor) -> bool:
    """Raise unless every element is within its tolerance; return whether each is the reference, rounded."""
    got, dtype = out.tensor.cpu(), out.tensor.dtype
    value, rounded = got.double(), expected.to(dtype).double()
    allowed = _tolerance(operator, expected, peer, terms)
    finite = value.isfinite() & rounded.isfinite()
    off = torch.where(finite, (value - expected).abs(), torch.inf)
    alike = (value == rounded) | (value.isnan() & rounded.isnan())
    wrong = ~alike & ~(finite & (off <= allowed))
    if operator.signed_zeros:
        wrong |= (value == 0) & (rounded == 0) & (value.signbit() != rounded.signbit())
    if not wrong.any():
        return bool(alike.all())
    worst = int(torch.where(wrong, off / allowed, -1.0).argmax())
    words = f"got {_figure(got, worst)}, expected {_figure(expected.to(dtype), worst)}"
    if (finite & (off > allowed)).flatten()[worst]:
        words += f", off by {off.flatten()[worst]:.2g} where {allowed.flatten()[worst]:.2g} is allowed"
    raise _WrongError(
        f"{int(wrong.sum())} of {wrong.numel()} wrong",
        f", worst at {_index(worst, wrong.shape)}, {_where(wrong, worst)}: {words}",
    )


def _tolerance(operator: Operator, expected: torch.Tensor, peer: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
    """Return, for each element, twice PyTorch's error plus the operator's floor plus half an ulp."""
    error = torch.where(peer.isfinite() & expected.isfinite(), (peer.double() - expected).abs(), 0.0)
    size = torch.where(terms.isfinite(), terms.abs(), 0.0)
    if operator.pooled:
        error, size = (value.amax(operator.pooled, keepdim=True) for value in (error, size))
    return 2 * error + operator.floor * size + ulp(expected, peer.dtype) / 2


def ulp(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the distance between neighbouring numbers of `dtype` at each float64 value; denormals have tiny * eps."""
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps
    # Zero and what is not finite have no exponent of their own: they stand with the denormals.
    _, exponent = torch.frexp(torch.where(value.isfinite() & (value != 0), value, smallest))
    return torch.ldexp(torch.full_like(value, info.eps), exponent - 1).clamp_min(smallest)


def _same_bits(outputs: list[Guarded], first: list[torch.Tensor]) -> None:
    """Raise unless a further launch on the same data gave the same bits."""
    for out, old in zip(outputs, first, strict=True):
        differs = (_bits(out.tensor) != _bits(old)).cpu()
        if differs.any():
            at = _first(differs)
            words = f"{_figure(old.cpu(), at)}, then {_figure(out.tensor.cpu(), at)}"
            raise _WrongError(
                f"two launches on the same data differ: {int(differs.sum())} of {differs.numel()}",
                f", the first at {_index(at, differs.shape)}: {words}. Is there a race?",
            )


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize])


# ----------------------------------------------------------------------------------------------------------------------
# Words


def _first(mask: torch.Tensor) -> int:
    return int(mask.flatten().nonzero()[0])


def _size(values: tuple) -> str:
    """Write the shape of the first tensor: 1x3x17x31."""
    return "x".join(map(str, next(_shape(value) for value in values if isinstance(value, torch.Tensor))))


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), tuple(shape)))


def _figure(x: torch.Tensor, flat: int) -> str:
    """Write one element with as many digits as tell it from its neighbours."""
    return f"{x.flatten()[flat].item():.9g}" if x.dtype is torch.float32 else f"{x.flatten()[flat].item():.5g}"


def _where(mask: torch.Tensor, flat: int) -> str:
    """Say where the marked elements lie: all, the tail, on the border of their planes, or the marked one's place."""
    count, total, first = int(mask.sum()), mask.numel(), _first(mask)
    if count == total:
        return "the only element" if count == 1 else "everywhere"
    if count == total - first:
        return "exactly the last element" if count == 1 else f"exactly the last {count} elements"
    if mask.dim() < 2 or min(mask.shape[-2:]) < 3:
        return "an end of the tensor" if flat in (0, total - 1) else "inside"
    border = torch.ones(mask.shape[-2:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    on_border = border.expand(mask.shape).flatten()[flat]
    return (
        ("on the border, as all of them" if not (mask & ~border).any() else "on the border") if on_border else "inside"
    )
