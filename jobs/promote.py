"""Moves scheduled jobs on when their time comes. Any number of sweepers may call it at once."""

from datetime import datetime

from jobs.results import Expired, Ready
from runtime.postgres import Connection


async def promote_due(connection: Connection, limit: int, *, now: datetime | None = None) -> Ready:
    """Queue up to `limit` delayed and backed-off jobs that are due, by pool."""
    raise NotImplementedError


async def expire(connection: Connection, limit: int, *, now: datetime | None = None) -> Expired:
    """Fail up to `limit` waiting jobs whose `expires_at` has passed."""
    raise NotImplementedError
