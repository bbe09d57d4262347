"""Writes ended jobs to the ledger in batches: whatever waits when the last commit returns goes
next.

No timer: one job alone is committed at once, five hundred share one commit. An ended job stays here
until its outcome is committed, through a Postgres outage too: it is held by this slot as long as
that. So what ends is counted, in jobs and in bytes.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import anyio

from jobs import batches, ledger, limits
from jobs.announcer import Announcer
from jobs.kinds import KindRegistry
from jobs.ledger import Ended, Recorded
from jobs.model import ClaimedJob, SlotId, TenantId
from jobs.outcomes import Backoff, Ending
from jobs.rulings import pack
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import PASSING, Pool

BATCH_MAX = 500
# What one statement may be asked to write within its timeout; a bigger ending goes alone.
BATCH_BYTES_MAX = 16 * 1024 * 1024
# Ended jobs that may wait for their commit before the slot claims no more, and what they may keep
# in memory before it begins no more.
UNRECORDED_MAX = 2000
UNRECORDED_BYTES_MAX = 64 * 1024 * 1024
# While one batch is being committed, a second one goes beside it once it is worth a commit.
BESIDE_MIN = 250
WRITERS = 2
RETRY_PAUSE_S = 0.5
# How long permits that were given back without a lock are gathered before they are counted.
GATHER_S = 0.1

log = logger("recorder")


@dataclass(frozen=True, slots=True)
class Book:
    """What the recorder writes with. `on_commit` is told what is recorded: there is room for
    more.
    """

    postgres: Pool
    announcer: Announcer
    kinds: KindRegistry
    slot_id: SlotId
    on_commit: Callable[[Sequence[Ended]], None]
    backoff: Backoff = field(default_factory=Backoff)


class Recorder:
    """Collects ended jobs and records them; `run` ends once `close` was called and all is
    committed.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._ended: list[Ended] = []
        self._more = anyio.Event()
        self._closed = False
        self._in_commit = 0
        self._bytes = 0
        # Whether the unrecorded endings keep so much memory that no further job may begin.
        self.is_heavy = False
        self._lighter = anyio.Event()
        self._returned = anyio.Event()
        self._done = anyio.Event()
        # Jitter of retries only.
        self._rng = random.Random()  # noqa: S311

    @property
    def unrecorded(self) -> int:
        """Jobs that have ended and are not committed yet: who claims bounds them."""
        return len(self._ended) + self._in_commit

    async def lightened(self) -> None:
        """Wait until it is not heavy."""
        while self.is_heavy:
            await self._lighter.wait()

    def add(self, job: ClaimedJob, ending: Ending, waited_s: float) -> None:
        """Queue an ended job."""
        ended = pack(job, ending, waited_s)
        if ended.size:
            self._weigh(ended.size)
        self._ended.append(ended)
        if len(self._ended) == (BESIDE_MIN if self._in_commit else 1):
            self._more.set()

    def close(self) -> None:
        """Take no more; `run` ends after the last commit."""
        self._closed = True
        self._more.set()

    async def run(self) -> None:
        """Record until closed. Raises SlotEnded when the slot was declared dead."""
        async with anyio.create_task_group() as counting:
            counting.start_soon(self._count_returned)
            async with anyio.create_task_group() as writers:
                for _ in range(WRITERS):
                    writers.start_soon(self._write)
            self._done.set()
            self._returned.set()

    async def _write(self) -> None:
        while self._ended or not self._closed:
            if len(self._ended) < (BESIDE_MIN if self._in_commit else 1):
                self._more = anyio.Event() if self._more.is_set() else self._more
                await self._more.wait()
                continue
            batch = self._take()
            recorded = await self._commit(batch)
            self._let_go(batch)
            self._book.on_commit(batch)
            _count(batch, recorded)
            self._tell(batch, recorded)

    def _take(self) -> list[Ended]:
        """The next batch, bounded by jobs and by bytes; one job at least."""
        count = min(BATCH_MAX, len(self._ended))
        if self._bytes > BATCH_BYTES_MAX:
            sizes = accumulate(ended.size for ended in self._ended[:count])
            count = max(1, sum(size <= BATCH_BYTES_MAX for size in sizes))
        batch, self._ended = self._ended[:count], self._ended[count:]
        self._in_commit += count
        return batch

    def _let_go(self, batch: Sequence[Ended]) -> None:
        self._in_commit -= len(batch)
        self._more.set()
        if self._bytes:
            self._weigh(-sum([ended.size for ended in batch]))
            self._lighter.set()
            self._lighter = anyio.Event()

    def _weigh(self, size: int) -> None:
        self._bytes += size
        self.is_heavy = self._bytes >= UNRECORDED_BYTES_MAX

    async def _commit(self, batch: Sequence[Ended]) -> Recorded:
        """Record a batch, waiting out an outage."""
        while True:
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
                    return recorded
            except PASSING as error:
                log.warning("record_waits", jobs=len(batch), error=str(error))
                await anyio.sleep(RETRY_PAUSE_S)

    async def _count_returned(self) -> None:
        """Count permits given back, many commits at a time; a sweeper does what is left here."""
        while self._returned.is_set() or not self._done.is_set():
            await self._returned.wait()
            with anyio.move_on_after(GATHER_S):
                await self._done.wait()
            self._returned = anyio.Event()
            try:
                async with self._book.postgres.acquire() as connection:
                    self._book.announcer.announce(await limits.count_returned(connection))
            except PASSING as error:
                log.warning("count_of_permits_waits", error=str(error))

    def _tell(self, batch: Sequence[Ended], recorded: Recorded) -> None:
        """Announce what became claimable, and nudge watchers."""
        self._book.announcer.announce(recorded.ready)
        if recorded.has_returned:
            self._returned.set()
        by_tenant: dict[TenantId, list[Ended]] = {}
        for ended in batch:
            by_tenant.setdefault(ended.job.tenant_id, []).append(ended)
        for tenant_id, own in by_tenant.items():
            touched = {ended.job.batch_id for ended in own if ended.job.batch_id is not None}
            ids = [job_id for ended in own for job_id in (ended.job.id, *ended.job.lineage)]
            self._book.announcer.changed(tenant_id, ids, touched)


def _count(batch: Sequence[Ended], recorded: Recorded) -> None:
    """Count what was written; one label look-up a kind and outcome, not a job."""
    if recorded.stale:
        metrics.FENCED_WRITES.inc(len(recorded.stale))
        log.warning("late_outcome_refused", job_ids=[str(job_id) for job_id in recorded.stale])
        batch = [ended for ended in batch if ended.job.id not in recorded.stale]
    written = Counter((ended.job.kind, ended.job.pool, type(ended.ending)) for ended in batch)
    for (kind, pool, ending), count in written.items():
        metrics.JOBS_FINISHED.labels(kind, pool, ending.__name__.lower()).inc(count)
