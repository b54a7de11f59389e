"""Words with figures in them: what a lesson says of its measurements (say, compared), and of an exercise (verdict)."""

from collections.abc import Iterable, Sequence

from IPython.display import Markdown

from styleforge_lib.lab.records import Measurement


def say(*sentences: str, **values: object) -> Markdown:
    """Return Markdown in which ``{name:format}`` stands for ``values``, so that no figure is typed by hand."""
    return Markdown(" ".join(sentences).format(**values))


def compared(row: Measurement, other: Measurement) -> str:
    """Return what follows the time of ``row``, held against that of ``other``: "9 % less", "2.3 times as much".

    Where the ranges from the 20 % to the 80 % quantile overlap it is "the same within the spread".
    """
    if row.p20_ms <= other.p80_ms and other.p20_ms <= row.p80_ms:
        return "the same within the spread"
    ratio = row.median_ms / other.median_ms
    if ratio >= 2:
        return f"{ratio:.1f} times as much"
    if ratio <= 0.5:
        return f"{1 / ratio:.1f} times faster"
    percent = f"{100 * abs(ratio - 1):.0f} %"
    return f"{'less than 1 %' if percent == '0 %' else percent} {'more' if ratio > 1 else 'less'}"


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
