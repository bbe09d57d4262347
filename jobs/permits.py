"""Gives out the permits of `concurrency_key`s under the lock of the key's row.

A job holds a permit exactly while it is in `ready` or `held`. It always waits in `parked` first
(`limit`), so that this is the one place where a permit is taken.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from jobs.model import TenantId
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

# A row may be pruned between making and locking it, but hardly twice.
_TRIES = 4

type Key = tuple[TenantId, str]


@dataclass(frozen=True, slots=True)
class Promoted:
    """A job that went from `parked` to `ready`."""

    job_id: UUID
    pool: str
    batch_id: UUID | None
    follow_up: bool


async def fill(connection: Connection, released: Mapping[Key, int]) -> list[Promoted]:
    """Take `released` permits of each key back and queue as many waiting jobs as are now permitted.

    Locks the keys until the caller's transaction ends; keys come after jobs and before batches.
    """
    if not released:
        return []
    if all(released.values()):
        free = await _release(connection, released)
    else:
        in_reach = await _lock(connection, released)
        given_back = {key: n for key, n in released.items() if n}
        free = in_reach | await _release(connection, given_back)
    promoted, taken = await _promote(connection, {key: n for key, n in free.items() if n > 0})
    if taken:
        await connection.execute(QUERIES["add_permits"], *columns(taken), list(taken.values()))
    return promoted


async def _release(connection: Connection, released: Mapping[Key, int]) -> dict[Key, int]:
    """Take permits back, which locks the keys' rows; answers what is left of those in demand."""
    if not released:
        return {}
    keys = columns(released)
    await connection.execute(QUERIES["release_permits"], *keys, list(released.values()))
    rows = await connection.fetch(QUERIES["waited_for_limits"], *keys)
    return {(TenantId(row["tenant_id"]), row["key"]): row["permits"] for row in rows}


async def _lock(connection: Connection, keys: Iterable[Key]) -> dict[Key, int]:
    """Lock the keys' rows, making missing ones; answers the permits that each has left."""
    wanted = sorted(keys)
    rows: list[asyncpg.Record] = []
    for _ in range(_TRIES):
        rows = await connection.fetch(QUERIES["lock_limits"], *columns(wanted))
        if len(rows) == len(wanted):
            break
        # Used for the first time, or pruned while it was idle.
        await connection.execute(QUERIES["make_limits"], *columns(wanted))
    return {
        (TenantId(row["tenant_id"]), row["key"]): row["concurrency"] - row["in_use"] for row in rows
    }


async def _promote(
    connection: Connection, free: Mapping[Key, int]
) -> tuple[list[Promoted], dict[Key, int]]:
    if not free:
        return [], {}
    rows = await connection.fetch(QUERIES["promote_permitted"], *columns(free), list(free.values()))
    taken: dict[Key, int] = {}
    for row in rows:
        key = (TenantId(row["tenant_id"]), row["key"])
        taken[key] = taken.get(key, 0) + 1
    promoted = [
        Promoted(row["job_id"], row["pool"], row["batch_id"], row["follow_up"]) for row in rows
    ]
    return promoted, taken


def columns(keys: Iterable[Key]) -> tuple[list[int], list[str]]:
    """The keys as the two arrays that the queries take."""
    pairs = list(keys)
    return [tenant_id for tenant_id, _ in pairs], [name for _, name in pairs]
