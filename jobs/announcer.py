"""Tells Redis what was committed, beside the work: a Redis that hangs or is gone delays no answer,
no job and no commit.

What cannot be told is dropped: slots poll, the sweeper announces again, watchers read the ledger.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import anyio

from jobs import dispatch
from jobs.live import LiveStream
from jobs.model import ClaimedJob, TenantId
from runtime.ids import uuid7s
from runtime.redis import Client

# A pool's wake-ups beyond this many ids tell slots nothing new.
_IDS_MAX = 4096
_NUDGES_MAX = 4096
# A wake-up without a job of its own carries fresh ids: ids are hints, each message wakes one slot.
_SLOTS_WOKEN = 16
# What a process that ends may still spend on telling.
_FLUSH_S = 1.0


class Announcer:
    """Collects wake-ups and nudges, and sends what has gathered while the last sending was under
    way.
    """

    def __init__(self, redis: Client, live: LiveStream) -> None:
        self._redis = redis
        self._live = live
        self._ready: dict[str, list[UUID]] = {}
        self._changed: list[tuple[TenantId, tuple[UUID, ...], tuple[UUID, ...]]] = []
        self._started: list[ClaimedJob] = []
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

    def started(self, jobs: Sequence[ClaimedJob]) -> None:
        """Say that these jobs run."""
        if jobs and len(self._started) < _NUDGES_MAX:
            self._started.extend(jobs)
            self._wake.set()

    async def run(self) -> None:
        """Send until cancelled; owned by a task group of the process."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            await self._send()

    @asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """Send during a block, and what is left at its end; gives that up soon."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.run)
            yield
            group.cancel_scope.cancel()
        with anyio.move_on_after(_FLUSH_S):
            await self._send()

    async def _send(self) -> None:
        ready, self._ready = self._ready, {}
        changed, self._changed = self._changed, []
        started, self._started = self._started, []
        await dispatch.announce(self._redis, ready)
        if started:
            await self._live.started(started)
        for tenant_id, jobs, batches in changed:
            await self._live.changed(tenant_id, jobs, batches)
