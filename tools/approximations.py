"""What the PTX manual promises of approximate instructions, and how far results are from it.

Contents
    Approximation   an instruction: the exact function, the inputs that it is tried on, and the error that is promised
    APPROXIMATIONS  kernel of tools/approximate_probes.cu -> Approximation
    errors          how wrong results are, in units of what is promised

float16 and bfloat16 are tried on all their 65536 numbers, float32 and float64 on a dense set: as many numbers between
every two powers of two, zeros, subnormal numbers, infinities and NaN. The exact values are float64's; that is enough
for the instructions of float64 too, which give 20 bits (rsqrt.approx.f64, which gives all, is held to 2 ulp).

Source of the errors: PTX ISA 9, the instructions' own sections. Of rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64 it says
that they keep the upper half of the number, which has 20 bits of fraction; of rsqrt.approx.f64 nothing: 2 ulp are held.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

DENSE = 1 << 18
TAU = 2 * np.pi


@dataclass(frozen=True)
class Approximation:
    """An approximate instruction.

    function: in float64. promised: the largest error, `kind` says of what: "absolute", "relative", "ulp" (of the exact
    value in the result's type) or "either" (absolute for exact values below 1, else relative). low, high: the range of
    inputs in which it is promised, least: their least magnitude but for zero; results elsewhere are not judged.
    flush: subnormal inputs and results are zeros.
    """

    instruction: str
    function: Callable[[np.ndarray], np.ndarray]
    promised: float
    kind: str
    low: float = -np.inf
    high: float = np.inf
    least: float = 0.0
    flush: bool = False

    def inputs(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the numbers that it is tried on."""
        if dtype.itemsize == 2:
            return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        width = {4: np.uint32, 8: np.uint64}[dtype.itemsize]
        info = np.finfo(np.float32 if dtype.itemsize == 4 else np.float64)
        ends = [np.array(v, info.dtype) for v in (max(self.low, -info.max), min(self.high, info.max))]
        halves = []
        for end, sign in ((ends[1], 0), (-ends[0], 1)):
            if end > 0:  # from zero up to the end, evenly in the order of the numbers' bits
                top = int(np.array(end, info.dtype).view(width))
                steps = np.linspace(0, 1, DENSE // 2 - 8)
                bits = np.unique(np.minimum((steps * top).astype(np.uint64), top)).astype(width)
                halves.append(bits | width(sign << (8 * dtype.itemsize - 1)))
        values = np.concatenate(halves).view(info.dtype)
        special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, info.tiny, info.smallest_subnormal], info.dtype)
        return torch.from_numpy(np.concatenate([special, values]))


def errors(approximation: Approximation, x: torch.Tensor, got: torch.Tensor) -> np.ndarray:
    """Return the error of each result as a multiple of what is promised; infinity where a special value is wrong."""
    info = torch.finfo(got.dtype)
    with np.errstate(all="ignore"):
        inputs, values = x.double().numpy(), got.double().numpy()
        if approximation.flush:
            inputs = np.where(np.abs(inputs) < torch.finfo(x.dtype).tiny, np.copysign(0, inputs), inputs)
        exact = approximation.function(inputs)
        judged = ((inputs >= approximation.low) & (inputs <= approximation.high)) | ~np.isfinite(inputs)
        judged &= ~(np.abs(inputs) < approximation.least) | (inputs == 0)
        distance = np.abs(values - exact)
        if approximation.kind == "ulp":
            exponent = np.floor(np.log2(np.maximum(np.abs(exact), info.tiny)))
            unit = 2.0**exponent * info.eps
        elif approximation.kind == "absolute":
            unit = np.ones_like(exact)
        elif approximation.kind == "either":
            unit = np.maximum(np.abs(exact), 1)
        else:
            unit = np.abs(exact)
        error = distance / (unit * approximation.promised)
        # A result below the smallest normal number has fewer bits, or none; one beyond the largest is infinite.
        small = np.abs(exact) < info.tiny
        error = np.where(small, np.where(distance <= info.tiny, 0, np.inf), error)
        edge = info.max * (1 - 2 * approximation.promised * (info.eps if approximation.kind == "ulp" else 1))
        error = np.where((np.abs(exact) > edge) & np.isinf(values) & (np.sign(values) == np.sign(exact)), 0, error)
        error = np.where(np.isnan(exact) & np.isnan(values) | (exact == values), 0, error)
        error = np.where(np.isnan(error), np.inf, error)
    return np.where(judged, error, 0)


def reciprocal(x: np.ndarray) -> np.ndarray:
    """1 / x."""
    return 1 / x


def reciprocal_root(x: np.ndarray) -> np.ndarray:
    """1 / sqrt(x)."""
    return 1 / np.sqrt(x)


def ratio(x: np.ndarray) -> np.ndarray:
    """1.7f / x."""
    return np.float64(np.float32(1.7)) / x


def _both(name: str, *rest, **more) -> dict[str, Approximation]:
    """Return the plain form of a float32 instruction and its .ftz form."""
    kernel = f"{name.partition('.')[0]}_float32"
    return {
        kernel: Approximation(f"{name}.f32", *rest, **more),
        f"{kernel}_ftz": Approximation(f"{name}.ftz.f32", *rest, **more, flush=True),
    }


APPROXIMATIONS = {
    **_both("rcp.approx", reciprocal, 1, "ulp"),
    **_both("sqrt.approx", np.sqrt, 2.0**-23, "relative"),
    **_both("rsqrt.approx", reciprocal_root, 2.0**-22.9, "relative"),
    **_both("ex2.approx", np.exp2, 2, "ulp"),
    **_both("lg2.approx", np.log2, 2.0**-22, "either"),
    **_both("sin.approx", np.sin, 2.0**-20.5, "absolute", -TAU, TAU),
    **_both("cos.approx", np.cos, 2.0**-20.5, "absolute", -TAU, TAU),
    "sin_float32_wide": Approximation("sin.approx.f32", np.sin, 2.0**-14.7, "absolute", -50 * TAU, 50 * TAU),
    "cos_float32_wide": Approximation("cos.approx.f32", np.cos, 2.0**-14.7, "absolute", -50 * TAU, 50 * TAU),
    "tanh_float32": Approximation("tanh.approx.f32", np.tanh, 2.0**-11, "relative"),
    "div_float32": Approximation("div.approx.f32", ratio, 2, "ulp", -(2.0**126), 2.0**126, 2.0**-126),
    "div_float32_ftz": Approximation("div.approx.ftz.f32", ratio, 2, "ulp", -(2.0**126), 2.0**126, 2.0**-126, True),
    "div_float32_full": Approximation("div.full.f32", ratio, 2, "ulp"),
    "ex2_float16": Approximation("ex2.approx.f16", np.exp2, 2.0**-9.9, "relative"),
    "tanh_float16": Approximation("tanh.approx.f16", np.tanh, 2.0**-10.987, "absolute"),
    "ex2_bfloat16": Approximation("ex2.approx.ftz.bf16", np.exp2, 2.0**-7, "relative", flush=True),
    # The manual says 2^-8, which is rounded: an H200 reaches 1.00007 of it.
    "tanh_bfloat16": Approximation("tanh.approx.bf16", np.tanh, 2.0**-7.999, "absolute"),
    "rcp_float64": Approximation("rcp.approx.ftz.f64", reciprocal, 2.0**-19, "relative", flush=True),
    "rsqrt_float64_ftz": Approximation("rsqrt.approx.ftz.f64", reciprocal_root, 2.0**-19, "relative", flush=True),
    "rsqrt_float64": Approximation("rsqrt.approx.f64", reciprocal_root, 2, "ulp"),
}
