"""Forgets what is old, in small steps. Idempotent; any number of tickers may call it at once."""

from dataclasses import dataclass
from datetime import datetime

from runtime.postgres import Connection


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one step removed. `more` says that another step would find something."""

    partitions: tuple[str, ...] = ()
    rows: int = 0
    more: bool = False


async def make_partitions(
    connection: Connection, *, days_ahead: int = 8, now: datetime | None = None
) -> int:
    """Make sure that the days to come have their partitions; answers how many were made."""
    raise NotImplementedError


async def prune(
    connection: Connection, *, days: int, limit: int = 10_000, now: datetime | None = None
) -> Pruned:
    """Drop partitions whose last row is older than `days`, and up to `limit` rows of what hangs on them.

    Call it outside of a transaction: each partition and each step commits by itself.
    """
    raise NotImplementedError
