"""Instance norm, with scale, shift, residual and ReLU in the same pass.

The kernels are in cuda/instance_norm.cu (contiguous tensors) and cuda/instance_norm_nhwc.cu (channels_last); on Hopper
and later cards cuda/instance_norm_hopper.cu has the large planes of the one, and most of the other.

Contents
    instance_norm           the function: the kernel where it applies, else PyTorch
    launch, launch_fused    the kernels
    planes, pixels          which launch shape of them, and its size, for NCHW and for NHWC
    copied                  whether the copy engine of a Hopper card takes it (instance_norm_hopper.py)
    pieces_to_hold          the rule for NCHW: one kernel, whose blocks keep the plane in their registers
    pieces_to_sweep         the rule for planes that are too large for it
    pieces_of_pixels        the rule for NHWC: one kernel, whose blocks wait for each other
    OPERATOR, FUSED         the description: of the norm alone (what the lessons build), and of all that the kernel does
"""

import functools
import itertools
import math
from collections.abc import Callable

import torch
from torch.nn import functional

from styleforge_lib.ops import instance_norm_hopper as hopper
from styleforge_lib.ops.calls import Known, kind_of
from styleforge_lib.ops.cases import EVEN, RAGGED, constant_planes, drawn_from, magnitudes, normal
from styleforge_lib.ops.elementwise import C_TYPES, VECTOR_BYTES, check_tensors, compiled, is_watched, kernel_applies
from styleforge_lib.ops.exchange import PATIENCE, exchange
from styleforge_lib.ops.operator import Case, Cost, Operator

EPS = 1e-5
DTYPES = tuple(C_TYPES)

# As in the two files of kernels:
THREADS = 256  # of a block that holds what it reads
WIDE_THREADS = 1024  # of a block that holds a plane alone on its multiprocessor: nothing is exchanged
RESIDENT = {16: 2, 8: 4}  # vectors that each thread holds: how many such blocks a multiprocessor has room for
SLOT = 4  # words of a block in the exchange

WHOLE_BYTES = THREADS * 16 * VECTOR_BYTES  # up to here one block holds a plane; a larger one is cut into pieces
PIECE_BYTES = THREADS * 8 * VECTOR_BYTES  # of at most this size, or of WHOLE_BYTES
LARGE_BYTES = 1 << 20  # beyond: a plane of as many blocks waits for each other longer than the smaller blocks gain
FLIGHT = 4  # vectors that a thread is to have under way
# Where blocks go through more than they hold, the multiprocessors are to be filled once: a block more would begin a
# second round with most of them idle, and blocks that wait for each other must run at once.
SWEEP_THREADS, SWEEP_RESIDENT = 512, 2
PIXELS_RESIDENT = 1  # NHWC: two are slower, the barriers of the grid cost more than the loads that they would hide
COPY_ENGINE = True  # whether cards that have one use it: tools/tune_instance_norm.py measures both ways
EMULATED_MULTIPROCESSORS = 40  # a T4's
DRAWN = ((1, 4), (1, 9), (2, 41), (2, 41))  # the range of each dimension of a drawn shape
_KNOWN = Known()


