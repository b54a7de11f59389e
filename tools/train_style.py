"""Train a style: from one painting and a folder of photos to a TransformerNet that paints any photo in that hand.

Contents: the recipe (what is trained, and its defaults), the loss network, the losses, the photos, the training with
its state, the results, the command line.

The method is that of Johnson, Alahi and Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution"
(2016). The network paints a crop of a photo, and a frozen VGG-19 looks at the result:

    content   mean squared difference from the photo, at relu2_2
    style     per layer, the squared difference of the Gram matrices F F^T / (H W) of result and painting, divided by
              the mean square of the painting's own: so that no layer outweighs another; summed over relu1_2, relu2_2,
              relu3_1 and the quarter-width network's relu4_1
    tv        mean squared difference of neighbouring pixels (0..255): quiets dots and checkerboards
    range     mean square of what lies outside 0..255: a picture cannot show it, the loss network would count it

The style weight rises from a hundredth over the first tenth of the training: from random weights a full style loss
first finds strokes that know nothing of the photo, and the content takes long to come back.

The photos are decoded once and kept on the device at five sizes, and each batch is cut there. On a GPU the forward and
backward passes are replayed as a CUDA graph: the net is too small to keep an H200 busy one launch at a time.

    python tools/train_style.py --painting wave.jpg --photos photos/ --out out/great_wave \\
        --backbone vgg19_normalised_relu3_1.pth --deep-backbone vgg19_cd16x_relu5_1.pth --style-weight 60

writes out/great_wave.safetensors (convolution weights float16, the rest float32), .json (the facts for the model card,
printed too), .preview.jpg, and .state.pt, from which --resume goes on.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from contact_sheet import contact_sheet, fit_short_side, open_photo, paint, save_picture, to_tensor
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from styleforge_lib.models.checkpoints import StyleError, load_style
from styleforge_lib.models.transformer_net import TransformerNet

STYLE_LAYERS = ("relu1_2", "relu2_2", "relu3_1")
DEEP_STYLE_LAYERS = ("relu4_1",)
CONTENT_LAYER = "relu2_2"
# Short sides of the stored photos, in crops: whole compositions at one end, the detail of a large photo at the other.
PHOTO_SCALES = (1.0, 2**0.5, 2.0, 2 * 2**0.5, 4.0)
PARTS = ("loss", "content", "style", "tv", "range")
PREVIEW_SIZES = (256, 512, 1024)
LOOK_EVERY = 20  # iterations between two looks at the losses: each look waits for the GPU


class TrainingError(ValueError):
    """Training cannot start or go on; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides the trained weights; a state file resumes only under the same recipe."""

    iterations: int = 8000
    max_seconds: float | None = None
    batch: int = 4
    crop: int = 256
    style_weight: float = 60.0
    content_weight: float = 1.0
    tv_weight: float = 2e-4
    range_weight: float = 1e-3
    style_ramp: float = 0.1
    style_size: tuple[int, ...] = (384,)
    noise: float = 4.0
    learning_rate: float = 1e-3
    seed: int = 0


# ---- the loss network ----


class LossNetwork(nn.Module):
    """A frozen, activation-normalised VGG-19 of any width, read from a state dict of convolutions in order.

    The keys are ``conv0`` (1x1: RGB in 0..1 to what the network was trained on) and ``convB_I`` or ``convBI``, block B
    and convolution I: 3x3, reflection padding, ReLU, and a 2x2 max-pool between two blocks.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype = dtype
        self.names: list[tuple[int, int]] = []
        self.convolutions = nn.ParameterList()
        for key in tensors:
            if match := re.fullmatch(r"conv([1-5])_?([1-4])\.weight", key):
                self.names.append((int(match[1]), int(match[2])))
                weight = tensors[key].to(dtype).contiguous(memory_format=torch.channels_last)
                self.convolutions.extend([weight, tensors[key.replace("weight", "bias")].to(dtype)])
        self.entry = nn.ParameterList([tensors["conv0.weight"].float(), tensors["conv0.bias"].float()])
        if not self.names or self.names != sorted(self.names):
            raise KeyError("conv1_1.weight and the following, in order")
        self.requires_grad_(False)

    def forward(self, pixels: torch.Tensor, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Return the features of (N, 3, H, W) pixels in 0..255 at ``layers``, computing no further than the last."""
        # The entry stays in float32: pixels less their mean need more bits than bfloat16 has.
        y = F.conv2d(pixels / 255, *self.entry).to(self.dtype, memory_format=torch.channels_last)
        features, block = {}, 1
        for number, (this_block, index) in enumerate(self.names):
            if this_block != block:
                y, block = F.max_pool2d(y, 2), this_block
            weight, bias = self.convolutions[2 * number], self.convolutions[2 * number + 1]
            y = F.relu(F.conv2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), weight, bias))
            if (name := f"relu{block}_{index}") in layers:
                features[name] = y
                if len(features) == len(layers):
                    return features
        raise TrainingError(f"the loss network has no {sorted(set(layers) - set(features))}")


def load_loss_network(path: Path, option: str, dtype: torch.dtype) -> LossNetwork:
    """Read a loss network from a ``.pth`` of tensors; ``option`` is named where it is none."""
    try:
        return LossNetwork(torch.load(path, map_location="cpu", weights_only=True), dtype)
    except OSError as error:
        raise TrainingError(f"{option}: {path} cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"{option}: {path} is no state dict of VGG convolutions ({reason})") from error


# ---- the losses ----


def gram(features: torch.Tensor) -> torch.Tensor:
    """Return F F^T / (H W) of (N, C, H, W) features as (N, C, C), in float32: its sums are long."""
    n, c, h, w = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(n, h * w, c).float()
    return rows.transpose(1, 2) @ rows / (h * w)


def total_variation(pixels: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of horizontal and of vertical neighbours, added."""
    return (pixels[..., 1:] - pixels[..., :-1]).square().mean() + (
        pixels[..., 1:, :] - pixels[..., :-1, :]
    ).square().mean()


class PerceptualLoss:
    """The weighted sum of content, style, total variation and range, against one painting."""

    def __init__(self, recipe: Recipe, painting, backbone: LossNetwork, deep: LossNetwork, device: torch.device):
        self.recipe = recipe
        self.style_weight = torch.tensor(recipe.style_weight, device=device)  # a CUDA graph reads it at every replay
        self.networks = ((backbone.to(device), STYLE_LAYERS), (deep.to(device), DEEP_STYLE_LAYERS))
        grams = []
        for side in recipe.style_size:
            pixels = to_tensor(fit_short_side(painting, side))[None].float().to(device)
            with torch.no_grad():
                grams.append(self._grams([network(pixels, layers) for network, layers in self.networks]))
        # The mean over sizes: the Gram matrix of a picture that shows the painting at each of them.
        self.targets = [torch.stack(layer).mean(0) for layer in zip(*grams, strict=True)]

    @staticmethod
    def _grams(features: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        return [gram(layer) for found in features for layer in found.values()]

    def __call__(self, painted: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
        """Return the losses in the order of :data:`PARTS`, weighted; only the first carries the gradient of all."""
        with torch.no_grad():
            wanted = self.networks[0][0](photos, (CONTENT_LAYER,))[CONTENT_LAYER].float()
        features = [network(painted, layers) for network, layers in self.networks]
        content = F.mse_loss(features[0][CONTENT_LAYER].float(), wanted)
        style = sum(
            (found - target).square().mean() / target.square().mean()
            for found, target in zip(self._grams(features), self.targets, strict=True)
        )
        outside = (painted - painted.clamp(0, 255)).square().mean()
        parts = [
            self.recipe.content_weight * content,
            self.style_weight * style,
            self.recipe.tv_weight * total_variation(painted),
            self.recipe.range_weight * outside,
        ]
        return torch.stack([sum(parts), *parts])


# ---- the photos ----


class Photos:
    """Every photo at every scale, as uint8 on the device, and the crops of an iteration."""

    def __init__(self, folder: Path, crop: int, device: torch.device):
        if not folder.is_dir():
            raise TrainingError(f"--photos: {folder} is no folder")
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        sides = [round(crop * scale) for scale in PHOTO_SCALES]

        def load(path: Path) -> list[torch.Tensor] | None:
            try:
                photo = open_photo(str(path))
            except OSError as error:
                tqdm.write(f"train_style: {path.name} is left out ({error})", file=sys.stderr)
                return None
            return [to_tensor(fit_short_side(photo, side)) for side in sides]

        with ThreadPoolExecutor() as pool:
            bar = tqdm(pool.map(load, paths), total=len(paths), desc="photos", unit="photo")
            loaded = [[size.to(device) for size in photo] for photo in bar if photo is not None]
        if not loaded:
            raise TrainingError(f"--photos: {folder} holds no photo that can be read")
        self.count, self.crop, self.device = len(loaded), crop, device
        self.by_scale = list(zip(*loaded, strict=True))

    def batch(self, recipe: Recipe, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the net sees and the clean photos, both (N, 3, side, side) float32 in 0..255.

        Every third iteration cuts a quarter as many crops of twice the side: the norms' statistics over a large
        picture differ from those over a small one, and the net must know both. The draw depends on the seed and the
        iteration alone, so that a resumed training sees the same crops.
        """
        draw = np.random.default_rng([recipe.seed, iteration])
        large = iteration % 3 == 2
        side, count = (2 * self.crop, max(1, recipe.batch // 4)) if large else (self.crop, recipe.batch)
        scales = self.by_scale[2:] if large else self.by_scale[:3]
        clean = torch.empty(count, 3, side, side, device=self.device)
        for slot in clean:
            sizes = scales[draw.integers(len(scales))]
            photo = sizes[draw.integers(self.count)]
            y, x = (int(draw.integers(length - side + 1)) for length in photo.shape[1:])
            cut = photo[:, y : y + side, x : x + side]
            slot.copy_(cut.flip(2) if draw.integers(2) else cut)
        # A little noise that the content loss does not want back: else the net learns to make strokes of a flat
        # area's grain, which shows as dots in skies and shadows.
        generator = torch.Generator(self.device).manual_seed(int(draw.integers(2**62)))
        strength = recipe.noise * torch.rand(count, 1, 1, 1, generator=generator, device=self.device)
        return clean + strength * torch.randn(clean.shape, generator=generator, device=self.device), clean


# ---- the training ----


class Training:
    """A network on its way: :meth:`step` until :attr:`progress` is 1, saved and restored between any two steps."""

    def __init__(self, recipe: Recipe, photos: Photos, loss: PerceptualLoss, *, init: str | None = None, graphs=True):
        self.recipe, self.photos, self.loss = recipe, photos, loss
        self.iteration, self.seconds, self.setup_seconds = 0, 0.0, 0.0
        self.device = photos.device
        torch.manual_seed(recipe.seed)
        self.net = TransformerNet()
        if init is not None:
            self.net.load_state_dict(load_style(init, "cpu").state_dict())
        else:
            # The picture has a contrast of 50 or so, random weights give less than 1: start nearer, learn sooner.
            self.net.deconv3.conv2d.weight.data.mul_(10)
        self.net.to(self.device)
        self.parameters = list(self.net.parameters())
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)  # written in place: every CUDA graph shares them
        self.optimiser = torch.optim.Adam(self.parameters, lr=recipe.learning_rate, fused=self.device.type == "cuda")
        self.graphs = {} if graphs and self.device.type == "cuda" else None

    @property
    def progress(self) -> float:
        """The fraction that is done, of the iterations or of the seconds, whichever is further."""
        done = self.iteration / self.recipe.iterations
        if self.recipe.max_seconds is not None:
            done = max(done, self.seconds / max(1e-3, self.recipe.max_seconds - self.setup_seconds))
        return min(1.0, done)

    @property
    def learning_rate(self) -> float:
        """A short warm-up, then half a cosine down to a hundredth: the last steps only polish."""
        warm_up = min(1.0, (self.iteration + 1) / 100)
        return self.recipe.learning_rate * warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.progress)))

    @property
    def style_weight(self) -> float:
        """A hundredth at the start, growing by equal factors to the whole at the end of the ramp."""
        ramp = self.recipe.style_ramp
        return self.recipe.style_weight * 0.01 ** max(0.0, 1 - self.progress / ramp if ramp else 0.0)

    def step(self) -> torch.Tensor:
        """Take one step; return the losses (:data:`PARTS`), on the device and not waited for."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        self.loss.style_weight.fill_(self.style_weight)
        losses = self._gradients(*self.photos.batch(self.recipe, self.iteration))
        self.optimiser.step()
        self.iteration += 1
        return losses

    def check(self, losses: torch.Tensor) -> dict[str, float]:
        """Wait for the losses, and return them by name; stop the training where they are no numbers."""
        values = losses.tolist()
        if not all(map(math.isfinite, values)):
            raise TrainingError(
                f"the loss was {values[0]} by iteration {self.iteration}: nothing more was saved; "
                "lower --learning-rate or --style-weight"
            )
        return dict(zip(PARTS, values, strict=True))

    def _gradients(self, seen: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
        if self.graphs is not None and seen.shape not in self.graphs:
            try:
                self.graphs[seen.shape] = self._capture(seen, photos)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                tqdm.write(f"train_style: no CUDA graph, so one launch at a time ({reason})", file=sys.stderr)
                torch.cuda.synchronize()
                self.graphs = None
        if self.graphs is None:
            return self._compute(seen, photos)
        graph, inputs, losses = self.graphs[seen.shape]
        inputs[0].copy_(seen)
        inputs[1].copy_(photos)
        graph.replay()
        return losses

    def _compute(self, seen: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
        """Fill the parameters' gradients, their norm clipped at 1, and return the losses."""
        self.optimiser.zero_grad(set_to_none=False)
        losses = self.loss(self.net(seen), photos)
        losses[0].backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        return losses.detach()

    def _capture(self, seen: torch.Tensor, photos: torch.Tensor):
        """Record :meth:`_compute` for one shape; the warm-up lets cuDNN choose its algorithms first."""
        inputs = seen.clone(), photos.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._compute(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = self._compute(*inputs)
        return graph, inputs, losses

    def save(self, path: Path) -> None:
        """Write the state so that a reader finds the old file or the new one, never a half."""
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Go on from what :meth:`save` wrote."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            before = state["recipe"]
        except FileNotFoundError as error:
            raise TrainingError(f"--resume: there is no {path}") from error
        except Exception as error:  # a damaged pickle can raise anything
            raise TrainingError(f"--resume: {path} is no state of this tool") from error
        for name, value in dataclasses.asdict(self.recipe).items():
            if before.get(name) != value:
                option = "--" + name.replace("_", "-")
                raise TrainingError(f"--resume: the state was trained with {option} {before.get(name)}, not {value}")
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]


# ---- the results ----


def save_style(net: TransformerNet, path: Path, facts: dict) -> None:
    """Write the weights, convolutions as float16 and the rest as float32, with the facts as metadata."""
    tensors = {}
    for name, value in net.state_dict().items():
        dtype = torch.float16 if value.ndim == 4 else torch.float32
        tensors[name] = value.detach().to("cpu", dtype).contiguous()
        if not tensors[name].isfinite().all():
            raise TrainingError(f"{name} holds what {dtype} cannot: no style was written")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"format": "pt", "training": json.dumps(facts, sort_keys=True)})
    os.replace(partial, path)


def beside(out: Path, suffix: str) -> Path:
    """Return ``out`` with ``suffix`` added: a style's name may hold dots."""
    return out.with_name(out.name + suffix)


def run(training: Training, out: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train to the end, saving the state and previews; return the mean of the last losses."""
    recipe, state = training.recipe, beside(out, ".state.pt")
    previews = [open_photo(name) for name in options.preview_photo]

    def preview() -> None:
        painters = {f"{out.name}, {training.iteration}": lambda image: paint(training.net, image)}
        sizes = [size for size in PREVIEW_SIZES if size <= options.preview_size]
        save_picture(contact_sheet(painters, previews, sizes), beside(out, ".preview.jpg"))

    recent: list[dict[str, float]] = []
    began = time.perf_counter() - training.seconds
    with tqdm(total=recipe.iterations, initial=training.iteration, desc=out.name, unit="it", smoothing=0.05) as bar:
        try:
            while training.progress < 1:
                losses = training.step()
                training.seconds = time.perf_counter() - began
                saves = training.iteration % options.save_every == 0
                shows = options.preview_every and training.iteration % options.preview_every == 0
                if training.iteration % LOOK_EVERY == 0 or saves or shows or training.progress == 1:
                    recent = [*recent[-9:], training.check(losses)]
                    bar.set_postfix({name: f"{value:.3g}" for name, value in recent[-1].items()}, refresh=False)
                bar.update()
                if saves:
                    training.save(state)
                if shows and previews:
                    preview()
        except KeyboardInterrupt:
            training.save(state)
            raise TrainingError(f"stopped at iteration {training.iteration}; --resume goes on from {state}") from None
    training.save(state)
    if previews:
        preview()
    return {name: round(sum(losses[name] for losses in recent) / len(recent), 5) for name in PARTS} if recent else {}


# ---- the command line ----


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the checked options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Recipe()
    files = parser.add_argument_group("files")
    files.add_argument("--painting", type=Path, required=True, help="the picture whose hand is learnt")
    files.add_argument("--photos", type=Path, required=True, help="folder of .jpg, .png or .webp: a few hundred do")
    files.add_argument("--backbone", type=Path, required=True, help="normalised VGG-19, at least to relu3_1 (.pth)")
    files.add_argument("--deep-backbone", type=Path, required=True, help="quarter-width VGG-19, at least to relu4_1")
    files.add_argument("--out", type=Path, required=True, help="DIR/NAME: the results are DIR/NAME.safetensors etc.")
    files.add_argument("--init", help="start from another style (a name or a checkpoint): fewer iterations do")
    files.add_argument("--resume", action="store_true", help="go on from DIR/NAME.state.pt, under the same recipe")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--iterations", type=int, default=default.iterations, help="steps (default %(default)s)")
    recipe.add_argument(
        "--max-seconds",
        type=float,
        help="end within so many seconds of the start, even if the iterations are not done: the learning rate falls "
        "with whichever is further, so that an early end is a finished training too",
    )
    recipe.add_argument("--batch", type=int, default=default.batch, help="crops a step (default %(default)s)")
    recipe.add_argument(
        "--crop",
        type=int,
        default=default.crop,
        help="pixels (default %(default)s); every third step takes crops of twice that, and the photos' short sides "
        "run from one crop to four",
    )
    recipe.add_argument(
        "--style-weight",
        type=float,
        default=default.style_weight,
        help="20 is timid, 150 loses faces; busy paintings bear more (default %(default)s)",
    )
    recipe.add_argument("--content-weight", type=float, default=default.content_weight, help="default %(default)s")
    recipe.add_argument("--tv-weight", type=float, default=default.tv_weight, help="smoothness (default %(default)s)")
    recipe.add_argument(
        "--range-weight", type=float, default=default.range_weight, help="against values out of 0..255 (%(default)s)"
    )
    recipe.add_argument(
        "--style-ramp",
        type=float,
        default=default.style_ramp,
        help="part of the training in which it rises (%(default)s)",
    )
    recipe.add_argument(
        "--style-size",
        type=int,
        nargs="+",
        default=list(default.style_size),
        help="short side of the painting, one or more: larger gives larger strokes (default %(default)s)",
    )
    recipe.add_argument(
        "--noise", type=float, default=default.noise, help="most noise on a crop, of 255 (default %(default)s)"
    )
    recipe.add_argument("--learning-rate", type=float, default=default.learning_rate, help="default %(default)s")
    recipe.add_argument(
        "--seed", type=int, default=default.seed, help="two runs with a seed give equal weights on a CPU"
    )
    watching = parser.add_argument_group("watching")
    watching.add_argument("--save-every", type=int, default=1000, help="steps between two states (%(default)s)")
    watching.add_argument("--preview-every", type=int, default=0, help="steps between two previews; 0: only the last")
    watching.add_argument(
        "--preview-photo", action="append", default=[], help="a file, or astronaut, chelsea, coffee, rocket; repeatable"
    )
    watching.add_argument(
        "--preview-size", type=int, default=PREVIEW_SIZES[-1], help=f"largest short side of {PREVIEW_SIZES} to preview"
    )
    watching.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    watching.add_argument("--no-graph", action="store_true", help="launch kernels one by one, without a CUDA graph")
    options = parser.parse_args(arguments)
    for name in ("iterations", "batch", "save_every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("style_weight", "content_weight", "tv_weight", "range_weight", "style_ramp", "noise", "preview_every"):
        if not 0 <= getattr(options, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be 0 or more, and finite")
    if options.crop < 32 or options.crop % 4:
        parser.error("--crop must be a multiple of 4, at least 32")
    if min(options.style_size) < 32:
        parser.error("--style-size must be at least 32")
    if not 0 < options.learning_rate < math.inf:
        parser.error("--learning-rate must be positive")
    if options.max_seconds is not None and not options.max_seconds > 0:
        parser.error("--max-seconds must be positive")
    if options.seed < 0:
        parser.error("--seed must be 0 or more")
    return options


def train(options: argparse.Namespace, started: float) -> dict:
    """Train and write the results; return the facts."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe)}
    recipe = Recipe(**{**values, "style_size": tuple(options.style_size)})
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    try:
        painting = open_photo(str(options.painting))
        digest = hashlib.sha256(options.painting.read_bytes()).hexdigest()
    except OSError as error:
        raise TrainingError(f"--painting: {options.painting} cannot be read ({error})") from error
    for name in options.preview_photo:
        try:
            open_photo(name)
        except OSError as error:
            raise TrainingError(f"--preview-photo: {name} cannot be read ({error})") from error
    # The loss networks' features bear bfloat16; their Gram matrices are float32.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    backbone = load_loss_network(options.backbone, "--backbone", dtype)
    deep = load_loss_network(options.deep_backbone, "--deep-backbone", dtype)
    loss = PerceptualLoss(recipe, painting, backbone, deep, device)
    photos = Photos(options.photos, recipe.crop, device)
    training = Training(recipe, photos, loss, init=options.init, graphs=not options.no_graph)
    if options.resume:
        training.restore(beside(options.out, ".state.pt"))
    training.setup_seconds = time.perf_counter() - started
    losses = run(training, options.out, options)
    facts = {
        "style": options.out.name,
        "painting": options.painting.name,
        "painting_sha256": digest,
        "photos": photos.count,
        "iterations_done": training.iteration,
        "seconds": round(training.seconds, 1),
        "ms_per_iteration": round(1000 * training.seconds / max(1, training.iteration), 2),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "device_memory_gb": round(torch.cuda.max_memory_reserved(device) / 1e9, 1) if device.type == "cuda" else None,
        "cuda_graph": training.graphs is not None,
        "torch": torch.__version__,
        "init": Path(options.init).stem if options.init else None,
        "losses": losses,
        "recipe": dataclasses.asdict(recipe),
    }
    save_style(training.net, beside(options.out, ".safetensors"), facts)
    beside(options.out, ".json").write_text(json.dumps(facts, sort_keys=True) + "\n")
    return facts


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    started = time.perf_counter()
    options = parse(arguments)
    try:
        print(json.dumps(train(options, started), sort_keys=True))
    except (TrainingError, StyleError) as error:
        sys.exit(f"train_style: {error}")


if __name__ == "__main__":
    main()
