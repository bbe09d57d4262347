"""Takes dead letters off their list for good; the jobs and their history stay until retention."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from jobs.model import TenantId
from jobs.results import DiscardResult
from jobs.states import JobState
from jobs.transactions import atomically
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")


async def discard(
    connection: Connection,
    tenant_id: TenantId,
    ids: Sequence[UUID],
    *,
    by: str,
    now: datetime | None = None,
) -> DiscardResult:
    """Discard failed jobs. Idempotent: the first time and name stay; `retry` brings one back."""
    asked = list(dict.fromkeys(ids))

    async def discard_all() -> DiscardResult:
        fresh = await connection.fetch(QUERIES["discard"], tenant_id, asked, by, now)
        discarded = {row["id"] for row in fresh}
        rest = [job_id for job_id in asked if job_id not in discarded]
        rows = await connection.fetch(QUERIES["job_states"], tenant_id, rest) if rest else []
        states = {row["id"]: JobState(row["state"]) for row in rows}
        return DiscardResult(
            discarded=tuple(job_id for job_id in asked if job_id in discarded),
            before=tuple(i for i in rest if states.get(i) is JobState.FAILED),
            not_failed={i: state for i, state in states.items() if state is not JobState.FAILED},
            missing=tuple(job_id for job_id in rest if job_id not in states),
        )

    return await atomically(connection, discard_all)