def instance_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = EPS,
    relu: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return relu((x - mean) / sqrt(variance + eps) * weight + bias + residual), mean and variance of each plane.

    x: (N, C, ...) with at least two elements in a plane, any dtype; contiguous or channels_last memory is kept. weight,
    bias: (C,), left out 1 and 0. relu: whether negative numbers become 0 at the end (NaN stays NaN). residual: of x's
    shape, dtype and device. The variance is the biased one, as in `torch.nn.functional.instance_norm` (Ulyanov et al.
    2016), whose values this has; the steps after the norm are not rounded in between.

    The kernel takes float32, float16 and bfloat16, x and residual of one dense layout, on a GPU (on the CPU where
    STYLEFORGE_DEVICE=emulator); where gradients are wanted, contiguous tensors, whose backward pass is a kernel too.
    All else PyTorch computes. ValueError, TypeError: tensors that do not belong together. RuntimeError: a gradient of
    the kernel's gradient is asked for.
    """
    kind = kind_of((eps, relu), x, weight, bias, residual)
    launch = _KNOWN.get(kind)
    if launch is not None:
        out = torch.empty_like(x)
        launch(x, weight, bias, residual, out)
        return out
    tensors = {"x": x} if residual is None else {"x": x, "residual": residual}
    check_tensors("instance_norm", None, **tensors)
    if x.dim() < 3:
        raise ValueError(f"instance_norm: x must be (N, C, ...), at least 3 dimensions, and has shape {tuple(x.shape)}")
    channelwise = {name: value for name, value in (("weight", weight), ("bias", bias)) if value is not None}
    for name, value in channelwise.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"instance_norm: {name} must be a torch tensor, not {type(value).__name__}")
        if value.shape != x.shape[1:2]:
            raise ValueError(
                f"instance_norm: {name} has shape {tuple(value.shape)}, and x has {x.shape[1]} channels: pass one "
                "number a channel"
            )
    given = (*tensors.values(), *channelwise.values())
    differentiated = torch.is_grad_enabled() and any(value.requires_grad for value in given)
    if not _kernel_applies(tensors.values(), channelwise.values()) or (differentiated and not x.is_contiguous()):
        out = functional.instance_norm(x, weight=weight, bias=bias, eps=eps)
        out = out if residual is None else out + residual
        return out.relu() if relu else out
    if differentiated:
        return torch.ops.styleforge.instance_norm(x, weight, bias, residual, eps, relu)[0]
    out = torch.empty_like(x)
    launch = planned(x, weight, bias, residual, relu, eps, out)
    launch(x, weight, bias, residual, out)
    _KNOWN.keep(kind, launch)
    return out


def _kernel_applies(tensors, channelwise) -> bool:
    x = next(iter(tensors))
    with torch.no_grad():  # whether gradients are wanted is another question
        applies = kernel_applies(None, *tensors, dtypes=DTYPES)
    return (
        applies
        and not is_watched(x, *channelwise)
        and math.prod(x.shape[2:]) > 1  # of one element PyTorch says that it has no variance
        and all(value.dtype is x.dtype and value.device == x.device and value.is_contiguous() for value in channelwise)
    )


# ----------------------------------------------------------------------------------------------------------------------
# The launch


def launch(x: torch.Tensor, out: torch.Tensor) -> None:
    """Launch the norm alone, with eps 1e-5, on the GPU or the emulator: see `launch_fused`."""
    launch_fused(x, None, None, None, False, EPS, out)


def launch_fused(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    relu: bool,
    eps: float,
    out: torch.Tensor,
) -> None:
    """Launch the kernels on the GPU or the emulator.

    x, out, residual: (N, C, ...) of one of DTYPES, all contiguous or, with 4 dimensions, all channels_last. weight,
    bias: (C,) of the same dtype. None for what is left out.
    """
    planned(x, weight, bias, residual, relu, eps, out)(x, weight, bias, residual, out)


def planned(x, weight, bias, residual, relu, eps, out) -> Callable[..., None]:
    """Return launch(x, weight, bias, residual, out), for these tensors and all that lie alike: see `launch_fused`."""
    if x.is_contiguous():
        return planes(x, residual, out, eps, relu)
    x, residual, out = map(_rows, (x, residual, out))
    launch = pixels(x, residual, out, eps, relu)
    return lambda x, weight, bias, residual, out: launch(_rows(x), weight, bias, _rows(residual), _rows(out))


def _rows(x: torch.Tensor | None) -> torch.Tensor | None:
    """Return (N, C, H, W) as (N, H, W, C)."""
    return None if x is None else x.permute(0, 2, 3, 1)


def planes(x, residual, out, eps, relu) -> Callable[..., None]:
    """Return launch(x, weight, bias, residual, out, saved=None) for contiguous tensors: see `launch_fused`.

    saved: float32 [planes, 3], for the backward pass. The launch keeps no tensor of its maker's.
    """
    device, channels, planes, size = x.device, x.shape[1], x.shape[0] * x.shape[1], math.prod(x.shape[2:])
    processors = multiprocessors(device)
    if copied(x, residual, out, together=1) and hopper.held(planes, size, x.element_size(), processors):
        return hopper.planned(x, eps, relu, together=1, processors=processors)
    kernel = compiled("instance_norm", device, TYPE=C_TYPES[x.dtype]).kernel
    alone = 3 * processors <= 4 * planes <= 4 * processors
    vectors, threads, length, pieces = pieces_to_hold(size, x.element_size(), alone)
    relu = int(relu)
    if pieces <= processors * RESIDENT[vectors]:
        blocks, words = planes * pieces, SLOT * planes * pieces
        held = kernel(f"instance_norm_held{vectors}")

        def hold(x, weight, bias, residual, out, saved=None) -> None:
            slots, number = exchange(words, device) if pieces > 1 else (None, 0)
            numbers = (channels, size, length, pieces, eps, relu, number, PATIENCE)
            held(blocks, threads, (x, weight, bias, residual, out, saved, slots, *numbers))

        return hold
    length, pieces = pieces_to_sweep(planes, size, x.element_size(), processors * SWEEP_RESIDENT)
    blocks = planes * pieces
    measure, apply = kernel("instance_norm_statistics"), kernel("instance_norm_apply")

    def sweep(x, weight, bias, residual, out, saved=None) -> None:
        partial = torch.empty(blocks * 4, dtype=torch.float32, device=device)
        measure(blocks, SWEEP_THREADS, (x, partial, size, length, pieces))
        args = (x, partial, weight, bias, residual, out, saved, channels, size, length, pieces, eps, relu)
        apply(blocks, SWEEP_THREADS, args)

    return sweep


def pixels(x, residual, out, eps, relu) -> Callable[..., None]:
    """Return launch(x, weight, bias, residual, out). x, residual, out: (N, H, W, C), contiguous."""
    device, images, channels, size = x.device, x.shape[0], x.shape[3], x.shape[1] * x.shape[2]
    if copied(x, residual, out, together=channels):
        return hopper.planned(x, eps, relu, together=channels, processors=multiprocessors(device))
    lanes = VECTOR_BYTES // x.element_size()
    tensors = (x, out) if residual is None else (x, out, residual)
    if channels % lanes or any(tensor.data_ptr() % VECTOR_BYTES for tensor in tensors):
        lanes = 1
    most = multiprocessors(device) * PIXELS_RESIDENT
    tiles, tile, rows, steps, pieces = pieces_of_pixels(images, channels // lanes, size, lanes, most)
    kernel = compiled("instance_norm_nhwc", device, TYPE=C_TYPES[x.dtype]).only
    grid, words = (images, pieces, tiles), 4 + (4 + 2 * pieces) * images * channels
    numbers = (channels, size, tile, rows, steps, eps, int(relu), lanes)

    def launch(x, weight, bias, residual, out) -> None:
        room = torch.empty(words, dtype=torch.float32, device=device)
        kernel(grid, THREADS, (x, weight, bias, residual, out, room, *numbers), cooperative=pieces > 1)

    return launch


def copied(*tensors: torch.Tensor | None, together: int) -> bool:
    """Whether the copy engine of the card brings such tensors: see `instance_norm_hopper.takes`."""
    return COPY_ENGINE and hopper.available(tensors[0].device) and hopper.takes(*tensors, together=together)


def pieces_to_hold(size: int, itemsize: int, alone: bool) -> tuple[int, int, int, int]:
    """Return (vectors a thread, threads a block, numbers a piece, pieces a plane) for NCHW where a block holds a piece.

    Eight vectors where they suffice: twice as many blocks share a multiprocessor, and some write while others read.
    alone: whether each plane has a multiprocessor, and most of these a plane.
    """
    lanes, pieces, length = VECTOR_BYTES // itemsize, 1, size
    if alone and WHOLE_BYTES < size * itemsize <= WIDE_THREADS * 8 * VECTOR_BYTES:
        return 8, WIDE_THREADS, size, 1
    if size * itemsize > WHOLE_BYTES:
        most = PIECE_BYTES if size * itemsize <= LARGE_BYTES else WHOLE_BYTES
        length = _rounded_up(math.ceil(size / math.ceil(size * itemsize / most)), 32 * lanes)  # for every warp
        pieces = math.ceil(size / length)
    threads = 1 << max(0, math.ceil(length / (lanes * FLIGHT)) - 1).bit_length()
    vectors = 8 if length * itemsize <= THREADS * 8 * VECTOR_BYTES else 16
    return vectors, min(THREADS, max(32, threads)), length, pieces


def pieces_to_sweep(planes: int, size: int, itemsize: int, blocks: int) -> tuple[int, int]:
    """Return (numbers a piece, pieces a plane) for NCHW of planes too large to be kept, in about `blocks` blocks.

    A plane is kept where the blocks that hold its pieces can all run at once.
    """
    most = max(1, blocks // planes)
    length = _rounded_up(math.ceil(size / most), SWEEP_THREADS * VECTOR_BYTES // itemsize)  # ... for every thread
    return length, math.ceil(size / length)


def pieces_of_pixels(images: int, units: int, size: int, lanes: int, blocks: int) -> tuple[int, int, int, int, int]:
    """Return (tiles, tile, rows, steps, pieces) for NHWC, in at most `blocks` blocks where an image has several pieces.

    units: how many times `lanes` channels there are, of which a block takes `tile` (up to 256 channels); there are
    `tiles` of these. A block has `rows` of threads, of which each takes `steps` pixels: `pieces` of them are an image.
    """
    tiles = math.ceil(units / (THREADS // lanes))
    tile = math.ceil(units / tiles)
    rows, most = THREADS // tile, max(1, blocks // (images * tiles))
    steps = max(math.ceil(size / (most * rows)), FLIGHT if most > 1 else 1)
    return tiles, tile, rows, steps, math.ceil(size / (rows * steps))


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; the emulator is given a T4's."""
    if device.type != "cuda":
        return EMULATED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


