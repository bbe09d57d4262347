"""Waits until a slot's pool may have work: woken over Redis, or by looking often where no wake-up
can be trusted. Claims nothing itself.
"""

import time

import anyio

from jobs import dispatch
from runtime import metrics
from runtime.redis import Client

BLOCK_S = 5.0
# An answer that is this late will not come.
LATE_S = 1.0
# Jobs lay in the ledger and no wake-up told of them: for so long it is looked for them often.
DOUBT_S = 60.0


class WakeUps:
    """The wake-ups of one pool for one slot."""

    def __init__(self, redis: Client, pool: str, *, poll_s: float) -> None:
        self._redis = redis
        self._pool = pool
        self._poll_s = poll_s
        self._is_away = False
        self._slept_through = False
        self._doubtful_until = 0.0

    async def wait(self) -> bool:
        """Return when it is time to look at the ledger; True when nothing has happened meanwhile.

        Blocks for `BLOCK_S` on a Redis that works, for `poll_s` on one that is away, silent, or
        loses what it is told (one that refuses writes still lets everybody wait).
        """
        began = time.monotonic()
        block_s = self._block_s(began)
        # Of a Redis that was away the first answer must come within the poll.
        limit_s = max(block_s, self._poll_s) + (0.0 if self._is_away else LATE_S)
        try:
            with anyio.fail_after(limit_s):
                woken = await dispatch.wait(self._redis, self._pool, block_s)
        except dispatch.UNAVAILABLE:
            metrics.DISPATCH_FAILURES.inc()
            self._is_away = True
            await anyio.sleep(max(0.0, self._poll_s - (time.monotonic() - began)))
            return False
        self._is_away = False
        self._slept_through = woken is None
        if woken is not None:
            self._doubtful_until = 0.0
        return woken is None

    def _block_s(self, now: float) -> float:
        if self._is_away:
            return self._poll_s / 2
        return min(self._poll_s, BLOCK_S) if now < self._doubtful_until else BLOCK_S

    def found(self, jobs: int) -> None:
        """Say what the look at the ledger after a wait has found."""
        if jobs and self._slept_through:
            self._doubtful_until = time.monotonic() + DOUBT_S
        self._slept_through = False
