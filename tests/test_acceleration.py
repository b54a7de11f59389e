"""The accelerated network: the whole of it through the kernels, its promises, and what goes to PyTorch."""

import copy
import pickle
import threading

import pytest
import torch

from styleforge_lib import TransformerNet, accelerate, acceleration, load_style
from styleforge_lib.acceleration import SHAPES_KEPT, AcceleratedTransformerNet, Arena, layers_of
from styleforge_lib.lab.bench import errors
from styleforge_lib.ops import convolution, residual_blocks_hopper
from styleforge_lib.ops.layer import Layer
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE, Kernel, chosen_device

DEVICE = "cuda" if chosen_device() == "gpu" else "cpu"


@pytest.fixture
def emulated(monkeypatch):
    """Where there is no GPU, ask for the emulator: a CPU tensor would otherwise go to PyTorch."""
    if DEVICE == "cpu":
        monkeypatch.setenv(DEVICE_VARIABLE, "emulator")


@pytest.fixture(scope="module")
def style():
    return load_style("great_wave", DEVICE)


def pictures(*shape, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 255).to(DEVICE)


def through_pytorch(net, x, dtype=torch.float64):
    with torch.no_grad():
        return copy.deepcopy(net).to(dtype)(x.to(dtype))


def test_the_whole_network_at_64x64(style, emulated, launched):
    x, fast = pictures(1, 3, 64, 64), accelerate(style)
    with torch.inference_mode():
        out, again = fast(x), fast(x)
        painted = fast.paint(x.to(torch.uint8))
    expected = through_pytorch(style, x)
    ours, peer = (errors(y, expected)["psnr_db"] for y in (out, through_pytorch(style, x, torch.float16)))
    assert ours > 45
    assert ours > peer - 1
    assert torch.equal(out, again)
    assert out.dtype is torch.float32
    assert painted.dtype is torch.uint8
    wanted = through_pytorch(style, x.to(torch.uint8)).clamp(0, 255).round()
    assert (painted.double() - wanted).abs().max() <= 1
    assert len([name for name in launched if name.startswith(("conv2d", "upsample"))]) % 16 == 0
    assert f"{6 * 16 * 16 * 128 * 2 / 2**20:.1f} MiB of buffers" in fast.report()  # six quarters
    assert len(fast.report().splitlines()) == 1 + 16 + 2


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 40), (torch.float32, 70)])
def test_other_numbers_on_ragged_pictures(style, emulated, dtype, least):
    x, fast = pictures(2, 3, 6, 9), accelerate(style, dtype=dtype, tf32=True)
    with torch.inference_mode():
        out = fast(x)
    assert out.shape == (2, 3, 8, 12)
    assert errors(out, through_pytorch(style, x))["psnr_db"] > least


def test_exact_float32(style, emulated, launched):
    """Every layer on CUDA cores, and as near to float64 as PyTorch's own float32 without TF32."""
    x, fast = pictures(1, 3, 24, 28), accelerate(style, dtype=torch.float32, tf32=False)
    expected = through_pytorch(style, x)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        out, peer = fast(x), style(x)
    error, allowed = ((y.double() - expected).abs().max().item() for y in (out, peer))
    assert error <= 2 * allowed + expected.abs().max().item() * torch.finfo(torch.float32).eps / 2
    assert launched.count("conv2d_cuda_cores") == 16
    assert fast.report().count("CudaCoreConvolution") == 16


def test_the_smallest_picture_and_half_precision_in_and_out(style, emulated):
    x, fast = pictures(1, 3, 5, 5).half(), accelerate(style)
    with torch.inference_mode():
        out = fast(x)
    assert out.dtype is torch.float16
    assert errors(out, through_pytorch(style, x))["psnr_db"] > 45
    with pytest.raises(ValueError, match="x is 4x9: the first layer reflects 4 pixels, which takes at least 5x5"):
        fast(pictures(1, 3, 4, 9))


def test_it_is_never_stale(style, emulated):
    x, net = pictures(1, 3, 12, 12), TransformerNet().to(DEVICE)
    torch.manual_seed(0)
    fast = accelerate(net)
    with torch.inference_mode():
        before = fast(x)
        fast.load_state_dict(style.state_dict())
        assert errors(fast(x), through_pytorch(style, x))["psnr_db"] > 45
        fast.load_state_dict(net.state_dict())
        assert torch.equal(fast(x), before)


def test_the_model_that_is_given_is_not_changed(style):
    before = copy.deepcopy(style.state_dict())
    fast = accelerate(style)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in style.state_dict().items())
    assert list(fast.state_dict()) == list(before)
    assert all(parameter.requires_grad for parameter in style.parameters())


def test_the_least_recently_used_shape_goes(style, emulated, monkeypatch):
    fast = accelerate(style)
    monkeypatch.setattr(AcceleratedTransformerNet, "_through_pytorch", lambda *args: pytest.fail("not by a kernel"))
    with torch.inference_mode():
        for number in range(SHAPES_KEPT + 1):
            x = pictures(1, 3, 5, 5 + number)
            fast._plan(x, torch.float32)
            fast._plan(pictures(1, 3, 5, 5), torch.float32)
    assert len(fast._plans) == SHAPES_KEPT
    widths = [key[1][3] for key in fast._plans]
    assert widths[-1] == 5
    assert 6 not in widths


