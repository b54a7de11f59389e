"""How close the accelerated network paints to float64, beside PyTorch's own float16: real photos, trained styles.

    python tools/psnr.py                                    # four photos, every shipped style, float16
    python tools/psnr.py --dtypes float16,bfloat16,tf32 --checkpoints candy.pth,mosaic_fp16.pth --json psnr.json
    python tools/psnr.py --photos astronaut,holiday/one.jpg # photos of the course by name, and further ones by path
    python tools/psnr.py --dry-run                          # one small photo and style in the emulator

Wanted of float16: over 45 dB, and at least PyTorch's own float16 minus 1 dB; and of every dtype the same bits from run
to run. Exits with 1 where that is missed, with 2 without a GPU.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from styleforge_lib.acceleration import accelerate
from styleforge_lib.lab import records
from styleforge_lib.lab.bench import errors
from styleforge_lib.lab.photos import NAMES, photo
from styleforge_lib.models.checkpoints import list_styles, load_style
from styleforge_lib.runtime.kernel import DEVICE_VARIABLE

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
LEAST_DB, BEHIND_DB = 45.0, 1.0
SMALL = 40  # pixels of a dry run


def picture(name: str, small: bool) -> torch.Tensor:
    """Return a photo of the course, or of a path, as (1, 3, H, W) in 0..255; its sides become multiples of four."""
    image = photo(name) if name in NAMES else Image.open(name).convert("RGB")
    size = (SMALL, SMALL) if small else (image.width // 4 * 4, image.height // 4 * 4)
    box = (0, 0, image.width if small else size[0], image.height if small else size[1])
    image = image.resize(size, Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().contiguous()


def measure(styles: list[str], photos: list[str], dtypes: list[str], device: str, small: bool) -> Iterator[dict]:
    """Yield one row for each style, photo and dtype."""
    for style in styles:
        net = load_style(style, device)
        fast = {name: accelerate(net, dtype=DTYPES[name], tf32=name == "tf32") for name in dtypes}
        half = load_style(style, device).half()
        if device == "cuda":
            half = half.to(memory_format=torch.channels_last)
        for name in photos:
            x = picture(name, small).to(device)
            reference = net.double()(x.double())
            net.float()
            peer = errors(half(x.half()), reference)["psnr_db"]
            for dtype, model in fast.items():
                out = model(x)
                again = torch.equal(out, model(x)) and torch.equal(out, model(x))  # direct, captured, replayed
                psnr = errors(out, reference)["psnr_db"]
                enough = psnr >= LEAST_DB and psnr >= peer - BEHIND_DB
                yield {
                    "style": os.path.basename(style),  # of a checkpoint, not where it lies
                    "photo": Path(name).stem,
                    "size": f"{x.shape[2]}x{x.shape[3]}",
                    "dtype": dtype,
                    "psnr_db": round(psnr, 2),
                    "pytorch_float16_db": round(peer, 2),
                    "same_bits": again,
                    "passed": again and (enough or dtype == "bfloat16"),  # 8 bits of fraction: nothing is promised
                }


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="float16", help=f"comma-separated, of {', '.join(DTYPES)}")
    parser.add_argument("--checkpoints", default="", help="further styles: paths, comma-separated")
    parser.add_argument("--photos", default=",".join(NAMES), help="names or paths, comma-separated")
    parser.add_argument("--json", help="write the rows there, too")
    parser.add_argument("--dry-run", action="store_true", help="one small photo and style, in the emulator")
    options = parser.parse_args(argv)
    if options.dry_run:
        os.environ[DEVICE_VARIABLE] = "emulator"
    elif not torch.cuda.is_available():
        print("this needs an NVIDIA GPU; --dry-run goes through it without one", file=sys.stderr)
        return 2
    dtypes = options.dtypes.split(",")
    if unknown := set(dtypes) - set(DTYPES):
        parser.error(f"--dtypes: no {sorted(unknown)[0]!r}; there are {', '.join(DTYPES)}")
    styles, photos = [*list_styles(), *filter(None, options.checkpoints.split(","))], options.photos.split(",")
    if missing := [name for name in photos if name not in NAMES and not Path(name).is_file()]:
        parser.error(f"--photos: no {missing[0]!r}; a path, or one of {', '.join(NAMES)}")
    if options.dry_run:
        styles, photos = styles[:1], photos[:1]
    device, rows = "cpu" if options.dry_run else "cuda", []
    with torch.inference_mode():
        measured = measure(styles, photos, dtypes, device, options.dry_run)
        for row in tqdm(measured, total=len(styles) * len(photos) * len(dtypes), file=sys.stderr):
            rows.append(row)
    print(f"{'style':18} {'photo':10} {'size':10} {'dtype':9} {'dB':>7} {'PyTorch float16':>16}  same bits")
    for row in rows:
        figures = f"{row['psnr_db']:7.1f} {row['pytorch_float16_db']:16.1f}"
        verdict = "" if row["passed"] else "  MISSED"
        name = f"{row['style']:18} {row['photo']:10} {row['size']:10} {row['dtype']:9}"
        print(f"{name} {figures}  {row['same_bits']}{verdict}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": records.machine(), "rows": rows}, file, indent=1)
    missed = sum(not row["passed"] for row in rows)
    print("all reached" if not missed else f"{missed} MISSED")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
