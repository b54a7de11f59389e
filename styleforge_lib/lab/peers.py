"""The peers: every way in which PyTorch itself runs the whole TransformerNet, measured in one run.

"tf32" is PyTorch's default for float32 (convolutions multiply in TF32), "float32" the same without TF32, and "float16"
has its tensors channels_last, the layout that tensor cores read best. "eager" is PyTorch as it comes; every other way
has cudnn.benchmark on, which tries cuDNN's algorithms once for each shape and keeps the fastest.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

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
        for candidate in _peers(load_style(STYLE, "cuda"), x, compiled):
            table = bench(OPERATOR, [candidate], shape=shape, methods=methods, run=run, peers=beside)
            rows += table.rows
            if told:
                told("\n".join(f"{shape}  {line}" for line in str(table).splitlines()[1:-1]))
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


def _peers(net: TransformerNet, x: torch.Tensor, compiled: bool) -> Iterator[Candidate]:
    """Yield each candidate with its error against float64; the global switches hold until the next is asked for."""
    flops = sum(stage.flops for stage in stages(net, tuple(x.shape)))
    reference = net.double()(x.double())
    net.float()
    half = load_style(STYLE, "cuda").half().to(memory_format=torch.channels_last)
    x_half = x.half().to(memory_format=torch.channels_last)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        for dtype, layout in PRECISIONS:
            cudnn.allow_tf32 = matmul.allow_tf32 = dtype != "float32"
            model, image = (half, x_half) if dtype == "float16" else (net, x)
            for version in (*EAGER, *(COMPILED[dtype] if compiled else ())):
                cudnn.benchmark = version != "eager"
                mode = COMPILED[dtype].get(version)
                run = _calling(_compiled(model, mode) if mode else model, image)
                run = graphed(run) if version == "eager + graph" else run
                found = errors(run(), reference)
                yield Candidate(version=version, run=run, dtype=dtype, layout=layout, flops=flops, **found)
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
