"""Accepts jobs: set-based, all or nothing. Knows nothing of HTTP and announces nothing."""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import batched
from uuid import UUID

import asyncpg
import orjson

from jobs import dependencies, uniqueness
from jobs.aftermath import Aftermath, Verdict
from jobs.counts import NO_SLOT
from jobs.errors import Cancel, JobsRefused, Refusal
from jobs.intake import Entry, check
from jobs.kinds import KindRegistry
from jobs.model import Accepted, ClaimedJob, NewJob, SlotId, TenantId
from jobs.results import Ready
from jobs.states import JobState
from jobs.transactions import atomically
from runtime import metrics
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

DEFAULT_AGEING_S = 60.0
ROWS_A_STATEMENT = 5000


@dataclass(frozen=True, slots=True)
class Origin:
    """What all jobs of one call share."""

    tenant_id: TenantId
    batch_id: UUID | None = None
    lineage: tuple[UUID, ...] = ()
    writer: SlotId = NO_SLOT
    now: datetime | None = None
    ageing_s: float = DEFAULT_AGEING_S

    @property
    def follow_up(self) -> bool:
        """Whether another job creates these."""
        return bool(self.lineage)


async def enqueue(
    connection: Connection,
    tenant_id: TenantId,
    jobs: Sequence[NewJob],
    *,
    kinds: KindRegistry,
    batch_id: UUID | None = None,
    now: datetime | None = None,
    ageing_s: float = DEFAULT_AGEING_S,
) -> list[Accepted]:
    """Accept all jobs or none, in the caller's transaction; answers in the order given.

    A job whose `unique` key is taken answers with the holder of the key (`deduplicated`). Raises
    JobsRefused, which names every invalid job by its position. Announce by pool after the commit.
    """
    origin = Origin(tenant_id, batch_id, now=now, ageing_s=ageing_s)
    entries = check(jobs, kinds)
    # Plain jobs are one statement, which needs no transaction around it.
    is_plain = batch_id is None and len(entries) <= ROWS_A_STATEMENT
    if is_plain and all(_is_plain(job) for job in jobs):
        return await _accept(connection, origin, entries)

    async def accept() -> list[Accepted]:
        # Marks duplicates in its entries: a second try begins with fresh ones.
        return await _accept(connection, origin, check(jobs, kinds))

    return await seeing_new_names(connection, accept)


async def enqueue_entries(
    connection: Connection, origin: Origin, entries: Sequence[Entry]
) -> list[Accepted]:
    """As `enqueue`, of jobs that `check` has let pass."""

    async def accept() -> list[Accepted]:
        # Marks duplicates in its entries: a second try begins with fresh ones.
        return await _accept(connection, origin, [entry.afresh() for entry in entries])

    return await seeing_new_names(connection, accept)


def _is_plain(job: NewJob) -> bool:
    return not (job.unique or job.concurrency_key or job.depends_on)


async def enqueue_follow_ups(
    connection: Connection,
    parent: ClaimedJob,
    jobs: Sequence[NewJob],
    *,
    kinds: KindRegistry,
    now: datetime | None = None,
    ageing_s: float = DEFAULT_AGEING_S,
    aftermath: Aftermath | None = None,
) -> list[Accepted]:
    """Accept jobs that `parent` creates, in a transaction that has already asserted its token.

    They inherit tenant and batch, and keep every ancestor unsettled until they end. Raises Cancel
    when somebody asked to cancel the parent, since what it creates would have to be cancelled with
    it. Who gives an `aftermath` applies it, once for several parents.
    """
    if not jobs:
        return []
    lineage = (*parent.lineage, parent.id)
    origin = Origin(parent.tenant_id, parent.batch_id, lineage, parent.slot_id, now, ageing_s)
    entries = check(jobs, kinds)
    if await connection.fetchval(QUERIES["mark_family"], parent.id) is not None:
        reason = "cancelled by request"
        raise Cancel(reason)
    return await _accept(connection, origin, entries, aftermath)


async def _accept(
    connection: Connection,
    origin: Origin,
    entries: list[Entry],
    aftermath: Aftermath | None = None,
) -> list[Accepted]:
    """Lock in the ledger's order: parents, families, keys; then write, and count last."""
    if origin.batch_id is not None and not origin.follow_up:
        names = {e.job.custom_id: e.position for e in entries if e.job.custom_id is not None}
        await assert_new_names(connection, origin.batch_id, names)
    parents = await dependencies.lock_parents(
        connection, origin.tenant_id, origin.batch_id, entries
    )
    new = await uniqueness.take(connection, origin.tenant_id, entries, origin.now)
    await dependencies.follow_duplicates(connection, origin.tenant_id, entries, parents)
    if origin.follow_up:
        # Of none as well: the parent is marked, and settles with its family only.
        await connection.execute(
            QUERIES["add_to_families"], list(origin.lineage), origin.tenant_id, len(new)
        )
    own = aftermath or Aftermath(connection, origin.writer, origin.now)
    placing = _Placing(connection, origin, parents, own)
    await placing.insert(new)
    if aftermath is None:
        await placing.finish()
    known = await uniqueness.holders(connection, origin.tenant_id, entries)
    accepted = [_answer(entry, placing.states, known) for entry in entries]
    for kind, count in Counter(job.kind for job in accepted if not job.deduplicated).items():
        metrics.JOBS_ENQUEUED.labels(kind).inc(count)
    return accepted