def test_a_shape_that_was_painted_is_not_looked_at_again(style, emulated, monkeypatch):
    """... but gradients, autocast and other devices are looked at each time."""
    x, fast = pictures(1, 3, 5, 6), accelerate(style)
    with torch.inference_mode():
        first = fast(x)
    takes, looked = AcceleratedTransformerNet._takes, []
    monkeypatch.setattr(AcceleratedTransformerNet, "_takes", lambda *args: looked.append(1) or takes(*args))
    assert torch.equal(fast(x), first)
    assert not looked
    fast(x.clone().requires_grad_())
    with torch.autocast(DEVICE):
        fast(x)
    with pytest.raises(ValueError, match="x must be pictures"):
        fast(x[0])
    assert len(looked) == 2
    if DEVICE == "cpu":
        monkeypatch.delenv(DEVICE_VARIABLE)
        assert not torch.equal(fast(x), first)


def test_threads_share_a_plan(style, emulated):
    fast, xs = accelerate(style), [pictures(1, 3, 5, 6, seed=seed) for seed in range(2)]
    with torch.inference_mode():
        expected = [fast(x) for x in xs]
    got: dict[int, torch.Tensor] = {}

    def paint(number):
        with torch.inference_mode():
            stream = torch.cuda.Stream() if DEVICE == "cuda" else None
            with torch.cuda.stream(stream):
                got[number] = fast(xs[number])
            if stream:
                stream.synchronize()

    threads = [threading.Thread(target=paint, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[number], expected[number]) for number in range(2))


def test_copies_and_pickles_plan_for_themselves(style, emulated):
    fast, x = accelerate(style), pictures(1, 3, 8, 8)
    with torch.inference_mode():
        expected = fast(x)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(other(x), expected)
            other.load_state_dict({key: value * 0 for key, value in fast.state_dict().items()})
            assert not torch.equal(other(x), expected)
        assert torch.equal(fast(x), expected)


# ---- what goes to PyTorch ------------------------------------------------------------------------------------------


def test_on_a_cpu_pytorch_computes_the_same(style, monkeypatch, launched):
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    net = load_style("great_wave")
    x, fast = pictures(1, 3, 16, 20).cpu(), accelerate(net)
    with torch.inference_mode():
        assert torch.equal(fast(x), net(x))
        assert torch.equal(fast.paint(x), net(x).clamp(0, 255).round().to(torch.uint8))
        assert fast(x.to(torch.uint8)).dtype is torch.float32
    assert not launched
    assert fast.report().count("PyTorch: the network lies on cpu") == 16


def test_gradients_go_through_pytorch(style, emulated, launched):
    x = pictures(1, 3, 8, 8).requires_grad_()
    accelerate(style)(x).sum().backward()
    assert x.grad.abs().max() > 0
    assert not launched


def test_float64_goes_through_pytorch(style, emulated, launched):
    with torch.no_grad():
        assert accelerate(style)(pictures(1, 3, 8, 8).double()).dtype is torch.float64
    assert not launched


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (torch.zeros(3, 8, 8), ValueError, r"x must be pictures, \(N, 3, H, W\), and has shape \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), ValueError, r"has shape \(1, 1, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), ValueError, r"has shape \(0, 3, 8, 8\)"),
        ([1, 2], TypeError, "x must be a torch tensor"),
    ],
)
def test_refused_pictures(style, given, error, words):
    with pytest.raises(error, match=words):
        accelerate(style)(given)


def test_refused_arguments(style):
    with pytest.raises(TypeError, match="net must be a TransformerNet, not Linear"):
        accelerate(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="dtype must be torch"):
        accelerate(style, dtype=torch.float64)


# ---- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [0, 1, 5])
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 17, 33), (1, 3, 5, 6), (3, 3, 1080, 1919)])
def test_what_is_alive_at_one_time_has_its_own_place(shape, together):
    """Each launch: the bytes that it writes are none that it reads, and none that a later launch still wants."""
    with torch.device("meta"):
        steps = list(layers_of(TransformerNet(), "float16", torch.float32, torch.float32, together))
    arena = Arena(shape, torch.float16, torch.device("meta"))
    shapes = {"picture": shape}
    for step in steps:
        shapes[step.target] = step.layer.out_shape(shapes[step.source])
        also = [name for name in (step.materialised, *step.scratch) if name]
        shapes |= dict.fromkeys(also, shapes[step.source])
        written = [name for name in (step.target, *also) if name != "painting"]
        read = [name for name in (step.source, step.residual) if name and name != "picture"]
        later = steps[steps.index(step) + 1 :]
        wanted = read + [
            n for n in ("even", "odd") if n in shapes and n not in written and _read_before_written(n, later)
        ]
        spans = {name: _span(arena, name, shapes[name]) for name in {*written, *wanted}}
        for name in written:
            for other in {*wanted, *written} - {name}:
                (a, b), (c, d) = spans[name], spans[other]
                assert b <= c or d <= a, (step.name, name, other)


