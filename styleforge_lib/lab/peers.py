"""The peers: every way in which PyTorch itself runs the whole TransformerNet, measured in one run.

"tf32" is PyTorch's default for float32 (convolutions multiply in TF32), "float32" the same without TF32, and "float16"
has its tensors channels_last, the layout that tensor cores read best. "eager" is PyTorch as it comes; every other way
has cudnn.benchmark on, which tries cuDNN's algorithms once for each shape and keeps the fastest.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch

from styleforge_lib.lab import records
from styleforge_lib.lab.bench import Candidate, Table, bench, errors, graphed, replay
from styleforge_lib.lab.photos import photo_tensor
from styleforge_lib.lab.profile import OPERATOR
from styleforge_lib.models.checkpoints import load_style
from styleforge_lib.models.stages import stages
from styleforge_lib.models.transformer_net import TransformerNet

STYLE, PHOTO = "starry_night", "astronaut"
PRECISIONS = (("float32", "nchw"), ("tf32", "nchw"), ("float16", "nhwc"))
EAGER = ("eager", "eager + benchmark", "eager + graph")
COMPILED = {  # version: torch.compile's mode
    "float32": {},
    "tf32": {"compile": "default"},
    "float16": {"compile": "default", "compile max-autotune": "max-autotune"},
}


def bench_peers(
    height: int,
    width: int,
    *,
    compiled: bool = True,
    methods: Sequence[str] = ("cold",),
    run: str | None = None,
    told: Callable[[str], None] | None = None,
) -> Table:
    """Measure all peers on one photo of (height, width) pixels, or replay the record without a GPU.

    ``compiled`` includes torch.compile, which takes a minute or more; ``told`` receives each line as it is measured.
    """
    if not torch.cuda.is_available():
        return recorded_peers(height, width, compiled=compiled, methods=methods)
    shape, names = f"1x3x{height}x{width}", _names(compiled)
    x = photo_tensor(PHOTO, height, width).cuda()
    beside = ";".join(f"{c.version}/{c.dtype}" for c in names)
    rows = []
    with torch.inference_mode():
        for candidate in _peers(x, compiled):
            table = bench(OPERATOR, [candidate], shape=shape, methods=methods, run=run, peers=beside)
            rows += table.rows
            if told:
                told("\n".join(f"{shape}  {line}" for line in str(table).splitlines()[1:-1]))
    return Table(rows)


def bench_network(version: str, change: Callable[[TransformerNet], torch.nn.Module], height: int, width: int) -> Table:
    """Measure the network that `change` makes of a fresh TransformerNet, in TF32 and float16, or replay the record.

    Beside `version` stand "eager + benchmark", the network as it was, and "`version` + graph", in a CUDA graph.
    """
    names = [
        Candidate(version=name, dtype=dtype, layout=layout)
        for dtype, layout in PRECISIONS[1:]
        for name in ("eager + benchmark", version, f"{version} + graph")
    ]
    shape = f"1x3x{height}x{width}"
    if not torch.cuda.is_available():
        return replay(OPERATOR, names, shape=shape)
    run, beside, rows = records.new_run(), ";".join(f"{c.version}/{c.dtype}" for c in names), []
    with torch.inference_mode():
        for dtype, layout, net, image, known in _prepared(photo_tensor(PHOTO, height, width).cuda(), PRECISIONS[1:]):
            torch.backends.cudnn.benchmark = True
            was, now = _calling(net, image), _calling(change(copy.deepcopy(net)), image)
            for name, call in (("eager + benchmark", was), (version, now), (f"{version} + graph", graphed(now))):
                candidate = known(call, version=name, dtype=dtype, layout=layout)
                rows += bench(OPERATOR, [candidate], shape=shape, run=run, peers=beside).rows
    return Table(rows)


def recorded_peers(height: int, width: int, *, compiled: bool = True, methods: Sequence[str] = ("cold",)) -> Table:
    """Return the newest record of the peers."""
    return replay(OPERATOR, _names(compiled), shape=f"1x3x{height}x{width}", methods=methods)


def _names(compiled: bool) -> list[Candidate]:
    return [
        Candidate(version=version, dtype=dtype, layout=layout)
        for dtype, layout in PRECISIONS
        for version in (*EAGER, *(COMPILED[dtype] if compiled else ()))
    ]


def _peers(x: torch.Tensor, compiled: bool) -> Iterator[Candidate]:
    """Yield each candidate; the global switches hold until the next is asked for."""
    for dtype, layout, net, image, known in _prepared(x, PRECISIONS):
        for version in (*EAGER, *(COMPILED[dtype] if compiled else ())):
            torch.backends.cudnn.benchmark = version != "eager"
            mode = COMPILED[dtype].get(version)
            run = _calling(_compiled(net, mode) if mode else net, image)
            run = graphed(run) if version == "eager + graph" else run
            yield known(run, version=version, dtype=dtype, layout=layout)


def _prepared(
    x: torch.Tensor, precisions: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, str, TransformerNet, torch.Tensor, Callable[..., Candidate]]]:
    """Yield dtype, layout, the network and the picture in them, and what makes a Candidate that knows its error.

    The global switches are set for each precision, and put back at the end.
    """
    net = load_style(STYLE, "cuda")
    flops = sum(stage.flops for stage in stages(net, tuple(x.shape)))
    reference = net.double()(x.double())
    net.float()
    half = load_style(STYLE, "cuda").half().to(memory_format=torch.channels_last)
    x_half = x.half().to(memory_format=torch.channels_last)

    def known(run: Callable[[], torch.Tensor], **names: str) -> Candidate:
        return Candidate(run=run, flops=flops, **names, **errors(run(), reference))

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        for dtype, layout in precisions:
            cudnn.allow_tf32 = matmul.allow_tf32 = dtype != "float32"
            yield (dtype, layout, half, x_half, known) if dtype == "float16" else (dtype, layout, net, x, known)
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def _calling(model: Callable, image: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: model(image)


def _compiled(model: TransformerNet, mode: str) -> Callable:
    torch._dynamo.reset()
    return torch.compile(model, mode=mode, dynamic=False)


def transformer_net_now(
    version: str = "eager", *, dtype: str = "tf32", layout: str = "nchw", shape: str = "1x3x1024x1024"
) -> None:
    """Print the line that ends every notebook: how fast the whole network is by now, and how close to float64."""
    rows = replay(OPERATOR, [Candidate(version=version, dtype=dtype, layout=layout)], shape=shape).rows
    if not rows:
        raise LookupError(f"no record of {OPERATOR} {version} in {dtype} at {shape}: `make bench` on a GPU writes one")
    row = rows[0]
    print(
        f"TransformerNet now: {row.median_ms:.3g} ms, {row.psnr_db:.0f} dB  ({version}, {dtype}, {shape}, {row.where})"
    )
