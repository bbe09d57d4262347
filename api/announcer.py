"""Tells Redis what was committed, beside the requests: a Redis that hangs or is gone delays no
answer.

What cannot be told is dropped: slots poll, the sweeper announces again, watchers read the ledger.
"""

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import anyio
from redis.asyncio import Redis

from jobs import dispatch
from jobs.live import LiveStream
from jobs.model import TenantId
from runtime.ids import uuid7s

# A pool's wake-ups beyond this many ids tell slots nothing new.
_IDS_MAX = 4096
_NUDGES_MAX = 4096
# A wake-up without a job of its own carries fresh ids: ids are hints, each message wakes one slot.
_SLOTS_WOKEN = 16


class Announcer:
    """Collects wake-ups and nudges, and sends what has gathered while the last sending was under
    way.
    """

    def __init__(self, redis: Redis, live: LiveStream) -> None:
        self._redis = redis
        self._live = live
        self._ready: dict[str, list[UUID]] = {}
        self._changed: list[tuple[TenantId, tuple[UUID, ...], tuple[UUID, ...]]] = []
        self._wake = anyio.Event()

    def announce(self, ready: Mapping[str, Sequence[UUID]]) -> None:
        """Wake slots of these pools. Call it after the commit."""
        for pool, ids in ready.items():
            waiting = self._ready.setdefault(pool, [])
            waiting.extend(ids[: _IDS_MAX - len(waiting)])
        if any(ready.values()):
            self._wake.set()

    def wake(self, pool: str) -> None:
        """Let the slots of a pool look at the ledger. Call it after the commit."""
        self.announce({pool: uuid7s(_SLOTS_WOKEN)})

    def changed(
        self, tenant_id: TenantId, jobs: Iterable[UUID], batches: Iterable[UUID] = ()
    ) -> None:
        """Nudge whoever watches these jobs and batches, in any process. Call it after the
        commit.
        """
        if len(self._changed) < _NUDGES_MAX:
            self._changed.append((tenant_id, tuple(jobs)[:_IDS_MAX], tuple(batches)))
            self._wake.set()

    async def run(self) -> None:
        """Send for ever; owned by the application's task group."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            ready, self._ready = self._ready, {}
            changed, self._changed = self._changed, []
            await dispatch.announce(self._redis, ready)
            for tenant_id, jobs, batches in changed:
                await self._live.changed(tenant_id, jobs, batches)
