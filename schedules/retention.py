"""Forgets old fires. Idempotent; any number of tickers may call it at once."""

from datetime import datetime

from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("schedules")


async def prune(connection: Connection, *, before: datetime, limit: int = 10_000) -> int:
    """Forget up to `limit` fires decided before then, none whose job still runs; answers how
    many.
    """
    status = await connection.execute(QUERIES["prune_fires"], before, limit)
    return int(status.rpartition(" ")[2])
