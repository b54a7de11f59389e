"""A toy GPU with a clock of its own: what a benchmark sees of a GPU, and nothing else.

It exists so that a benchmark can be held to the truth where there is no GPU: the toy knows how long its kernels take.
As on a GPU, a launch returns at once and the work is done later, in order; the first launch of a kernel compiles it;
data that lie in the L2 cache arrive sooner; and now and then something else delays the work.
"""

import random


class ToyGPU:
    """A GPU whose kernels take ``cold_ms``, or ``warm_ms`` when the launch before has left their data in the L2.

    ``run()`` launches the kernel. ``clock()`` is the host's time in ms, ``synchronize()`` waits for the GPU,
    ``event()`` is recorded in the GPU's own order of work, ``flush_l2()`` is a kernel that overwrites the cache.
    """

    LAUNCH_MS, COMPILE_MS, FLUSH_MS, HICCUP_MS = 0.006, 250.0, 0.05, 3.0

    def __init__(self, cold_ms: float, warm_ms: float, seed: int = 0):
        self.cold_ms, self.warm_ms = cold_ms, warm_ms
        self._host = self._gpu = 0.0
        self._compiled = self._in_l2 = False
        self._random = random.Random(seed)

    def run(self) -> None:
        """Launch the kernel."""
        if not self._compiled:
            self._host += self.COMPILE_MS
            self._compiled = True
        hiccup = self.HICCUP_MS if self._random.random() < 0.05 else 0.0
        self._enqueue((self.warm_ms if self._in_l2 else self.cold_ms) + hiccup)
        self._in_l2 = True

    def flush_l2(self) -> None:
        """Overwrite the L2 cache: the next launch reads from memory."""
        self._enqueue(self.FLUSH_MS)
        self._in_l2 = False

    def _enqueue(self, ms: float) -> None:
        self._host += self.LAUNCH_MS
        self._gpu = max(self._gpu, self._host) + ms

    def synchronize(self) -> None:
        """Wait until the GPU has done all its work."""
        self._host = max(self._host, self._gpu)

    def clock(self) -> float:
        """Return the host's time in ms; reading it takes no time."""
        return self._host

    def event(self) -> float:
        """Return the time in ms at which the GPU will have done the work so far: the toy knows it already."""
        return max(self._gpu, self._host)
