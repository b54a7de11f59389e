"""The sample photos of the course: they ship inside scikit-image's wheel, so nothing is fetched."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def photo(name: str) -> Image.Image:
    """Return a sample photo as an RGB picture: "astronaut" (512x512), "chelsea", "coffee" or "rocket"."""
    if name not in NAMES:
        raise ValueError(f"name: no sample photo {name!r}; there are {', '.join(NAMES)}")
    return _decoded(name).copy()  # a picture can be changed in place; the next one who asks gets it unchanged


@cache
def _decoded(name: str) -> Image.Image:
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    found = next(folder.glob(f"{name}.*"), None)
    if found is None:
        raise FileNotFoundError(f"scikit-image's wheel lacks {name} in {folder}: install scikit-image >= 0.24")
    with Image.open(found) as picture:
        return picture.convert("RGB")


def photo_tensor(name: str, height: int, width: int) -> torch.Tensor:
    """Return the photo, cut to the aspect and resized, as contiguous float32 (1, 3, height, width) in 0..255."""
    if height < 1 or width < 1:
        raise ValueError(f"height, width: a photo of {height}x{width} pixels has none; both must be at least 1")
    picture = photo(name)
    scale = min(picture.width / width, picture.height / height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (picture.width - w) // 2, (picture.height - h) // 2
    picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))
    # contiguous: float() alone would keep the picture's order, channels last, and the whole network would run in it
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float().contiguous()
