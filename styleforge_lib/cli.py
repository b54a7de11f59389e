"""The command line: ``python -m styleforge_lib paint photo.jpg --style great_wave -o out.png``.

Contents: the words of the command, :func:`main`, and what its two subcommands do. Results go to standard output; errors
(one line each) and the progress bar go to standard error. The exit code is 0, or 2 when anything was refused.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from styleforge_lib.pictures import (
    WRITABLE_FORMATS,
    PictureError,
    check_target,
    load_picture,
    readable_suffixes,
    save_picture,
)

if TYPE_CHECKING:
    from torch import nn

COMMAND = "python -m styleforge_lib"

DESCRIPTION = "Paint photos in a style, with the network that the StyleForge course makes fast."

EXAMPLES = f"""examples:
  {COMMAND} styles
      list the shipped styles
  {COMMAND} paint photo.jpg --style great_wave -o out.png
      paint one photo at its own size; the suffix of -o is the format
  {COMMAND} paint photo.jpg --style great_wave --size 1024 -o out.jpg
      scale it first, so that its long side has 1024 pixels
  {COMMAND} paint holiday/ one_more.png --style starry_night -o painted/
      paint every picture in a folder, and another; the folder painted/ is made
  {COMMAND} paint photo.jpg --style ./candy.pth -o out.png
      a checkpoint of pytorch/examples (fast_neural_style) or your own
"""

PAINT_NOTES = """Pictures may be grey, RGB, CMYK, palette, transparent, 8- or 16-bit; they are turned upright by their
EXIF data. Transparency is painted on white and comes back in .png, .webp and .tif; .jpg and .bmp stay
on white. A folder is not searched for folders inside it. Outputs in a folder keep their names (.png
where the format cannot be written); a painting never replaces a picture that is being painted, nor
another painting of the same run.

A picture that cannot be painted is refused with one line on standard error, and the others are painted.
Exit code: 0 if everything was painted, 2 if anything was refused.
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with 2."""
        self.exit(2, f"error: {_one_line(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _Parser(
        prog=COMMAND,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    paint = commands.add_parser(
        "paint",
        help="paint photos",
        description=f"{DESCRIPTION}\n\n{PAINT_NOTES}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    paint.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="picture files, or folders of them")
    paint.add_argument("-s", "--style", required=True, help="a shipped style, or the path of a checkpoint")
    paint.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="the file to write; for several pictures or a folder, the folder to write into",
    )
    paint.add_argument("--size", type=_pixels, help="long side of the painting in pixels (default: as the picture)")
    paint.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: the GPU if there is one)")
    paint.set_defaults(run=_paint)

    styles = commands.add_parser("styles", help="list the shipped styles")
    styles.set_defaults(run=_styles)

    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130  # as shells have it


def _pixels(text: str) -> int:
    """Return the value of --size."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels")
    return int(text)


# ---- styles ----


def _styles(_: argparse.Namespace) -> int:
    """Print the names of the shipped styles, one a line."""
    from styleforge_lib.models.checkpoints import list_styles

    names = list_styles()
    if not names:
        return _complain("no styles are installed beside the library: give --style the path of a checkpoint")
    print("\n".join(names))
    return 0


# ---- paint ----


def _paint(arguments: argparse.Namespace) -> int:
    """Paint all the pictures; return 2 if any was refused."""
    # Imported here, because torch takes seconds and --help should not.
    from styleforge_lib.models.checkpoints import StyleError, load_style
    from styleforge_lib.painter import paint_device

    try:
        sources, passed_over = _sources(arguments.pictures)
        folder = _output_folder(arguments.pictures, sources, arguments.output)
        net = load_style(arguments.style, paint_device(arguments.device))
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:  # PictureError and StyleError are ValueErrors
        return _complain(error)

    painted: dict[str, Path] = {}  # by target, in lower case as some file systems have it
    refused = []
    with tqdm(sources, unit="picture", disable=len(sources) == 1, file=sys.stderr) as bar:
        for source in bar:
            bar.set_postfix_str(source.name)
            target = folder / _output_name(source) if folder else Path(arguments.output)
            key = str(target).lower()
            try:
                if key in painted:
                    raise PictureError(f"{str(source)!r} would overwrite the painting of {str(painted[key])!r}")
                report = _paint_one(source, target, net, arguments.size, sources)
            except (PictureError, StyleError) as error:
                refused.append(source)
                with tqdm.external_write_mode(file=sys.stderr):
                    _complain(error)
            else:
                painted[key] = source

    if folder:
        report = f"painted {len(painted)} of {len(sources)} pictures into {arguments.output!r}"
        if refused:
            report += f"; refused: {', '.join(repr(str(source)) for source in refused)}"
        if passed_over:
            report += f"; passed over what is no picture: {', '.join(repr(str(entry)) for entry in passed_over)}"
    if folder or painted:
        print(report)
    return 2 if refused else 0


def _sources(pictures: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return the picture files that the arguments mean, each once, and what was passed over in folders."""
    sources, passed_over = [], []
    for path in pictures:
        if not path.is_dir():
            sources.append(path)  # if there is no such file, it is refused when its turn comes
            continue
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        found = [entry for entry in entries if entry.suffix.lower() in readable_suffixes() and not entry.is_dir()]
        if not found:
            raise PictureError(f"the folder {str(path)!r} holds no pictures")
        sources += found
        passed_over += [entry for entry in entries if entry not in found]
    return list(dict.fromkeys(sources)), passed_over


def _output_folder(pictures: list[Path], sources: list[Path], output: str) -> Path | None:
    """Return the folder that -o names, or None where it names the one file to write."""
    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)):
        return path
    if len(sources) == 1 and pictures == sources:
        return None
    if path.exists() or path.suffix.lower() in WRITABLE_FORMATS:
        raise PictureError(f"-o must name a folder for several pictures, and {output!r} is a file's name")
    return path


def _output_name(source: Path) -> str:
    """Return the name that a painting gets in a folder: the picture's, with a suffix that can be written."""
    return source.name if source.suffix.lower() in WRITABLE_FORMATS else f"{source.stem}.png"


def _paint_one(source: Path, target: Path, net: "nn.Module", size: int | None, sources: list[Path]) -> str:
    """Paint one picture from file to file and return a line about it."""
    from styleforge_lib.painter import painted_size, stylize

    start = time.perf_counter()
    picture = load_picture(source)
    width, height = painted_size(picture.size, size)
    check_target(target, size=(width, height), keep=sources)  # before the work, not after it
    save_picture(stylize(picture, net, size=size), target, keep=sources)
    return f"painted {str(target)!r}: {width}x{height} pixels in {time.perf_counter() - start:.1f} s"


# ---- one line ----


def _complain(error: object) -> int:
    """Print an error as one line on standard error and return the exit code that goes with it."""
    print(f"error: {_one_line(error)}", file=sys.stderr)
    return 2


def _one_line(text: object) -> str:
    """Return the text with its line breaks escaped: the arguments of a command may hold any character."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in str(text))
