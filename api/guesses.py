"""Slows down whoever tries keys: wrong ones are counted by where they come from and by the prefix
they bear.

Kept in this process alone and bounded. Guessing 256 bits is hopeless anyway: this bounds what it
costs Postgres and the log, and who was let in lately is never asked (see api/auth.py).
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

# As many wrong keys at once, then so many a second.
BURST = 60
PER_S = 1.0
ENTRIES_MAX = 20_000


class Guesses:
    """A bucket of allowed mistakes for each address and each prefix."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # What is left, and when it was; a full bucket needs no entry.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, *sources: str) -> int:
        """Whole seconds until another guess from these sources is looked at; 0 for at once."""
        lacking = max(1.0 - self._left(source) for source in sources)
        return math.ceil(lacking / PER_S) if lacking > 0 else 0

    def failed(self, *sources: str) -> None:
        """Count a wrong key; the sources touched longest ago are forgotten beyond the bound."""
        for source in sources:
            self._buckets[source] = (self._left(source) - 1.0, self._clock())
            self._buckets.move_to_end(source)
        while len(self._buckets) > ENTRIES_MAX:
            self._buckets.popitem(last=False)

    def _left(self, source: str) -> float:
        left, at = self._buckets.get(source, (float(BURST), 0.0))
        return min(float(BURST), left + (self._clock() - at) * PER_S)
