"""Who may see what the asynchronous proxy does, and when: findings for a `Trace`.

Without a trace nothing is kept: `Unobserved` takes every call and does nothing.
"""

from __future__ import annotations


class Unobserved:
    """Takes what `Observations` takes, and forgets it."""

    def _nothing(self, *_) -> None:
        pass

    arrive = completed = passed = issued = landed = asynchronous_read = multiplied = multiplied_now = _nothing
    fenced = barrier = check = _nothing
