"""One request a key at a time in this process: the others wait here, where they hold no
connection.

Only a courtesy to the pool: that a key has one effect is the ledger's affair.
"""

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from jobs.errors import IdempotencyInFlight


@dataclass(eq=False, slots=True)
class _Turn:
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    users: int = 0


class Turns:
    """The keys that requests are being answered under at this moment."""

    def __init__(self) -> None:
        self._turns: dict[Hashable, _Turn] = {}

    @property
    def keys(self) -> int:
        """How many keys are held or waited for."""
        return len(self._turns)

    @asynccontextmanager
    async def of(self, key: Hashable, wait_s: float) -> AsyncIterator[None]:
        """Hold the key for a block; raises IdempotencyInFlight when it is not free in time."""
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            await _take(turn.lock, wait_s)
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]


async def _take(lock: anyio.Lock, wait_s: float) -> None:
    with anyio.move_on_after(wait_s):
        await lock.acquire()
        return
    message = "the first request with this Idempotency-Key is still being answered: try again"
    raise IdempotencyInFlight(message)