# ----------------------------------------------------------------------------------------------------------------------
# The description


def fused_reference(x, weight, bias, residual, relu, eps) -> torch.Tensor:
    """Return the result by its definition: two passes, the variance from the squared distances."""
    dims, shape = tuple(range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
    distance = x - x.mean(dims, keepdim=True)
    out = distance / (distance.square().mean(dims, keepdim=True) + eps).sqrt()
    out = out if weight is None else out * weight.view(shape)
    out = out if bias is None else out + bias.view(shape)
    out = out if residual is None else out + residual
    return torch.where(out < 0, torch.zeros_like(out), out) if relu else out


def fused_pytorch(x, weight, bias, residual, relu, eps) -> torch.Tensor:
    """Return what PyTorch makes of it, step by step."""
    # Not functional.instance_norm, which refuses a plane of one element.
    out = torch.instance_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
    out = out if residual is None else out + residual
    return out.relu() if relu else out


def fused_terms(x, weight, bias, residual, relu, eps) -> torch.Tensor:
    """Return how large the terms are whose sum the result is."""
    terms = fused_reference(x, weight, None, None, False, eps).abs()
    terms = terms if bias is None else terms + bias.abs().view(1, -1, *[1] * (x.dim() - 2))
    return terms if residual is None else terms + residual.abs()


def fused_cost(x, weight, bias, residual, relu, eps) -> Cost:
    """Each tensor is moved once; an addition for the mean, three operations for the variance, two to normalise."""
    steps = sum((6, weight is not None, bias is not None, residual is not None, bool(relu)))
    moved = (x, x, weight, bias, residual)
    return Cost(bytes=sum(t.numel() * t.element_size() for t in moved if t is not None), flops=steps * x.numel())


def _cases(options) -> tuple[Case, ...]:
    """Return the hostile cases. options(number, x, generator): what follows x among a case's inputs."""
    numbers = itertools.count()

    def case(name, shape, fill, **offsets: int) -> Case:
        number = next(numbers)

        def make(generator: torch.Generator, dtype: torch.dtype) -> tuple:
            x = fill(shape, generator, dtype)
            return (x, *options(number, x, generator))

        return Case(name, make, **offsets)

    def drawn(generator: torch.Generator, dtype: torch.dtype) -> tuple:
        shape = tuple(int(torch.randint(least, most, (), generator=generator)) for least, most in DRAWN)
        x = normal()(shape, generator, dtype)
        return (x, *options(15, x, generator))

    def large(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        """Fill evenly up to 1e17, of which float32 can still sum the squares, or the largest number there is."""
        most = min(torch.finfo(dtype).max, 1e17)
        return ((torch.rand(shape, generator=generator) * 2 - 1) * most).to(dtype)

    def spoiled(value: float):
        """Fill normally, but for one number in one of the planes."""

        def fill(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
            x = normal()(shape, generator, dtype)
            x[-1, 1, shape[-2] // 2, -1] = value
            return x

        return fill

    return (
        case("even", EVEN, normal()),
        *(case("batch of several", shape, normal()) for shape in ((2, 5, 13, 7), (5, 3, 6, 9), (3, 16, 8, 8))),
        *(case("plane of a single row or column", shape, normal()) for shape in ((2, 9, 1, 40), (2, 9, 37, 1))),
        *(case("small planes", (4, 9, height, width), normal()) for height, width in ((1, 1), (1, 2), (2, 2), (3, 5))),
        case("many planes", (2, 300, 3, 3), normal()),
        case("ragged", RAGGED, normal()),
        Case("drawn shape", drawn),
        case("constant planes", RAGGED, constant_planes),
        case("mean 4000, deviation 0.5", RAGGED, normal(4000, 0.5)),
        case("mean -30000, deviation 100", RAGGED, normal(-30000, 100)),
        case("deviation below the root of eps", RAGGED, normal(0.25, 1e-3)),
        case("all magnitudes", RAGGED, magnitudes),
        case("zeros of both signs", RAGGED, drawn_from(lambda info: (0.0, -0.0))),
        case("denormals", RAGGED, drawn_from(lambda info: (info.tiny / 8, info.tiny / 2, -info.tiny / 4))),
        case("large numbers", RAGGED, large),
        case("infinity in one plane", (2, 3, 17, 31), spoiled(float("inf"))),
        case("-infinity in one plane", (2, 3, 16, 16), spoiled(float("-inf"))),
        case("NaN in one plane", (2, 3, 17, 31), spoiled(float("nan"))),
        case("views one element past alignment", RAGGED, normal(), input_offset=1, output_offset=1),
        case("inputs one element past alignment", EVEN, normal(), input_offset=1),
        case("output one element past alignment", EVEN, normal(), output_offset=1),
        case("larger", (1, 2, 61, 67), normal()),
    )


def _options(number: int, x: torch.Tensor, generator: torch.Generator) -> tuple:
    """Return weight, bias, residual, relu and eps: each combination of what is present comes by in sixteen cases."""
    weight, bias = (torch.randn(x.shape[1], generator=generator).to(x.dtype) for _ in range(2))
    residual = torch.randn(x.shape, generator=generator).to(x.dtype)
    tensors = (value if number >> bit & 1 else None for bit, value in enumerate((weight, bias, residual)))
    return (*tensors, bool(number >> 3 & 1), (1e-5, 1e-3, 0.5)[number % 3])


def _alone(function):
    """Return a function of (x, weight, bias, residual, relu, eps) as one of x."""
    return lambda x: function(x, None, None, None, False, EPS)


_ALIKE = {
    "dtypes": DTYPES,
    "pooled": (-4, -3, -2, -1),  # a case has planes of one kind: they share an error
    # On the CPU PyTorch sums in float64; kernels, its own too, in float32. Four units in the last place are allowed for
    # it: the mean's, the variance's (which the root halves), the root's, the distance's and the product's roundings.
    "floor": 4 * torch.finfo(torch.float32).eps,
}

OPERATOR = Operator(
    name="instance_norm",
    inputs=("x",),
    reference=_alone(fused_reference),
    pytorch=_alone(fused_pytorch),
    launch=launch,
    cases=_cases(lambda number, x, generator: ()),
    cost=_alone(fused_cost),
    **_ALIKE,
)
FUSED = Operator(
    name="instance_norm",
    inputs=("x", "weight", "bias", "residual", "relu", "eps"),
    reference=fused_reference,
    pytorch=fused_pytorch,
    launch=launch_fused,
    cases=_cases(_options),
    cost=fused_cost,
    terms=fused_terms,
    **_ALIKE,
)
