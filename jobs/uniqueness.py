"""`unique`: at most one job a key, until it is started, finished, or a time has passed."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from jobs.intake import Entry
from jobs.model import Accepted, TenantId
from jobs.states import JobState
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")


async def take(
    connection: Connection, tenant_id: TenantId, entries: Sequence[Entry], now: datetime | None
) -> list[Entry]:
    """Take the keys; answers the entries to be written and marks the others as duplicates."""
    first: dict[str, Entry] = {}
    for entry in entries:
        if entry.job.unique is not None:
            holder = first.setdefault(entry.job.unique.key, entry)
            if holder is not entry:
                entry.duplicate_of = holder.id
    if first:
        await _take(connection, tenant_id, first, now)
        for entry in entries:
            # A duplicate of a duplicate answers with the holder of the key.
            if entry.job.unique is not None and entry.duplicate_of is not None:
                entry.duplicate_of = first[entry.job.unique.key].final_id
    return [entry for entry in entries if entry.duplicate_of is None]


async def _take(
    connection: Connection, tenant_id: TenantId, first: dict[str, Entry], now: datetime | None
) -> None:
    uniques = [entry.job.unique for entry in first.values() if entry.job.unique is not None]
    rows = await connection.fetch(
        QUERIES["take_unique_keys"],
        tenant_id,
        list(first),
        [entry.id for entry in first.values()],
        [unique.until for unique in uniques],
        [unique.for_s for unique in uniques],
        now,
    )
    taken = {row["key"] for row in rows}
    conflicts = [key for key in first if key not in taken]
    if conflicts:
        for row in await connection.fetch(QUERIES["unique_holders"], tenant_id, conflicts):
            first[row["key"]].duplicate_of = row["job_id"]


async def holders(
    connection: Connection, tenant_id: TenantId, entries: Sequence[Entry]
) -> dict[UUID, Accepted]:
    """What to answer for duplicates: the jobs that hold their keys."""
    ids = list({entry.duplicate_of for entry in entries if entry.duplicate_of is not None})
    if not ids:
        return {}
    rows = await connection.fetch(QUERIES["job_states"], tenant_id, ids)
    return {
        row["id"]: Accepted(
            row["id"], row["kind"], row["pool"], JobState(row["state"]), deduplicated=True
        )
        for row in rows
    }
