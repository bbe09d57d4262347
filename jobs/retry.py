"""Brings terminal jobs back to life with a new budget, their history kept."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from jobs import families
from jobs.aftermath import Aftermath
from jobs.counts import NO_SLOT
from jobs.enqueue import DEFAULT_AGEING_S
from jobs.model import TenantId
from jobs.results import RetryResult
from jobs.states import JobState
from jobs.transactions import atomically
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")


async def retry(
    connection: Connection,
    tenant_id: TenantId,
    ids: Sequence[UUID],
    *,
    now: datetime | None = None,
    ageing_s: float = DEFAULT_AGEING_S,
) -> RetryResult:
    """Queue terminal jobs again; live ones are left as they are, so that repeating it changes
    nothing.

    Parents that live still are waited for again. Attempt numbers keep growing, `expires_at` is
    dropped. A finished batch runs again with `run` + 1.
    """
    asked = list(dict.fromkeys(ids))

    async def retry_all() -> RetryResult:
        known = {
            row["id"] for row in await connection.fetch(QUERIES["known_jobs"], tenant_id, asked)
        }
        locked = await connection.fetch(QUERIES["lock_for_retry"], tenant_id, asked)
        await connection.fetch(QUERIES["lock_live_parents"], [row["id"] for row in locked])
        refused = await _take_keys(connection, tenant_id, locked, now)
        back = [row["id"] for row in locked if row["id"] not in refused]
        aftermath = Aftermath(connection, NO_SLOT, now)
        if back:
            rows = await connection.fetch(QUERIES["revive"], now, tenant_id, back, ageing_s)
            await _reopen(connection, rows, aftermath)
        terminal = {row["id"] for row in locked}
        return RetryResult(
            retried=tuple(back),
            live=tuple(job_id for job_id in asked if job_id in known - terminal),
            key_taken=tuple(sorted(refused)),
            missing=tuple(job_id for job_id in asked if job_id not in known),
            ready=aftermath.ready_by_pool(),
            batches=aftermath.deltas.batches,
        )

    return await atomically(connection, retry_all)


async def _take_keys(
    connection: Connection,
    tenant_id: TenantId,
    locked: Sequence[asyncpg.Record],
    now: datetime | None,
) -> set[UUID]:
    """Hold the unique keys again; answers the jobs whose key another job has.

    A key held for a time is not asked for: its time began when the job was submitted.
    """
    keyed = [row for row in locked if row["unique_until"] in {"started", "finished"}]
    last = {row["unique_key"]: row for row in keyed}
    wanted = {key: row["id"] for key, row in last.items()}
    others = {row["id"] for row in keyed if wanted[row["unique_key"]] != row["id"]}
    if not wanted:
        return set()
    rows = await connection.fetch(
        QUERIES["take_unique_keys"],
        tenant_id,
        list(wanted),
        list(wanted.values()),
        [row["unique_until"] for row in last.values()],
        [None] * len(wanted),
        now,
    )
    taken = {row["key"] for row in rows}
    return others | {job_id for key, job_id in wanted.items() if key not in taken}


async def _reopen(
    connection: Connection, rows: Sequence[asyncpg.Record], aftermath: Aftermath
) -> None:
    """Undo what the end of these jobs had entailed for families, batches and limits."""
    changes = families.Changes()
    for row in rows:
        state, follow_up = JobState(row["state"]), row["follow_up"]
        aftermath.deltas.add(row["batch_id"], state, -1, follow_up=follow_up)
        for ancestor in row["lineage"]:
            changes.descendant_revived(ancestor, state)
        if row["has_family"]:
            changes.reopened(row["id"])
        key, live_parents = row["concurrency_key"], row["live_parents"]
        if key is None and not live_parents:
            aftermath.ready[row["pool"]].append(row["id"])
        else:
            aftermath.deltas.add(row["batch_id"], "scheduled", follow_up=follow_up)
        if key is not None and not live_parents:
            aftermath.wait_for_permit(TenantId(row["tenant_id"]), key)
    await changes.write(connection, None)
    await aftermath.fill_permits()
    batches = aftermath.deltas.batches
    if batches:
        await connection.execute(QUERIES["reopen_batches"], batches)
    await aftermath.deltas.write(connection, NO_SLOT)
