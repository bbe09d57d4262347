"""Limits: how many jobs of one `concurrency_key` may be queued or running, by permits.

A job holds a permit exactly while it is in `ready` or `held`; `limits.in_use` counts them under the row's lock.
"""

from dataclasses import dataclass

from jobs.model import TenantId
from jobs.results import Ready
from runtime.postgres import Connection


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
    """Set a key's limit. A raise queues waiting jobs (announce them); a cut lets running ones end."""
    raise NotImplementedError


async def list_limits(connection: Connection, tenant_id: TenantId) -> list[Limit]:
    """Every limit of the tenant, by key."""
    raise NotImplementedError


async def audit(connection: Connection, limit: int = 100) -> Ready:
    """Correct counters that differ from what is queued and running, and give out free permits."""
    raise NotImplementedError
