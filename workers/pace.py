"""How many jobs a slot may have in hand, so that no neighbour waits for what lies idle here.

Pure: it is told what happened, by the slot's clock.
"""

from collections.abc import Sequence

from jobs.kinds import Kind
from workers.board import ENTRIES_MAX

CLAIM_MAX = 500
# A slot claims at most this much measured work ahead.
AHEAD_S = 0.05
SMOOTHING = 0.2
_FIRST_AHEAD = 16


class Pace:
    """The room of one slot. An exclusive pool is measured by how long its jobs run, a shared one by
    how long they wait here before they start.
    """

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self.is_exclusive = any(kind.exclusive for kind in kinds)
        at_once = max((kind.in_hand for kind in kinds), default=1)
        self.at_once = min(ENTRIES_MAX, at_once)
        self._job_s = AHEAD_S
        self._ahead = _FIRST_AHEAD
        self._waited_s: float | None = None

    def ran(self, ran_s: float) -> None:
        """Take note of how long a job ran."""
        self._job_s += SMOOTHING * (ran_s - self._job_s)

    def waited(self, waited_s: float) -> None:
        """Take note of how long a job lay here before it started."""
        self._waited_s = max(self._waited_s or 0.0, waited_s)

    def room(self, waiting: int, running: int) -> int:
        """How many jobs to claim now; less than one for none."""
        if self.is_exclusive:
            ahead = min(CLAIM_MAX, max(1, int(AHEAD_S / max(self._job_s, 1e-6))))
            return ahead - waiting - running
        return min(self._ahead - waiting, self.at_once - waiting - running, CLAIM_MAX)

    def claimed(self) -> None:
        """Aim at twice as many the next time, or half, by what the jobs begun since then waited."""
        if self._waited_s is None:
            return
        if self._waited_s > AHEAD_S:
            self._ahead = max(1, self._ahead // 2)
        elif self._waited_s < AHEAD_S / 2:
            self._ahead = min(2 * CLAIM_MAX, self._ahead * 2)
        self._waited_s = None