def _span(arena, name, shape):
    tensor = arena.tensor(name, shape)
    return tensor.storage_offset(), tensor.storage_offset() + tensor.numel()


def _read_before_written(name, steps):
    for step in steps:
        if name in (step.source, step.residual):
            return True
        if name in (step.target, step.materialised, *step.scratch):
            return False
    return False


def test_on_hopper_the_launches_between_first_and_last_may_overlap(style, emulated, monkeypatch):
    """Every kernel as Hopper has it; kernels that never wait would be refused."""
    if DEVICE == "cpu":
        monkeypatch.setattr(convolution, "EMULATED_ARCH", "sm_90a")
    elif convolution.architecture(torch.device("cuda")) != "sm_90a":
        pytest.skip("needs a Hopper card")
    launches, call = [], Kernel.__call__

    def spy(kernel, *args, **more):
        launches.append((kernel.name, more.get("overlap", False)))
        call(kernel, *args, **more)

    monkeypatch.setattr(Kernel, "__call__", spy)
    x, turns = pictures(1, 3, 5, 6), 3 if DEVICE == "cuda" else 1  # on a card: launched, captured, replayed
    with torch.inference_mode():
        monkeypatch.setattr(acceleration, "OVERLAP", False)
        plain = accelerate(style)(x)
        assert not any(may for _, may in launches)
        launches.clear()
        monkeypatch.setattr(acceleration, "OVERLAP", True)
        fast = accelerate(style)
        assert all(torch.equal(fast(x), plain) for _ in range(turns))
    names = [name for name, _ in launches[:31]]
    assert (names.count("conv2d_hopper"), names.count("conv2d_hopper_persistent")) == (12, 2)
    assert names.count("close_planes") == 15
    assert [may for _, may in launches[:31]] == [False] * 2 + [True] * 28 + [False]


def test_residual_blocks_in_one_launch_paint_the_same(style, emulated, launched, monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(convolution, "EMULATED_ARCH", "sm_90a")
    elif convolution.architecture(torch.device("cuda")) != "sm_90a":
        pytest.skip("needs a Hopper card")
    x, table = pictures(1, 3, 5, 6), residual_blocks_hopper.ONE_LAUNCH
    plain = painted_between(accelerate(style), x)
    launched.clear()
    monkeypatch.setattr(residual_blocks_hopper, "ONE_LAUNCH", {**table, 5: ((4, 4),)})
    fast = accelerate(style)
    assert torch.equal(painted_between(fast, x), plain)
    assert launched.count("residual_blocks_hopper") == 1
    assert sum(name.startswith("conv2d") for name in launched) == 4
    assert "; 5 residual blocks in a launch" in fast.report()
    assert not accelerate(style, dtype=torch.float32)._together(x.shape, x.device), "float32 has no such kernel"


def painted_between(fast, x):
    """Return what the launches between the first and the last make of numbers that are always the same."""
    generator, plan = torch.Generator().manual_seed(0), fast._plan(x, x.dtype)
    (_, first, _), (_, _, given), (last, _, _) = plan._ways[0], plan._ways[1], plan._ways[-1]
    for tensor in (first, given["affine"]):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    with torch.inference_mode():
        plan._launch_between()
    return last.clone()


def test_a_launch_names_its_layers():
    """What tools add up by layer is the same network, however its residual blocks are launched."""
    with torch.device("meta"):
        net = TransformerNet()
    ways = [list(layers_of(net, "float16", torch.uint8, torch.uint8, together)) for together in (False, True)]
    assert [len(way) for way in ways] == [16, 7]
    names = [[name for step in way for name in step.layers] for way in ways]
    assert names[0] == names[1] == [step.name for step in ways[0]]


def test_layers_are_those_of_the_network():
    steps = list(layers_of(TransformerNet(), "float16", torch.uint8, torch.uint8))
    assert [step.name for step in steps][:5] == ["conv1", "conv2", "conv3", "res1.conv1", "res1.conv2"]
    assert steps[0].layer == Layer(c_in=3, c_out=32, kernel=9, statistics=True, picture_in=torch.uint8)
    assert [step.bias is not None for step in steps] == [False] * 15 + [True]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA graph")
def test_captured_in_someone_elses_graph(style):
    fast, x = accelerate(style), pictures(1, 3, 64, 64)
    with torch.inference_mode():
        expected = [fast(x) for _ in range(3)]  # launched, captured, replayed
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = fast(x)
        graph.replay()
        assert all(torch.equal(y, expected[0]) for y in (*expected, out))
        x.add_(1)
        graph.replay()
        assert torch.equal(out, fast(x))


def test_the_public_name_is_the_function():
    """A module of the same name would hide it as soon as somebody imports the module."""
    import styleforge_lib
    import styleforge_lib.acceleration

    assert styleforge_lib.accelerate is accelerate