async def assert_new_names(
    connection: Connection, batch_id: UUID, positions: Mapping[str, int]
) -> None:
    """Raise JobsRefused for custom_ids that jobs of an earlier part have."""
    if not positions:
        return
    rows = await connection.fetch(QUERIES["find_custom_ids"], batch_id, list(positions))
    detail = "names a job of an earlier part already: custom_ids are unique in a batch"
    refusals = [
        Refusal(positions[row["custom_id"]], "/custom_id", f"{row['custom_id']!r} {detail}")
        for row in rows
    ]
    if refusals:
        raise JobsRefused(tuple(sorted(refusals, key=lambda refusal: refusal.position)))


async def seeing_new_names[T](connection: Connection, work: Callable[[], Awaitable[T]]) -> T:
    """Do the work atomically; once more when another part of the batch took a custom_id meanwhile.

    By then that part is committed, so that the second try refuses the name.
    """
    try:
        return await atomically(connection, work)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "jobs_custom_id":
            raise
        return await atomically(connection, work)


def ready_of(accepted: Iterable[Accepted]) -> Ready:
    """What to announce: the new jobs that are queued, by pool."""
    ready: dict[str, list[UUID]] = defaultdict(list)
    for job in accepted:
        if job.state is JobState.QUEUED and not job.deduplicated:
            ready[job.pool].append(job.id)
    return {pool: tuple(ids) for pool, ids in ready.items()}


def _answer(entry: Entry, states: dict[UUID, JobState], known: dict[UUID, Accepted]) -> Accepted:
    if entry.duplicate_of is not None and entry.duplicate_of in known:
        return known[entry.duplicate_of]
    state = states.get(entry.id, JobState.QUEUED)
    return Accepted(entry.id, entry.kind.name, entry.kind.pool, state)


@dataclass(slots=True)
class _Placing:
    """Writes the new jobs and finds out where each stands. `states`: those not just queued."""

    connection: Connection
    origin: Origin
    parents: dependencies.Parents
    aftermath: Aftermath
    states: dict[UUID, JobState] = field(default_factory=dict)

    async def insert(self, entries: Sequence[Entry]) -> None:
        """Write the jobs; wait for live parents, and do what those that ended before decide."""
        origin = self.origin
        self.aftermath.deltas.add(
            origin.batch_id, "total", len(entries), follow_up=origin.follow_up
        )
        for chunk in batched(entries, ROWS_A_STATEMENT):
            await self._insert_chunk(chunk)
        await dependencies.add(self.connection, entries, self.parents)
        doomed: dict[UUID, Verdict] = {}
        for entry in entries:
            verdict = self.parents.verdict(entry)
            if verdict is not None:
                doomed[entry.id] = verdict
        if doomed:
            over = await self.aftermath.end_waiting(doomed)
            self.states.update({job.id: job.state for job in over})

    async def finish(self) -> None:
        """Give out permits and write the counts, last."""
        await self.aftermath.apply()
        for ids in self.aftermath.ready.values():
            self.states.update(dict.fromkeys(ids, JobState.QUEUED))

    async def _insert_chunk(self, chunk: Sequence[Entry]) -> None:
        origin = self.origin
        keys = {entry.id: entry.job.concurrency_key for entry in chunk}
        rows = await self.connection.fetch(
            QUERIES["insert_jobs"],
            origin.now,
            origin.ageing_s,
            origin.tenant_id,
            origin.batch_id,
            origin.lineage[-1] if origin.lineage else None,
            origin.lineage[0] if origin.lineage else None,
            list(origin.lineage),
            *_columns(chunk, self.parents),
        )
        for row in rows:
            self.states[row["id"]] = JobState.SCHEDULED
            key = keys[row["id"]]
            if row["reason"] == "limit" and key is not None:
                self.aftermath.wait_for_permit(origin.tenant_id, key)
        self.aftermath.deltas.add(
            origin.batch_id, "scheduled", len(rows), follow_up=origin.follow_up
        )


def _columns(chunk: Sequence[Entry], parents: dependencies.Parents) -> tuple[list[object], ...]:
    """The arrays of insert_jobs, from $8 on."""
    jobs = [entry.job for entry in chunk]
    return (
        [entry.id for entry in chunk],
        [entry.kind.name for entry in chunk],
        [entry.kind.pool for entry in chunk],
        [job.payload for job in jobs],
        [job.priority for job in jobs],
        [job.run_at for job in jobs],
        [job.delay_s for job in jobs],
        [job.expires_at for job in jobs],
        [
            entry.kind.timeout_s if entry.job.timeout_s is None else entry.job.timeout_s
            for entry in chunk
        ],
        [entry.job.max_attempts or entry.kind.max_attempts for entry in chunk],
        # As text: asyncpg would take a list of lists for an array of two dimensions.
        [orjson.dumps(job.tags).decode() if job.tags else None for job in jobs],
        [job.custom_id for job in jobs],
        [job.schedule_id for job in jobs],
        [job.callback_url for job in jobs],
        [None if job.unique is None else job.unique.key for job in jobs],
        [None if job.unique is None else job.unique.until for job in jobs],
        [job.concurrency_key for job in jobs],
        [parents.pending(entry) for entry in chunk],
        [job.on_parent_failure for job in jobs],
    )
