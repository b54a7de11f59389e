"""Where the project's data lies: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Return the folder ``name`` (``cuda`` or ``records``)."""
    inside, beside = PACKAGE / name, PACKAGE.parent / name
    return inside if inside.is_dir() else beside


def records_folder() -> Path:
    """Return the folder of the measurements."""
    return data_folder("records")
