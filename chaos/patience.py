"""How long a run waits for the end: as long as less and less is left. Pure: no clock."""

import sys

# How long nothing may get done.
STILL_S = 45.0


class Patience:
    """Judges by what is left, seen again and again; at least until `until`."""

    def __init__(self, until: float) -> None:
        self._until = until
        self._least = sys.maxsize

    def is_over(self, left: int, now: float) -> bool:
        """Whether nothing has got done for too long. A busy machine may take its time."""
        if left < self._least:
            self._least = left
            self._until = max(self._until, now + STILL_S)
        return now > self._until
