"""Forgets what is old, in small steps. Idempotent; any number of tickers may call it at once."""

from dataclasses import dataclass
from datetime import datetime

from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

_PARTITIONED = ("history", "attempts", "events")
# Rows older than the given days; the others have their own measure of age.
_AGED = (
    "prune_history_default",
    "prune_attempts_default",
    "prune_events_default",
    "prune_idempotency_keys",
    "prune_families",
    "prune_batches",
)
_OPERATIONS = load_queries("jobs", "operations")
_BATCHES = load_queries("jobs", "batches")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one step removed. `more` says that another step would find something."""

    partitions: tuple[str, ...] = ()
    rows: int = 0
    more: bool = False


async def make_partitions(
    connection: Connection, *, days_ahead: int = 8, now: datetime | None = None
) -> int:
    """Make the partitions of today and the days to come; answers how many were missing."""
    made: int = await connection.fetchval(QUERIES["make_partitions"], days_ahead, now)
    return made


async def prune(
    connection: Connection, *, days: int, limit: int = 10_000, now: datetime | None = None
) -> Pruned:
    """Drop partitions whose last row is older than `days`, and up to `limit` rows of what hangs on
    them; seal open batches that nobody has added to for so long.

    Call it outside of a transaction: each partition and each step commits by itself.
    """
    partitions: list[str] = []
    for parent in _PARTITIONED:
        partitions += await connection.fetchval(QUERIES["drop_partitions"], parent, days, now)
    counts = [_count(await connection.execute(QUERIES[query], days, limit, now)) for query in _AGED]
    counts.append(_count(await connection.execute(QUERIES["prune_unique_keys"], limit, now)))
    counts.append(_count(await connection.execute(QUERIES["prune_limits"], limit)))
    counts += [
        _count(await connection.execute(step, days, limit, now))
        for step in (_OPERATIONS["prune_operations"], _BATCHES["seal_forgotten"])
    ]
    return Pruned(tuple(partitions), sum(counts), any(count >= limit for count in counts))


def _count(status: str) -> int:
    """The number of rows in a command's status, `DELETE 3`."""
    return int(status.rsplit(" ", 1)[1])
