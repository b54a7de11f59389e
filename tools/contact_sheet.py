"""Paint photos in several styles and lay them out on one labelled sheet, to judge styles side by side.

Contents: :func:`fit_short_side` and :func:`paint`, the sheet, the command line. One row a style, under a row with the
photos themselves; for each photo one column a size. What is larger than a cell is shown as its centre, one pixel to
one, because strokes and artefacts are what a shrunken picture hides.

    python tools/contact_sheet.py great_wave ./candy.pth --photos portrait.jpg astronaut -o sheet.png
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from styleforge_lib.models.checkpoints import StyleError, load_style

MARGIN = 6
LABEL_HEIGHT = 26
SAMPLES = ("astronaut", "chelsea", "coffee", "rocket")  # in scikit-image's wheel


def open_photo(name: str) -> Image.Image:
    """Return a photo as an upright RGB picture: a file, or one of :data:`SAMPLES`."""
    if name in SAMPLES and not Path(name).exists():
        import skimage.data

        return Image.fromarray(getattr(skimage.data, name)())
    with Image.open(name) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def fit_short_side(image: Image.Image, side: int) -> Image.Image:
    """Resize ``image`` so that its shorter side has ``side`` pixels."""
    scale = side / min(image.size)
    return image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB picture as a (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@torch.inference_mode()
def paint(net: torch.nn.Module, image: Image.Image) -> Image.Image:
    """Return what ``net`` paints from an RGB picture, cut to 0..255 and to the picture's size."""
    parameter = next(net.parameters())
    painted = net(to_tensor(image)[None].to(parameter.device, parameter.dtype))[0]
    pixels = painted.nan_to_num().clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels).crop((0, 0, *image.size))


def contact_sheet(
    painters: dict[str, Callable[[Image.Image], Image.Image]],
    photos: list[Image.Image],
    sizes: list[int],
    *,
    cell: int = 512,
    progress: bool = False,
) -> Image.Image:
    """Return the sheet: rows "photo" and one a painter; columns one a photo and size.

    Args:
        painters: From a row's label to what paints a picture.
        photos: RGB pictures of any size.
        sizes: The short sides, in pixels, at which each photo is painted.
        cell: The most pixels that a cell shows in either direction; of a larger picture it shows the centre.
        progress: Show a bar.
    """
    columns = [(photo, fit_short_side(photo, size), size) for photo in photos for size in sizes]
    widths = [min(cell, picture.width) for _, picture, _ in columns]
    height = min(cell, max(picture.height for _, picture, _ in columns))
    rows = {"photo": None, **painters}
    sheet = Image.new(
        "RGB",
        (MARGIN + sum(width + MARGIN for width in widths), MARGIN + len(rows) * (height + LABEL_HEIGHT + MARGIN)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(LABEL_HEIGHT - 10)
    with tqdm(total=len(rows) * len(columns), unit="picture", disable=not progress) as bar:
        top = MARGIN
        for label, painter in rows.items():
            left = MARGIN
            for (_, picture, size), width in zip(columns, widths, strict=True):
                shown = painter(picture) if painter else picture
                cut = min(cell, shown.width), min(cell, shown.height)
                x, y = (shown.width - cut[0]) // 2, (shown.height - cut[1]) // 2
                note = "" if cut == shown.size else ", centre"
                draw.text((left, top + 2), f"{label}  {size}{note}", fill="black", font=font)
                sheet.paste(shown.crop((x, y, x + cut[0], y + cut[1])), (left, top + LABEL_HEIGHT))
                left += width + MARGIN
                bar.update()
            top += height + LABEL_HEIGHT + MARGIN
    return sheet


def save_picture(image: Image.Image, path: Path, quality: int = 85) -> None:
    """Write a picture; a JPEG in ``quality``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": quality, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    image.save(path, **options)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("styles", nargs="+", help="shipped styles' names, .safetensors or .pth files; a row each")
    parser.add_argument(
        "--photos",
        nargs="+",
        default=list(SAMPLES[:3]),
        help="picture files, or of scikit-image: " + ", ".join(SAMPLES),
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512, 1024], help="short sides to paint at")
    parser.add_argument("--cell", type=int, default=512, help="show at most so many pixels of a picture each way")
    parser.add_argument("--quality", type=int, default=85, help="of a JPEG")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--out", type=Path, default=Path("contact_sheet.png"), help=".png or .jpg")
    options = parser.parse_args(arguments)
    if min(options.sizes) < 8 or options.cell < 8:
        parser.error("--sizes and --cell must be at least 8 pixels")
    painters, photos = {}, []
    for name in options.styles:
        try:
            net = load_style(name, options.device)
        except StyleError as error:
            sys.exit(f"contact_sheet: {error}")
        painters[Path(name).stem] = lambda image, net=net: paint(net, image)
    for name in options.photos:
        try:
            photos.append(open_photo(name))
        except OSError as error:
            sys.exit(f"contact_sheet: --photos: {name} cannot be read: {error}")
    save_picture(
        contact_sheet(painters, photos, options.sizes, cell=options.cell, progress=True), options.out, options.quality
    )
    print(options.out)


if __name__ == "__main__":
    main()
