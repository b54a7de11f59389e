"""Words with figures in them: what a lesson says of its measurements (say), and of an exercise (verdict)."""

from collections.abc import Iterable, Sequence

from IPython.display import Markdown


def say(*sentences: str, **values: object) -> Markdown:
    """Return Markdown in which ``{name:format}`` stands for ``values``, so that no figure is typed by hand."""
    return Markdown(" ".join(sentences).format(**values))


def tabulate(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markdown:
    """Return a Markdown table whose first column is text and whose others are figures."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def verdict(passed: bool, title: str, *, praise: str = "", hint: str = "") -> None:
    """Print one line: ``✓ title: praise`` or ``✗ title: hint``. An unsolved exercise does not stop the notebook.

    The words must not change with the machine: tests compare them.
    """
    mark, words = ("✓", praise) if passed else ("✗", hint)
    print(f"{mark} {title}" + (f": {words}" if words else ""))
