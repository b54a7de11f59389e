"""The checker is tested with kernels that cheat: each is caught, in words that say what is wrong. Honest ones pass."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from styleforge_lib.lab.check import INPUT_GUARD, POISON, Guarded, check, ulp
from styleforge_lib.ops import Case, Cost, Operator, find_operator, operators
from styleforge_lib.runtime import compile_cuda
from styleforge_lib.runtime.kernel import chosen_device

RELU = find_operator("relu")
ADD = find_operator("residual_add")
GUARDED = """extern "C" __global__ void relu(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] < 0.0f ? 0.0f : x[i];
}"""


def cuda_launcher(text: str, threads: int = 256, per_thread: int = 1):
    module = compile_cuda(text)

    def launcher(x, out):
        blocks = -(-x.numel() // (threads * per_thread))
        module(blocks, threads, (x, out, x.numel()))

    return launcher


def line_of(capsys, operator, launcher, **options) -> str:
    """Check, hold the verdict against the printed line, and return the line of a kernel that is wrong."""
    result = check(operator, launcher, **options)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert not result
    assert not result.passed
    assert printed.startswith("✗ ")
    assert result.words in printed
    return printed.strip()


# ----------------------------------------------------------------------------------------------------------------------
# Honest kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("operator", operators(), ids=lambda operator: operator.name)
def test_pytorch_itself_passes(operator, dtype, capsys):
    def launcher(*tensors):
        tensors[-1].copy_(operator.pytorch(*tensors[:-1]))

    assert check(operator, launcher, dtype=dtype)
    assert operator.floor or "to the last bit" in capsys.readouterr().out


def test_a_first_kernel_passes_with_one_line_that_is_always_the_same(capsys):
    launcher = cuda_launcher(GUARDED)
    lines = []
    for _ in range(2):
        result = check("relu", launcher)
        assert result
        lines.append(capsys.readouterr().out)
    assert lines == [f"✓ relu: {len(RELU.cases)} cases right, to the last bit\n"] * 2
    assert result.cases == len(RELU.cases) >= 25


def test_the_whole_check_of_relu_takes_under_three_seconds():
    launcher = cuda_launcher(GUARDED)
    started = time.process_time()  # of this process: the tests of others share the cores
    assert check("relu", launcher)
    assert time.process_time() - started < 3 * max(1, torch.get_num_threads() / 2)


def test_the_title_and_the_dtype_are_in_the_line(capsys):
    def launcher(x, out):
        out.copy_(x.relu())

    check("relu", launcher, title="relu, one block")
    check("relu", launcher, dtype=torch.float16)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("✓ relu, one block: ")
    assert second.startswith("✓ relu float16: ")


# ----------------------------------------------------------------------------------------------------------------------
# Kernels that cheat: ReLU


def zeros(x, out):
    out.zero_()


def nothing(x, out):
    pass


def elsewhere(x, out):
    return torch.relu(x)


def identity(x, out):
    out.copy_(x)


def only_full_blocks(x, out):
    full = x.numel() // 256 * 256
    out.view(-1)[:full] = x.reshape(-1)[:full].relu()


def only_full_vectors(x, out):
    out.copy_(x.relu())
    full = x.numel() // 4 * 4
    out.view(-1)[full:] = x.reshape(-1)[full:]


def last_element_forgotten(x, out):
    out.copy_(x.relu())
    out.view(-1)[-1] = 7.0


def border_forgotten(x, out):
    out.copy_(x.relu())
    if x.dim() == 4:
        out[..., -1] = -1.0


def in_place(x, out):
    out.copy_(x.relu_())


def nan_lost(x, out):
    out.copy_(torch.fmax(x, torch.zeros_like(x)))


def nan_made(x, out):
    out.copy_(torch.nan_to_num(x, nan=float("nan"), posinf=float("nan"), neginf=float("nan")).relu())


def infinity_clipped(x, out):
    out.copy_(x.relu().clamp(max=torch.finfo(x.dtype).max))


def denormals_flushed(x, out):
    out.copy_(torch.where(x.abs() < torch.finfo(x.dtype).tiny, torch.zeros_like(x), x.relu()))


def rounded_to_half(x, out):
    out.copy_(x.relu().half())


def aligned_only(x, out):
    out.copy_(x.relu() if x.data_ptr() % 16 == 0 else x)


def aligned_output_only(x, out):
    out.copy_(x.relu() if out.data_ptr() % 16 == 0 else x)


def first_chunk_only(x, out):
    out.copy_(x)
    out.view(-1)[: 1 << 18] = x.reshape(-1)[: 1 << 18].relu()


CHEATS = [
    (zeros, r"\d+ of 1024 wrong in case 'even 1x4x16x16', worst at .*got 0, expected \d"),
    (nothing, r"out was left unwritten: 1024 of 1024 in case 'even 1x4x16x16', everywhere$"),
    (elsewhere, r"out was left unwritten: .* Write into out: what the launcher returns is not looked at$"),
    (identity, r"got -\d\S+, expected 0, off by"),
    (only_full_blocks, r"out was left unwritten: 1 of 1 in case 'flat 1', the only element"),
    (only_full_vectors, r"wrong in case 'flat \d+', .*the (last|only)"),
    (
        last_element_forgotten,
        r"1 of 1024 wrong .* worst at \(0, 3, 15, 15\), exactly the last element: got 7, expected",
    ),
    (border_forgotten, r"64 of 1024 wrong .*, worst at \(0, \d, \d+, 15\), on the border, as all of them: got -1"),
    (in_place, r"it changed its input x in case .*: \d+ of 1024, the first at \(0, 0, \d+, \d+\)"),
    (nan_lost, r"case 'NaN 1x3x17x31'.*got 0, expected nan"),
    (nan_made, r"case 'infinities 1x3x17x31'.*got nan, expected (0|inf)"),
    (infinity_clipped, r"case 'infinities .*got 3.4\S*, expected inf"),
    (denormals_flushed, r"case 'denormals .*got 0, expected \d\S+e-39"),
    (rounded_to_half, r"off by \S+ where \S+ is allowed"),
    (aligned_only, r"case 'views one element past alignment"),
    (aligned_output_only, r"case 'views one element past alignment"),
    (first_chunk_only, r"case 'large 1x3x389x457'"),
]


@pytest.mark.parametrize(("launcher", "words"), CHEATS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_relu_that_cheats_is_caught(launcher, words, capsys):
    line = line_of(capsys, "relu", launcher, seed=1)
    assert re.search(words, line), line


class RemembersByShape:
    def __init__(self):
        self.answers = {}

    def __call__(self, x, out):
        out.copy_(self.answers.setdefault(tuple(x.shape), x.relu()))


class RemembersByAddress(RemembersByShape):
    def __call__(self, x, out):
        out.copy_(self.answers.setdefault((x.data_ptr(), x.numel()), x.relu()))


@pytest.mark.parametrize("cheat", [RemembersByShape, RemembersByAddress])
def test_an_answer_that_is_remembered_is_caught(cheat, capsys):
    line = line_of(capsys, "relu", cheat(), seed=1)
    assert "it gave its earlier answer to fresh data in case 'even 1x4x16x16', worst at" in line


def test_a_result_that_is_right_by_luck_is_caught(capsys):
    """A race often gives the right answer once: here the second launch is off by an ulp, well within the tolerance."""
    launches = []

    def racy(a, b, out):
        out.copy_(a + b)
        launches.append(out)
        if len(launches) % 2 == 0:
            out[..., -1] = torch.nextafter(out[..., -1], torch.full_like(out[..., -1], torch.inf))

    line = line_of(capsys, "residual_add", racy, seed=1)
    assert (
        "two launches on the same data differ: 64 of 1024 in case 'even 1x4x16x16', the first at (0, 0, 0, 15)" in line
    )
    assert line.endswith("Is there a race?")


@pytest.mark.parametrize(
    ("offset", "words"),
    [(0, r"it wrote outside: 1 past the end of out, the first at index 1024 of 1024, in case"),
     (-1025, r"it wrote outside: 1 before the start of out, in case")],
)  # fmt: skip
def test_a_write_outside_is_caught_by_the_guard_zones(offset, words, capsys):
    """What the emulator sees as a fault, the guard zones see on a GPU, and here through torch."""

    def outside(x, out):
        out.copy_(x.relu())
        wide = torch.as_strided(out, (1,), (1,), out.storage_offset() + out.numel() + offset)
        wide.fill_(1.0)

    assert re.search(words, line_of(capsys, "relu", outside, seed=1))


def test_copying_a_guard_zone_to_the_other_is_a_write_outside(capsys):
    """`if (i <= n)` copies the NaN behind x to the place behind out: the two NaN differ."""

    def one_too_many(x, out):
        wide_x = torch.as_strided(x, (x.numel() + 1,), (1,))
        torch.as_strided(out, (x.numel() + 1,), (1,)).copy_(wide_x.relu())

    assert "it wrote outside: 1 past the end of out" in line_of(capsys, "relu", one_too_many, seed=1)
    assert INPUT_GUARD != POISON


# ----------------------------------------------------------------------------------------------------------------------
# Kernels that cheat: residual add


def test_a_sum_written_into_its_input_is_caught(capsys):
    def in_place_add(a, b, out):
        out.copy_(a.add_(b))

    assert "it changed its input a" in line_of(capsys, "residual_add", in_place_add)


def test_the_sign_of_zero_matters_in_a_sum(capsys):
    def plus_zero(a, b, out):
        out.copy_(a + b + 0.0)

    line = line_of(capsys, "residual_add", plus_zero)
    assert re.search(r"case 'zeros of both signs .*got 0, expected -0", line), line


def test_an_infinity_minus_an_infinity_must_be_nan(capsys):
    def no_nan(a, b, out):
        out.copy_(torch.where(a.isinf() & b.isinf(), a, a + b))

    line = line_of(capsys, "residual_add", no_nan)
    assert re.search(r"case 'infinities .*got -?inf, expected nan", line), line


def test_a_sum_in_float16_is_rounded_once(capsys):
    def truncated(a, b, out):
        exact = a.double() + b.double()
        rounded = exact.to(out.dtype)
        toward_zero = torch.nextafter(rounded, torch.zeros_like(rounded))
        out.copy_(torch.where(rounded.double().abs() > exact.abs(), toward_zero, rounded))
        out.copy_(torch.where(out == 0, out, torch.nextafter(out, torch.zeros_like(out))))

    assert "wrong in case" in line_of(capsys, "residual_add", truncated, dtype=torch.float16)


# ----------------------------------------------------------------------------------------------------------------------
# Real kernels that are wrong


@pytest.mark.parametrize(
    ("text", "per_thread", "emulated", "on_gpu"),
    [
        pytest.param(
            GUARDED.replace("if (i < n) ", ""), 1,
            r"a fault in case 'flat 1': global load of 4 bytes at line 3: 255 threads",
            r"it wrote outside: 255 past the end of out", id="no guard",
        ),
        pytest.param(
            GUARDED.replace("i < n", "i <= n"), 1,
            r"a fault in case 'flat 1': global load of 4 bytes at line 3: 1 thread",
            r"it wrote outside: 1 past the end of out", id="one too many",
        ),
        pytest.param(
            GUARDED.replace("i < n", "i < n - 1"), 1,
            *[r"out was left unwritten: 1 of 1024 in case 'even 1x4x16x16', exactly the last element"] * 2,
            id="one too few",
        ),
        pytest.param(
            GUARDED.replace("x[i] < 0.0f ? 0.0f : x[i]", "fmaxf(x[i], 0.0f)"), 1,
            *[r"case 'NaN 1x3x17x31'.*: got 0, expected nan"] * 2, id="fmaxf loses NaN",
        ),
        pytest.param(
            """extern "C" __global__ void relu(const float4* x, float4* out, int n) {
                int i = blockIdx.x * blockDim.x + threadIdx.x;
                if (i >= n / 4) return;
                float4 v = x[i];
                out[i] = make_float4(v.x < 0 ? 0 : v.x, v.y < 0 ? 0 : v.y, v.z < 0 ? 0 : v.z, v.w < 0 ? 0 : v.w);
            }""", 4,
            *[r"out was left unwritten: 1 of 1 in case 'flat 1'"] * 2, id="no scalar tail",
        ),
        pytest.param(
            GUARDED.replace("const float* x", "float* x").replace("out[i] =", "out[i] = x[i] ="), 1,
            *[r"it changed its input x in case"] * 2, id="writes its input",
        ),
    ],
)  # fmt: skip
def test_a_cuda_kernel_that_is_wrong_is_caught(text, per_thread, emulated, on_gpu, capsys):
    line = line_of(capsys, "relu", cuda_launcher(text, per_thread=per_thread), seed=1)
    assert re.search(emulated if chosen_device() == "emulator" else on_gpu, line), line


def test_the_fault_is_told_without_a_traceback_and_the_notebook_goes_on(capsys):
    if chosen_device() == "gpu":
        pytest.skip("faults are the emulator's; on a GPU the guard zones see the write")
    line = line_of(capsys, "relu", cuda_launcher(GUARDED.replace("if (i < n) ", "")), seed=1)
    assert "Traceback" not in line
    assert "in x" in line


# ----------------------------------------------------------------------------------------------------------------------
# The checker's own figures


def test_the_same_seed_gives_the_same_line_and_another_does_not(capsys):
    first = line_of(capsys, "relu", zeros, seed=5)
    assert line_of(capsys, "relu", zeros, seed=5) == first
    assert line_of(capsys, "relu", zeros, seed=6) != first
    assert "seed" not in first


def test_a_failure_names_the_seed_that_repeats_it(capsys):
    line = line_of(capsys, "relu", zeros)
    seed = int(re.search(r"\(seed=(\d+) repeats this\)$", line)[1])
    assert line_of(capsys, "relu", zeros, seed=seed) == line.replace(f" (seed={seed} repeats this)", "")
    assert line_of(capsys, "relu", zeros) != line


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, np.float32), (torch.float16, np.float16)])
def test_ulp_is_the_distance_to_the_next_number(dtype, kind):
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([
        torch.exp2(torch.rand(2000, generator=generator, dtype=torch.float64) * 44 - 30).to(dtype).double(),
        torch.tensor([0.0, 1.0, 2.0, float(torch.finfo(dtype).tiny), float(torch.finfo(dtype).tiny) / 2]),
    ])  # fmt: skip
    assert np.array_equal(ulp(values, dtype).numpy(), np.spacing(values.numpy().astype(kind)).astype(np.float64))


def plane_sum(x):
    return x.sum((-2, -1), keepdim=True).expand_as(x).clone()


def _planes(generator, dtype):
    return (torch.randn(1, 2, 64, 64, generator=generator).to(dtype),)


SUM = Operator(
    name="plane sum",
    inputs=("x",),
    reference=plane_sum,
    pytorch=lambda x: plane_sum(x.double()).to(x.dtype) + 1e-4,  # a peer whose error is known: 1e-4
    launch=lambda x, out: out.copy_(plane_sum(x)),
    cases=(Case("planes", _planes),),
    cost=lambda x: Cost(8 * x.numel(), x.numel()),
    pooled=(-2, -1),
)


@pytest.mark.parametrize(("error", "passes"), [(0.0, True), (1.8e-4, True), (2.3e-4, False), (float("nan"), False)])
def test_the_tolerance_is_twice_the_peers_error(error, passes, capsys):
    def launcher(x, out):
        out.copy_(plane_sum(x.double()) + error)

    assert bool(check(SUM, launcher, seed=3)) is passes
    line = capsys.readouterr().out
    if error == 1.8e-4:
        assert line == "✓ plane sum: 1 case right, within twice PyTorch's own error\n"


def test_the_floor_is_a_part_of_the_largest_result(capsys):
    operator = Operator(**{**vars(SUM), "pytorch": lambda x: plane_sum(x.double()).to(x.dtype), "floor": 1e-3})

    def off_by(part):
        def launcher(x, out):
            sums = plane_sum(x.double())
            out.copy_(sums + part * sums.abs().amax((-2, -1), keepdim=True))

        return launcher

    assert check(operator, off_by(0.9e-3))
    assert not check(operator, off_by(1.1e-3))
    assert not check(operator, off_by(float("nan")))


def test_the_floor_is_a_part_of_what_cancels(capsys):
    def rest(x):
        return plane_sum(x).relu()

    operator = Operator(
        **{
            **vars(SUM),
            "reference": rest,
            "pytorch": lambda x: rest(x.double()).to(x.dtype),
            "cases": (Case("all is dropped", lambda generator, dtype: (-torch.ones(1, 2, 8, 8, dtype=dtype),)),),
            "floor": 1e-3,
        }
    )
    wide = replace(operator, terms=lambda x: x.abs().sum((-2, -1), keepdim=True))
    assert check(wide, lambda x, out: out.fill_(0.9e-3 * 64))
    assert not check(wide, lambda x, out: out.fill_(1.1e-3 * 64))
    assert not check(operator, lambda x, out: out.fill_(0.9e-3 * 64))
    assert check(operator, lambda x, out: out.fill_(0))


def test_a_peer_that_overflows_is_no_licence(capsys):
    operator = Operator(
        **{**vars(SUM), "pytorch": lambda x: torch.full_like(x, torch.inf), "reference": lambda x: x.clone()}
    )
    assert check(operator, lambda x, out: out.copy_(x))
    assert not check(operator, lambda x, out: out.copy_(x * 1.001))
    assert not check(operator, lambda x, out: out.fill_(torch.inf))


def test_several_outputs_and_numbers_among_the_inputs(capsys):
    def both(x, factor, weight):
        return x * factor, x.mean((-2, -1)) if weight is None else x.mean((-2, -1)) * weight

    operator = Operator(
        name="two",
        inputs=("x", "factor", "weight"),
        outputs=("out", "mean"),
        reference=both,
        pytorch=both,
        launch=lambda x, factor, weight, out, mean: None,
        cases=(Case("planes", lambda generator, dtype: (*_planes(generator, dtype), 3, None)),),
        cost=lambda *inputs: Cost(0, 0),
    )

    def launcher(x, factor, weight, out, mean):
        for target, value in zip((out, mean), both(x, factor, weight), strict=True):
            target.copy_(value)

    assert check(operator, launcher)
    capsys.readouterr()

    def forgets_the_mean(x, factor, weight, out, mean):
        out.copy_(x * factor)

    assert "mean was left unwritten: 2 of 2" in line_of(capsys, operator, forgets_the_mean)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8]
)
@pytest.mark.parametrize("offset", [0, 1])
def test_a_guarded_tensor_is_contiguous_and_starts_where_it_says(dtype, offset):
    guarded = Guarded("out", (3, 5), dtype, "cpu", offset, POISON)
    assert guarded.tensor.is_contiguous()
    assert guarded.tensor.shape == (3, 5)
    assert guarded.tensor.data_ptr() % 64 == offset * dtype.itemsize
    assert guarded.unwritten().all()
    if dtype.is_floating_point:
        assert guarded.tensor.isnan().all()


# ----------------------------------------------------------------------------------------------------------------------
# What a caller may get wrong


def test_refusals_name_the_argument():
    with pytest.raises(ValueError, match="no operator is called 'rellu': there are relu, residual_add"):
        check("rellu", zeros)
    with pytest.raises(ValueError, match=r"relu is for torch.float32 and torch.float16, not torch.int32"):
        check("relu", zeros, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"check calls launcher\(a, b, out\) for residual_add, and .* too many"):
        check("residual_add", zeros)
    with pytest.raises(TypeError, match=r"check calls launcher\(x, out\) for relu; wrap <Module .* a grid and a block"):
        check("relu", compile_cuda(GUARDED))


def test_an_error_in_the_launchers_own_python_is_raised_as_it_is():
    def mistaken(x, out):
        return undefined_name  # noqa: F821

    with pytest.raises(NameError, match="undefined_name"):
        check("relu", mistaken)


def test_a_notebook_shows_the_line_alone(capsys):
    result = check("relu", zeros)
    capsys.readouterr()
    result._ipython_display_()
    assert capsys.readouterr().out == ""
