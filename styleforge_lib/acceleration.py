"""`accelerate(net)`: the whole TransformerNet as one plan of fused convolutions, replayed as a CUDA graph.

Contents
    accelerate                      a network -> a network that computes the same, faster
    AcceleratedTransformerNet       the same parameters and state_dict; forward() goes through the plan
    layers_of                       the sixteen convolutions, and what is fused into each
    Plan                            one shape: preplanned buffers, the launches, the graph
    Arena                           where the buffers lie

Between two layers stand the raw output of a convolution, (N, H, W, C), and scale and shift of the norm that follows,
which the next layer applies while it loads (see ops/layer.py). Sixteen launches, nothing between them.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from styleforge_lib.models.transformer_net import ResidualBlock, TransformerNet
from styleforge_lib.ops import residual_blocks_hopper
from styleforge_lib.ops.convolution import architecture, kernel_for, prepare
from styleforge_lib.ops.elementwise import PLAIN, emulator_asked_for, is_watched
from styleforge_lib.ops.layer import PICTURE_TYPES, Layer, Norm, plane_sums
from styleforge_lib.ops.residual_blocks_hopper import ResidualBlocks, sums_of

SHAPES_KEPT = 8  # plans of so many shapes are kept, the least recently used goes first
OVERLAP = True  # whether the launches between the first and the last may begin before the one before has ended
BLOCKS = 5  # residual blocks
QUARTER_CHANNELS = 128  # of the residual blocks, at a quarter of the picture's size
NUMBERS = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


def accelerate(net: TransformerNet, *, dtype: torch.dtype = torch.float16, tf32: bool | None = None) -> nn.Module:
    """Return a network that computes what `net` does, for inference, through the library's kernels.

    dtype: what activations and weights are held in between picture and painting, float16, bfloat16 or float32; sums and
    statistics are float32 and finer. tf32: whether products of float32 are taken in TF32, on tensor cores, or exactly,
    on CUDA cores; left out, what `torch.backends.cudnn.allow_tf32` says now.

    Input (N, 3, H, W) in 0..255, floating or uint8; output (N, 3, H', W') of the input's dtype (float32 for uint8).
    `paint(x)` gives uint8. Where no kernel applies (a CPU, gradients, torch.compile, float64) PyTorch computes
    the same. `report()` lists each layer and what runs it. `net` is copied, and not changed.
    """
    if not isinstance(net, TransformerNet):
        raise TypeError(f"accelerate: net must be a TransformerNet, not {type(net).__name__}")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"accelerate: dtype must be torch.float16, torch.bfloat16 or torch.float32, not {dtype}")
    tf32 = torch.backends.cudnn.allow_tf32 if tf32 is None else tf32
    return AcceleratedTransformerNet(net, NUMBERS.get(dtype, "tf32" if tf32 else "float32"))


# ----------------------------------------------------------------------------------------------------------------------
# The network


class AcceleratedTransformerNet(TransformerNet):
    """A TransformerNet whose forward pass is one plan. `load_state_dict` and `.to()` make it plan anew.

    It may be called from several threads and on several streams: calls of one shape share its buffers, and wait for
    each other on the card. Inside a capture of someone else's CUDA graph the launches are captured, with buffers of
    their own. Its parameters are read when it plans: assign to them through load_state_dict.
    """

    def __init__(self, net: TransformerNet, numbers: str):
        super().__init__()
        first = net.conv1.conv2d.weight
        self.to(first.device, first.dtype)
        self.load_state_dict(net.state_dict())
        self.requires_grad_(False).eval()
        self.numbers = numbers
        self._plans: OrderedDict[tuple, Plan] = OrderedDict()
        self._kernels: dict[tuple, object] = {}
        self._lock = threading.Lock()
        self.register_load_state_dict_post_hook(_weights_are_new)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Paint a batch of pictures, (N, 3, H, W) in 0..255."""
        return self._run(x, x.dtype if isinstance(x, torch.Tensor) and x.is_floating_point() else torch.float32)

    def paint(self, x: torch.Tensor) -> torch.Tensor:
        """Paint as `forward` does, and return uint8: clamped to 0..255 and rounded to the nearest."""
        return self._run(x, torch.uint8)

    def report(self) -> str:
        """Return what runs each layer and why, and the memory of each shape that is planned."""
        lines = [f"AcceleratedTransformerNet, {self.numbers}; the weights are those of the last load_state_dict"]
        device = self.conv1.conv2d.weight.device
        why = self._why_not(device)
        for step in layers_of(self, self.numbers, torch.float32, torch.float32):
            if why:
                lines.append(f"  {step.name:12} PyTorch: {why}")
                continue
            kernel = kernel_for(step.layer, architecture(device))
            fused = [name for name in ("affine", "relu_in", "residual", "statistics") if getattr(step.layer, name)]
            lines.append(f"  {step.name:12} {kernel.__name__:22} {architecture(device)}; fused: {', '.join(fused)}")
        for (_, shape, taken, given), plan in list(self._plans.items()):
            size = "x".join(map(str, shape))
            kind = "CUDA graph" if plan.graph is not None else "launches"
            blocks = [step for step in plan.steps if step.blocks]
            each = f"; {len(blocks[0].blocks)} residual blocks in a launch" if blocks else ""
            memory = f"{plan.arena.bytes / 2**20:.1f} MiB of buffers"
            lines.append(f"  planned: {size} {taken} to {given}: {memory}, {kind}{each}")
        return "\n".join(lines)

    def _run(self, x: torch.Tensor, given: torch.dtype) -> torch.Tensor:
        plan = self._known(x, given)
        if plan is not None:
            return plan(x.detach().contiguous())
        _check_pictures(x)
        if not self._takes(x, given):
            return self._through_pytorch(x, given)
        x = x.detach().contiguous()
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            if not self._is_prepared(x, given):
                raise RuntimeError("call the network once with such a picture before you capture it in a CUDA graph")
            return Plan(self._prepared(x.shape, x.device, x.dtype, given), tuple(x.shape), x.device, given).launch(x)
        return self._plan(x, given)(x)

    def _known(self, x: torch.Tensor, given: torch.dtype) -> "Plan | None":
        """Return the plan of the usual call: one of this shape was planned before, and nothing else has changed.

        That the kernels take its shape and dtypes needs no second look: it costs more than painting a small picture.
        """
        if type(x) not in PLAIN or is_watched(x) or (torch.is_grad_enabled() and x.requires_grad):
            return None
        if torch.cuda.is_current_stream_capturing() if x.is_cuda else not emulator_asked_for():
            return None
        key = (x.device, x.shape, x.dtype, given)
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None:
                self._plans.move_to_end(key)
            return plan

    def _takes(self, x: torch.Tensor, given: torch.dtype) -> bool:
        """Whether the kernels take this call."""
        weight = self.conv1.conv2d.weight
        if is_watched(x) or (torch.is_grad_enabled() and x.requires_grad) or x.device != weight.device:
            return False
        return x.dtype in PICTURE_TYPES and given in PICTURE_TYPES and not self._why_not(x.device)

    def _why_not(self, device: torch.device) -> str:
        """Return why no kernel computes on this device; nothing where they do."""
        if device.type != "cuda" and not (device.type == "cpu" and emulator_asked_for()):
            return f"the network lies on {device.type}, for which there is no kernel: move it to a GPU"
        arch = architecture(device)
        try:
            for step in layers_of(self, self.numbers, torch.float32, torch.float32):
                kernel_for(step.layer, arch)
        except ValueError as error:
            return str(error)
        return ""

    def _through_pytorch(self, x: torch.Tensor, given: torch.dtype) -> torch.Tensor:
        before = torch.backends.cudnn.allow_tf32
        try:
            torch.backends.cudnn.allow_tf32 = before and self.numbers != "float32"
            out = super().forward(x.to(self.conv1.conv2d.weight.dtype))
        finally:
            torch.backends.cudnn.allow_tf32 = before
        return out.clamp(0, 255).round().to(given) if given is torch.uint8 else out.to(given)

    def _plan(self, x: torch.Tensor, given: torch.dtype) -> "Plan":
        """Return the plan of this shape, made now if it is new; the least recently used of too many is dropped."""
        key = (x.device, x.shape, x.dtype, given)
        with self._lock:
            plan = self._plans.get(key)
            if plan is None:
                plan = Plan(self._prepared(x.shape, x.device, x.dtype, given), tuple(x.shape), x.device, given)
                self._plans[key] = plan
                while len(self._plans) > SHAPES_KEPT:
                    self._plans.popitem(last=False)[1].close()
            self._plans.move_to_end(key)
            return plan

    def _is_prepared(self, x: torch.Tensor, given: torch.dtype) -> bool:
        """Whether weights are packed and kernels are loaded: a capture would only note it down."""
        steps = layers_of(self, self.numbers, x.dtype, given, self._together(x.shape, x.device))
        return all((step.name, x.device, step.layer) in self._kernels for step in steps)

    def _together(self, shape: tuple[int, ...], device: torch.device) -> bool:
        """Return whether the residual blocks are one launch at this size, or each convolution one of its own."""
        height, width = quarter_size(*shape[2:])
        if not residual_blocks_hopper.is_faster(BLOCKS, shape[0] * height * width):
            return False
        blocks = [residual_block_of(getattr(self, f"res{number}")) for number in range(1, BLOCKS + 1)]
        return residual_blocks_hopper.takes(blocks, self.numbers, architecture(device))

    def _prepared(
        self, shape: tuple[int, ...], device: torch.device, taken: torch.dtype, given: torch.dtype
    ) -> list["Step"]:
        """Return the steps of pictures of this shape with their kernels; weights are packed once for all shapes."""
        steps = []
        for step in layers_of(self, self.numbers, taken, given, self._together(shape, device)):
            key = (step.name, device, step.layer)
            if key not in self._kernels and step.blocks:
                blocks = [residual_block_of(block) for block in step.blocks]
                self._kernels[key] = ResidualBlocks(blocks, self.numbers, architecture(device))
            elif key not in self._kernels:
                self._kernels[key] = prepare(step.layer, step.conv.weight, step.bias, step.norm)
            steps.append(replace(step, kernel=self._kernels[key]))
        return steps

    def _forget(self) -> None:
        with self._lock:
            for plan in self._plans.values():
                plan.close()
            self._plans.clear()
            self._kernels.clear()

    def _apply(self, *args, **kwargs):
        result = super()._apply(*args, **kwargs)
        if hasattr(self, "_plans"):
            self._forget()
        return result

    def __getstate__(self) -> dict:
        """Leave out what belongs to this process: copies and pickles plan for themselves."""
        return {**self.__dict__, "_plans": OrderedDict(), "_kernels": {}, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()


def _weights_are_new(net: AcceleratedTransformerNet, keys: object) -> None:
    """Do what follows load_state_dict; a function with a name, so that the network can be pickled."""
    net._forget()


def _check_pictures(x: torch.Tensor) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x must be a torch tensor, (N, 3, H, W), not {type(x).__name__}")
    if x.dim() != 4 or x.shape[1] != 3 or not x.numel():
        raise ValueError(f"x must be pictures, (N, 3, H, W), and has shape {tuple(x.shape)}")
    if min(x.shape[2:]) < 5:
        raise ValueError(f"x is {x.shape[2]}x{x.shape[3]}: the first layer reflects 4 pixels, which takes at least 5x5")


# ----------------------------------------------------------------------------------------------------------------------
# The layers


@dataclass(frozen=True)
class Step:
    """One launch: the layer, the convolution that it computes, and the norm that follows.

    source, target: the buffers that it reads and writes. residual, materialised: further ones. scale: whose scale and
    shift it applies, a step's name. blocks: residual blocks that the launch computes, and then layer is the first of
    their convolutions, and scratch are the buffers in which it leaves nothing.
    """

    name: str
    layer: Layer
    conv: nn.Conv2d
    bias: torch.Tensor | None
    norm: Norm | None
    source: str
    target: str
    scale: str | None = None
    residual: str | None = None
    materialised: str | None = None
    blocks: tuple[ResidualBlock, ...] = ()
    scratch: tuple[str, ...] = ()
    kernel: object = None

    @property
    def layers(self) -> list[str]:
        """The network's convolutions that the launch computes."""
        first = self.name.removeprefix("res")
        numbers = range(int(first), int(first) + len(self.blocks)) if self.blocks else ()
        return [f"res{number}.conv{which}" for number in numbers for which in (1, 2)] or [self.name]


def norm_of(module: nn.InstanceNorm2d) -> Norm:
    """Return a norm as the kernels take it."""
    return Norm(module.weight, module.bias, module.eps)


def residual_block_of(block: ResidualBlock) -> residual_blocks_hopper.ResidualBlock:
    """Return a residual block as the kernel takes it."""
    first, second = (block.conv1.conv2d, block.in1), (block.conv2.conv2d, block.in2)
    return residual_blocks_hopper.ResidualBlock(*(part for c, n in (first, second) for part in (c.weight, norm_of(n))))


def layers_of(
    net: TransformerNet, numbers: str, taken: torch.dtype, given: torch.dtype, together: bool = False
) -> Iterator[Step]:
    """Yield the sixteen convolutions of a TransformerNet in order; taken, given: the dtypes of picture and painting.

    together: whether the residual blocks make one launch; else each convolution is a launch of its own.

    Buffers: full, half are a convolution's raw output at the picture's size and half of it; quarter, inner those of the
    residual blocks; even, odd hold what is added on, in turns.
    """

    def step(name: str, conv: nn.Conv2d, after: nn.InstanceNorm2d | None, source: str, target: str, **more) -> Step:
        fused = {key: more.pop(key) for key in ("relu_in", "upsample", "picture_in", "picture_out") if key in more}
        layer = Layer(
            c_in=conv.in_channels,
            c_out=conv.out_channels,
            kernel=conv.kernel_size[0],
            stride=conv.stride[0],
            numbers=numbers,
            affine="scale" in more,
            residual="residual" in more,
            materialise="materialised" in more,
            statistics=after is not None,
            bias=after is None and conv.bias is not None,
            **fused,
        )
        bias = None if after is not None else conv.bias  # before a norm a bias is taken away again with the mean
        return Step(name, layer, conv, bias, norm_of(after) if after is not None else None, source, target, **more)

    relu = {"relu_in": True}
    yield step("conv1", net.conv1.conv2d, net.in1, "picture", "full", picture_in=taken)
    yield step("conv2", net.conv2.conv2d, net.in2, "full", "half", scale="conv1", **relu)
    yield step("conv3", net.conv3.conv2d, net.in3, "half", "quarter", scale="conv2", **relu)
    before, added, last = "conv3", None, "quarter"
    if together:
        blocks, last = tuple(getattr(net, f"res{number}") for number in range(1, BLOCKS + 1)), "even"
        ways = {"scale": before, "scratch": ("inner", "odd"), **relu}
        yield step("res1", net.res1.conv1.conv2d, None, "quarter", last, blocks=blocks, **ways)
    for number in range(1, BLOCKS + 1) if not together else ():
        block, kept = getattr(net, f"res{number}"), ("even", "odd")[number % 2]
        ways = relu if added is None else {"residual": added}
        first = f"res{number}.conv1"
        conv, after = block.conv1.conv2d, block.in1
        yield step(first, conv, after, "quarter", "inner", scale=before, materialised=kept, **ways)
        before, added = f"res{number}.conv2", kept
        yield step(before, block.conv2.conv2d, block.in2, "inner", "quarter", scale=first, **relu)
    up = {"upsample": True}
    ways = {} if together else {"scale": before, "residual": added}
    yield step("deconv1", net.deconv1.conv2d, net.in4, last, "half", **ways, **up)
    yield step("deconv2", net.deconv2.conv2d, net.in5, "half", "full", scale="deconv1", **relu, **up)
    yield step("deconv3", net.deconv3.conv2d, None, "full", "painting", scale="deconv2", picture_out=given, **relu)


# ----------------------------------------------------------------------------------------------------------------------
# The plan of one shape


def quarter_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width of the residual blocks."""
    for _ in range(2):
        height, width = -(-height // 2), -(-width // 2)
    return height, width


class Arena:
    """The buffers of one shape, in one piece of memory of six quarters: what is alive at one time has its own place.

    A quarter is a tensor of the residual blocks. [0, 4) full, or quarter, inner, even, odd; [4, 6) half.
    """

    PLACES: ClassVar[dict[str, int]] = {"full": 0, "quarter": 0, "inner": 1, "even": 2, "odd": 3, "half": 4}

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        images, _, height, width = shape
        height, width = quarter_size(height, width)
        self._quarter = images * height * width * QUARTER_CHANNELS
        self._memory = torch.empty(6 * self._quarter, dtype=dtype, device=device)

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a buffer as a tensor of this shape."""
        count = torch.Size(shape).numel()
        start = self.PLACES[name] * self._quarter
        return self._memory[start : start + count].view(shape)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self._memory.nbytes


class Plan:
    """The launches for pictures of one shape. Call it with such pictures.

    The first and the last layer are launched on the caller's tensors; what lies between is a CUDA graph, captured at
    the second call (the first loads the kernels). On the emulator all are launches.
    """

    def __init__(self, steps: list[Step], shape: tuple[int, ...], device: torch.device, given: torch.dtype):
        self.shape, self.device, self.given, self.steps = shape, device, given, steps
        self.arena = Arena(shape, steps[0].layer.dtype, device)
        self.sums = plane_sums(shape[0], device)  # each launch leaves them zero for the next
        self.block_sums = sums_of(shape[0], device) if any(step.blocks for step in steps) else None
        self.graph: torch.cuda.CUDAGraph | None = None
        self._calls, self._lock, self._done, self._stream = 0, threading.Lock(), None, None
        self._ways: list[tuple[torch.Tensor | None, torch.Tensor | None, dict]] = []
        self._place()

    def _place(self) -> None:
        """Give every step its tensors."""
        shapes, scales, tensors = {"picture": self.shape}, {}, {}
        for step in self.steps:
            layer = step.layer
            shapes[step.target] = layer.out_shape(shapes[step.source])
            ways = {"affine": scales[step.scale]} if step.scale else {}
            if step.residual:
                ways["residual"] = tensors[step.residual]
            if step.materialised:
                tensors[step.materialised] = self.arena.tensor(step.materialised, shapes[step.source])
                ways["materialised"] = tensors[step.materialised]
            if layer.statistics:
                scales[step.name] = torch.empty(self.shape[0], layer.c_out, 2, device=self.device)
                ways |= {"sums": self.sums, "affine_out": scales[step.name]}
            if step.blocks:
                names = dict(zip(("inner", "spare"), step.scratch, strict=False))
                ways |= {way: self.arena.tensor(name, shapes[step.source]) for way, name in names.items()}
                ways["sums"] = self.block_sums
            between = step.source != "picture" and step.target != "painting"
            if OVERLAP and between and getattr(step.kernel, "overlaps", False):
                ways["overlap"] = True
            if step.target != "painting":
                tensors[step.target] = self.arena.tensor(step.target, shapes[step.target])
            self._ways.append((tensors.get(step.source), tensors.get(step.target), ways))
        self.out_shape = shapes["painting"]
        sums = [self.sums, *scales.values(), *([] if self.block_sums is None else [self.block_sums])]
        self.bytes = self.arena.bytes + sum(tensor.nbytes for tensor in sums)

    def launch(self, x: torch.Tensor) -> torch.Tensor:
        """Launch every layer on the current stream."""
        out = torch.empty(self.out_shape, dtype=self.given, device=self.device)
        for step, (source, target, ways) in zip(self.steps, self._ways, strict=True):
            step.kernel(x if source is None else source, out if target is None else target, **ways)
        return out

    def _launch_between(self) -> None:
        for step, (source, target, ways) in zip(self.steps[1:-1], self._ways[1:-1], strict=True):
            step.kernel(source, target, **ways)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Paint: the calls of one plan follow each other, whatever stream or thread they come from."""
        if self.device.type != "cuda":
            with self._lock:
                return self.launch(x)
        with self._lock, torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            if self._done is None:
                self._done = torch.cuda.Event()
            elif stream != self._stream:  # what stands on one stream follows each other anyhow
                stream.wait_event(self._done)
            self._calls, self._stream = self._calls + 1, stream
            out = self.launch(x) if self._calls == 1 else self._replay(x)
            self._done.record(stream)
            return out

    def _replay(self, x: torch.Tensor) -> torch.Tensor:
        if self.graph is None:
            self._capture()
        out = torch.empty(self.out_shape, dtype=self.given, device=self.device)
        first, last = self.steps[0], self.steps[-1]
        (_, target, ways), (source, _, last_ways) = self._ways[0], self._ways[-1]
        first.kernel(x, target, **ways)
        self.graph.replay()
        last.kernel(source, out, **last_ways)
        return out

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do on the card meanwhile is none of this capture's business.
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            self._launch_between()
        self.graph = graph

    def close(self) -> None:
        """Wait until nobody uses the buffers any more, so that their memory may be given to others."""
        with self._lock:
            if self._done is not None:
                self._done.synchronize()
