"""Limits: how many jobs of one `concurrency_key` may be queued or running, by permits.

A job holds a permit exactly while it is in `ready` or `held`; `limits.in_use` counts them under
the row's lock, and for a moment those that `returned_permits` says were given back.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from jobs import permits
from jobs.aftermath import Aftermath
from jobs.counts import NO_SLOT
from jobs.model import TenantId
from jobs.permits import Key
from jobs.results import Ready
from jobs.transactions import atomically
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

# Commits whose permits one transaction counts.
RETURNED_MAX = 200


@dataclass(frozen=True, slots=True)
class Limit:
    """A key's limit and how much of it is taken; `waiting` jobs are scheduled for it."""

    key: str
    concurrency: int
    in_use: int
    waiting: int


async def put(
    connection: Connection, tenant_id: TenantId, key: str, concurrency: int
) -> tuple[Limit, Ready]:
    """Set a key's limit. A raise queues waiting jobs (announce them); a cut lets runners end."""

    async def put_all() -> tuple[Limit, Ready]:
        await connection.execute(QUERIES["put_limit"], tenant_id, key, concurrency)
        ready = await _fill(connection, [(tenant_id, key)], None)
        rows = await connection.fetch(QUERIES["list_limits"], tenant_id, key)
        return _limit_from(rows[0]), ready

    return await atomically(connection, put_all)


async def list_limits(connection: Connection, tenant_id: TenantId) -> list[Limit]:
    """Every limit of the tenant, by key."""
    rows = await connection.fetch(QUERIES["list_limits"], tenant_id, None)
    return [_limit_from(row) for row in rows]


async def audit(connection: Connection, limit: int = 100) -> Ready:
    """Correct counters that differ from what is queued and running, and give out free permits."""

    async def audit_all() -> Ready:
        rows = await connection.fetch(QUERIES["limits_to_audit"], limit)
        keys = sorted((TenantId(row["tenant_id"]), row["key"]) for row in rows)
        if not keys:
            return {}
        tenant_ids, names = permits.columns(keys)
        # Locked by a statement of its own, so that the count sees whoever had the lock before.
        await connection.fetch(QUERIES["lock_limits"], tenant_ids, names)
        await connection.execute(QUERIES["correct_limits"], tenant_ids, names)
        return await _fill(connection, keys, None)

    return await atomically(connection, audit_all)


async def count_returned(connection: Connection, rows: int = RETURNED_MAX) -> Ready:
    """Count permits that were given back without a lock, and queue whoever waits for one.

    Any number may do so at once. Whoever recorded ends does it soon, a sweeper what was left.
    """

    async def count_all() -> Ready:
        aftermath = Aftermath(connection, NO_SLOT, None)
        for row in await connection.fetch(QUERIES["take_returned"], rows):
            aftermath.released[TenantId(row["tenant_id"]), row["key"]] += row["permits"]
        await aftermath.apply()
        return aftermath.ready_by_pool()

    return await atomically(connection, count_all)


async def _fill(connection: Connection, keys: Iterable[Key], now: datetime | None) -> Ready:
    aftermath = Aftermath(connection, NO_SLOT, now)
    for tenant_id, key in keys:
        aftermath.wait_for_permit(tenant_id, key)
    await aftermath.apply()
    return aftermath.ready_by_pool()


def _limit_from(row: asyncpg.Record) -> Limit:
    return Limit(row["key"], row["concurrency"], row["in_use"], row["waiting"])
