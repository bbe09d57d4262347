"""Reads jobs. Each answer comes from one snapshot, so a job that moves is neither missed nor seen
twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from uuid import UUID

import asyncpg
import orjson

from jobs import cursors
from jobs.errors import JobNotFound
from jobs.model import Attempt, Counts, Job, SlotId, TenantId
from jobs.states import JobState, ScheduledReason
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")
LISTS = load_queries("jobs", "lists")

# A page looks at so many rows at most; spelled out in the queries as well.
PAGE_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What a list holds; None: any. `error_type` and `discarded` belong to the state failed, whose
    list is that of the dead letters: the discarded ones are another list.
    """

    kind: str | None = None
    state: JobState | None = None
    batch_id: UUID | None = None
    tag: str | None = None
    error_type: str | None = None
    discarded: bool = False


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first, and the cursor of the next page (None: there is none). With a filter that
    few jobs match a page may hold less than was asked for, or nothing, and still have a next one.
    """

    jobs: tuple[Job, ...]
    next_cursor: str | None


async def get(connection: Connection, tenant_id: TenantId, job_id: UUID) -> Job:
    """Read one job; raises JobNotFound."""
    found = await get_many(connection, tenant_id, [job_id])
    if not found:
        raise JobNotFound(job_id)
    return found[0]


async def get_many(connection: Connection, tenant_id: TenantId, ids: Sequence[UUID]) -> list[Job]:
    """Read those of the jobs that exist, in the order given."""
    rows = await connection.fetch(QUERIES["get_jobs"], tenant_id, list(ids))
    found = {row["id"]: job_from(row) for row in rows}
    return [found[job_id] for job_id in ids if job_id in found]


def version(job: Job) -> str:
    """A short text that differs whenever anything that a reader sees of the job does."""
    seen = orjson.dumps(job, default=str, option=orjson.OPT_NON_STR_KEYS)
    return blake2b(seen, digest_size=12).hexdigest()


async def list_jobs(
    connection: Connection,
    tenant_id: TenantId,
    job_filter: JobFilter,
    *,
    cursor: str | None = None,
    limit: int = 100,
) -> JobPage:
    """One page of jobs, newest first, from the next PAGE_ROWS rows. The cursor is stable: pages
    neither repeat nor skip a job.

    Raises ValueError for a cursor that no page gave.
    """
    query, given = list_query(tenant_id, job_filter, cursors.read_id(cursor), limit + 1)
    async with connection.transaction():
        await connection.execute(LISTS["dear_sorting"])
        rows = await connection.fetch(LISTS[query], *given)
    # One row without a job tells how far an empty page came.
    found = [job_from(row) for row in rows if row["id"] is not None]
    jobs = tuple(found[:limit])
    read_to = jobs[-1].id if len(found) > limit else rows[0]["read_to"]
    return JobPage(jobs, None if read_to is None else cursors.after_id(read_to))


# The narrow table of a state leads to its jobs.
_OF_STATE = {
    JobState.SCHEDULED: "list_scheduled",
    JobState.QUEUED: "list_queued",
    JobState.RUNNING: "list_running",
}


def list_query(
    tenant_id: TenantId, job_filter: JobFilter, before: UUID, jobs_max: int
) -> tuple[str, tuple[object, ...]]:
    """The query of a page below `before`, and what it is given."""
    state, error_type = job_filter.state, job_filter.error_type
    given = (tenant_id, before, job_filter.kind, job_filter.tag, jobs_max)
    if job_filter.batch_id is not None:
        discarded = job_filter.discarded if state is JobState.FAILED else None
        return "list_batch", (*given, job_filter.batch_id, state, error_type, discarded)
    if state is None:
        return "list_all", given
    if state is JobState.FAILED and not job_filter.discarded:
        return "list_failed", (*given, error_type)
    if state in _OF_STATE:
        return _OF_STATE[state], given
    return "list_finished", (*given, state, error_type)


async def attempts(connection: Connection, tenant_id: TenantId, job_id: UUID) -> list[Attempt]:
    """Every attempt of a job, oldest first, the running one included; raises JobNotFound."""
    rows = await connection.fetch(QUERIES["attempts"], tenant_id, job_id)
    if not rows and not await connection.fetch(QUERIES["known_jobs"], tenant_id, [job_id]):
        raise JobNotFound(job_id)
    return [
        Attempt(
            attempt=row["attempt"],
            slot_id=None if row["slot_id"] is None else SlotId(row["slot_id"]),
            started_at=row["started_at"],
            finished_at=row["finished_at"],
            outcome=row["outcome"],
            error=row["error"],
        )
        for row in rows
    ]


def job_from(row: asyncpg.Record) -> Job:
    """Read a job from a row of the views live_jobs or finished_jobs with its family's counts."""
    state = JobState(row["state"])
    reason = row["state_reason"]
    return Job(
        id=row["id"],
        tenant_id=TenantId(row["tenant_id"]),
        kind=row["kind"],
        pool=row["pool"],
        state=state,
        state_reason=None if reason is None else ScheduledReason(reason),
        settled=state.is_terminal and (not _has_family(row) or row["settled_at"] is not None),
        payload=row["payload"],
        priority=row["priority"],
        tags=tuple(row["tags"]),
        custom_id=row["custom_id"],
        batch_id=row["batch_id"],
        parent_id=row["parent_id"],
        schedule_id=row["schedule_id"],
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        run_at=row["run_at"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        expires_at=row["expires_at"],
        cancel_requested_at=row["cancel_requested_at"],
        follow_ups=_follow_ups(row),
        result=row["result"],
        error=row["error"],
        slot_id=None if row["slot_id"] is None else SlotId(row["slot_id"]),
        callback_url=row["callback_url"],
        concurrency_key=row["concurrency_key"],
        discarded_at=row["discarded_at"],
    )


def _has_family(row: asyncpg.Record) -> bool:
    """Whether the counts are there: retention forgets them with the jobs that they count."""
    return row["follow_total"] is not None


def _follow_ups(row: asyncpg.Record) -> Counts:
    if not _has_family(row):
        return Counts()
    return Counts(
        total=row["follow_total"],
        scheduled=row["follow_scheduled"],
        queued=row["follow_queued"],
        running=row["follow_running"],
        succeeded=row["follow_succeeded"],
        failed=row["follow_failed"],
        cancelled=row["follow_cancelled"],
    )
