"""Rewrite what is generated in the pages, or with --check say what is out of date (`make pages`, `make lint`).

Contents: the pictures, the pages, the command line. What is written and drawn is in `page_blocks.py`.

A page holds its generated parts between two lines, ``<!-- begin:NAME -->`` and ``<!-- end:NAME -->``.

A picture in ``docs/`` is compared by what it shows, since its bytes change with the versions of Matplotlib and its
fonts: each file carries a fingerprint of its data (the rows, or the weights and the photos' names), and is drawn again
when the fingerprint differs, or with --pictures.
"""

import argparse
import hashlib
import io
import json
import re
import sys
from pathlib import Path

import network_page  # noqa: F401 (its blocks and pictures are registered)
import norm_page  # noqa: F401 (likewise)
import xray_page  # noqa: F401 (likewise)
from address import ROOT
from page_blocks import BLOCKS, PICTURES, PageError
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/instance_norm.md",
    "docs/tuning.md",
    "docs/xray.md",
    "styleforge_lib/styles/README.md",
)


# ---- the pictures ----


def stamped(picture: bytes, fingerprint: str) -> bytes:
    """Return a PNG or JPEG file with a fingerprint as its comment, the pixels as they were."""
    if picture.startswith(b"\xff\xd8"):  # saving a JPEG again would change its pixels: a comment goes in as it is
        first_ends = 4 + int.from_bytes(picture[4:6])  # JFIF's own segment must remain the first
        comment = b"\xff\xfe" + (2 + len(fingerprint)).to_bytes(2) + fingerprint.encode()
        return picture[:first_ends] + comment + picture[first_ends:]
    buffer, info = io.BytesIO(), PngInfo()
    info.add_text("comment", fingerprint)
    Image.open(io.BytesIO(picture)).save(buffer, "PNG", pnginfo=info, optimize=True)
    return buffer.getvalue()


def fingerprint_in(path: Path) -> str | None:
    """Return the fingerprint that `stamped` put into a file, or None."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        said = image.info.get("comment", "")
    return said.decode() if isinstance(said, bytes) else said


def sync_pictures(*, check: bool, again: bool) -> list[str]:
    """Draw the pictures whose data have changed, or all ``again``; return what was, or would be, drawn."""
    changed = []
    for name, make in PICTURES.items():
        data, draw = make()
        fingerprint = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
        if fingerprint_in(ROOT / name) == fingerprint and not again:
            continue
        changed.append(name)
        if not check:
            (ROOT / name).parent.mkdir(exist_ok=True)
            (ROOT / name).write_bytes(stamped(draw(), fingerprint))
    return changed


# ---- the pages ----


_BLOCK = re.compile(r"<!-- begin:(?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- end:(?P=name) -->", re.DOTALL)
_MARKER = re.compile(r"<!-- *(?:begin|end):[^\n]*")


def rewritten(page: str, text: str) -> str:
    """Return a page's text with every block as it should be; PageError names a marker that is wrong."""

    def fill(found: re.Match) -> str:
        name = found["name"]
        if name not in BLOCKS:
            raise PageError(f"{page}: no block is called {name!r}; there are {', '.join(BLOCKS)}")
        if stray := _MARKER.search(found["body"]):
            raise PageError(f"{page}: {stray[0]} stands inside the block {name!r}")
        return f"<!-- begin:{name} -->\n\n{BLOCKS[name]()}\n\n<!-- end:{name} -->"

    if stray := _MARKER.search(_BLOCK.sub("", text)):
        raise PageError(f"{page}: {stray[0]} has no partner")
    return _BLOCK.sub(fill, text)


def sync_pages(*, check: bool) -> list[str]:
    """Rewrite the pages whose blocks have changed; return what was, or would be, rewritten."""
    changed = []
    for page in PAGES:
        path = ROOT / page
        before = path.read_text("utf-8")
        after = rewritten(page, before)
        if before != after:
            changed.append(page)
            if not check:
                path.write_text(after, "utf-8")
    return changed


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail where something would change")
    parser.add_argument("--pictures", action="store_true", help="draw every picture again, whatever its data")
    options = parser.parse_args(arguments)
    if options.check and options.pictures:
        parser.error("--check changes nothing, so it does not go with --pictures")
    try:
        changed = [*sync_pictures(check=options.check, again=options.pictures), *sync_pages(check=options.check)]
    except (ValueError, OSError) as error:
        print(f"sync_pages: {error}", file=sys.stderr)
        return 1
    for name in changed:
        print(f"{name}: " + ("out of date; run `make pages`" if options.check else "rewritten"))
    return 1 if changed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
