"""Looks at the ledger for many watchers: whoever wants to see the same thing at the same time costs
one read, and all who look at the same time one round trip.

Keeps nothing: what a watcher is shown was read after it had asked.
"""

import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import batched

import anyio

from api.availability import Availability
from api.translations import POSTGRES_AWAY
from runtime.errors import PostgresAwayError
from runtime.logs import logger

# After a look this process does other things for so many times the processor time that the look and
# those who asked for it took; whoever asks meanwhile waits, at most so long, and shares the next.
REST = 1.0
REST_MAX_S = 0.05

log = logger("looks")


@dataclass(eq=False, slots=True)
class _Asked[V]:
    """One question, and all who have asked it before it is read."""

    done: anyio.Event = field(default_factory=anyio.Event)
    found: V | None = None
    failure: Exception | None = None


class Looks[K: Hashable, V]:
    """One kind of look: `read` answers many keys at once, leaving out what does not exist."""

    def __init__(
        self,
        read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        availability: Availability,
        *,
        keys_max: int,
    ) -> None:
        self._read = read
        self._availability = availability
        self._keys_max = keys_max
        self._asked: dict[K, _Asked[V]] = {}
        self._wake = anyio.Event()

    async def see(self, key: K) -> V | None:
        """What there is, read from now on; None when there is nothing. Raises PostgresAwayError."""
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = _Asked()
            self._wake.set()
        await asked.done.wait()
        # An error of its own for each who asked: a traceback grows wherever its error is raised.
        if isinstance(asked.failure, POSTGRES_AWAY):
            raise PostgresAwayError(str(asked.failure) or type(asked.failure).__name__)
        if asked.failure is not None:
            raise RuntimeError("a look has failed") from asked.failure
        return asked.found

    async def run(self) -> None:
        """Look for ever, for whoever asks; owned by the application's task group."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            began = time.thread_time()
            asked, self._asked = self._asked, {}
            for keys in batched(asked, self._keys_max):
                await self._look(keys, asked)
                # Those who asked go on now: what they do with it is part of what a look costs.
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(min(REST_MAX_S, REST * (time.thread_time() - began)))

    async def _look(self, keys: Sequence[K], asked: Mapping[K, _Asked[V]]) -> None:
        found: Mapping[K, V] = {}
        failure: Exception | None = None
        try:
            with self._availability.bounded():
                found = await self._read(keys)
        except POSTGRES_AWAY as error:
            failure = error
        # A fault of any kind must end its own questions, never this loop that all watchers need.
        except Exception as error:
            log.exception("look_failed")
            failure = error
        for key in keys:
            asked[key].found, asked[key].failure = found.get(key), failure
            asked[key].done.set()
