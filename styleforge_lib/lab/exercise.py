"""Exercises: the verdict that a learner sees, in words that never change, so that tests can hold the notebooks to them."""


def verdict(passed: bool, title: str, *, praise: str = "", hint: str = "") -> None:
    """Print one line: ``✓ title: praise`` or ``✗ title: hint``. An unsolved exercise does not stop the notebook."""
    mark, words = ("✓", praise) if passed else ("✗", hint)
    print(f"{mark} {title}" + (f": {words}" if words else ""))
