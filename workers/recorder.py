"""Writes ended jobs to the ledger in batches: whatever waits when the last commit returns goes
next.

No timer: one job alone is committed at once, a thousand share one commit. An ended job stays in the
queue until its outcome is committed, through a Postgres outage too: it is held by this slot as long
as that.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from math import inf

import anyio

from jobs import batches, ledger
from jobs.announcer import Announcer
from jobs.kinds import KindRegistry
from jobs.ledger import Ended, Recorded
from jobs.model import SlotId, TenantId
from jobs.outcomes import Backoff
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import PASSING, Pool

BATCH_MAX = 500
RETRY_PAUSE_S = 0.5

log = logger("recorder")


@dataclass(frozen=True, slots=True)
class Book:
    """What the recorder writes with."""

    postgres: Pool
    announcer: Announcer
    kinds: KindRegistry
    slot_id: SlotId
    backoff: Backoff = field(default_factory=Backoff)


class Recorder:
    """Collects ended jobs and records them; `run` ends once `close` was called and all is
    committed.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._send, self._receive = anyio.create_memory_object_stream[Ended](inf)
        # Jitter of retries only.
        self._rng = random.Random()  # noqa: S311

    def add(self, ended: Ended) -> None:
        """Queue an ended job. Bounded by what the slot may have in hand."""
        self._send.send_nowait(ended)

    def close(self) -> None:
        """Take no more; `run` ends after the last commit."""
        self._send.close()

    async def run(self) -> None:
        """Record until closed. Raises SlotEnded when the slot was declared dead."""
        async with self._receive:
            async for first in self._receive:
                await self._commit(self._batch(first))

    def _batch(self, first: Ended) -> list[Ended]:
        batch = [first]
        while len(batch) < BATCH_MAX:
            try:
                batch.append(self._receive.receive_nowait())
            except (anyio.WouldBlock, anyio.EndOfStream):
                break
        return batch

    async def _commit(self, batch: list[Ended]) -> None:
        """Record a batch, waiting out an outage; then announce and nudge, both after the commit."""
        recorded = None
        while recorded is None:
            try:
                async with self._book.postgres.acquire() as connection:
                    recorded = await ledger.record(
                        connection,
                        self._book.slot_id,
                        batch,
                        kinds=self._book.kinds,
                        rng=self._rng,
                        backoff=self._book.backoff,
                    )
                    if recorded.batches:
                        await batches.finish_due(connection, recorded.batches)
            except PASSING as error:
                log.warning("record_waits", jobs=len(batch), error=str(error))
                await anyio.sleep(RETRY_PAUSE_S)
        self._tell(batch, recorded)

    def _tell(self, batch: list[Ended], recorded: Recorded) -> None:
        _count(batch, recorded)
        if recorded.stale:
            metrics.FENCED_WRITES.inc(len(recorded.stale))
            log.warning("late_outcome_refused", job_ids=[str(job_id) for job_id in recorded.stale])
        self._book.announcer.announce(recorded.ready)
        by_tenant: dict[TenantId, list[Ended]] = {}
        for ended in batch:
            by_tenant.setdefault(ended.job.tenant_id, []).append(ended)
        for tenant_id, own in by_tenant.items():
            touched = {ended.job.batch_id for ended in own if ended.job.batch_id is not None}
            ids = {job_id for ended in own for job_id in (ended.job.id, *ended.job.lineage)}
            self._book.announcer.changed(tenant_id, ids, touched)


def _count(batch: list[Ended], recorded: Recorded) -> None:
    """Count what was written; one label look-up a kind and outcome, not a job."""
    written = Counter(
        (ended.job.kind, ended.job.pool, type(ended.ending).__name__.lower())
        for ended in batch
        if ended.job.id not in recorded.stale
    )
    for (kind, pool, outcome), count in written.items():
        metrics.JOBS_FINISHED.labels(kind, pool, outcome).inc(count)
