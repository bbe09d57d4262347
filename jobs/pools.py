"""Pools as operators see them: paused or not, how deep, how old, how fast."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from jobs.kinds import KindRegistry
from jobs.model import TenantId
from jobs.results import Ready
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")
_OPERATIONS = load_queries("jobs", "operations")

# The drain rate is that of the last so many jobs, or of the last minute when there were fewer.
_RATE_JOBS = 1000
_RATE_WINDOW_S = 60.0
_RETRY_AFTER_S_MAX = 300
# Beyond so many the number changes nothing that anybody would do.
DEAD_LETTERS_MAX = 10_000
TENANTS_JOBS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool's queue. `oldest_s`: how long the first in line has been able to run."""

    name: str
    paused_at: datetime | None
    paused_by: str | None
    paused_reason: str | None
    queued: int
    running: int
    slots: int
    oldest_s: float | None
    drained_per_s: float


async def pause(connection: Connection, pool: str, *, by: str, reason: str | None = None) -> None:
    """Let no slot claim from the pool; what runs goes on. Idempotent: the first pause is kept."""
    await connection.execute(QUERIES["pause_pool"], pool, by, reason)


async def resume(connection: Connection, pool: str) -> None:
    """Let slots claim again; announce the pool after the commit. Idempotent."""
    await connection.execute(QUERIES["resume_pool"], pool)


async def list_pools(
    connection: Connection, names: Sequence[str], *, kinds: KindRegistry
) -> list[Pool]:
    """These pools, and every other that was paused, has slots or holds jobs."""
    rates = await _drained(connection, kinds)
    return [
        Pool(
            name=row["name"],
            paused_at=row["paused_at"],
            paused_by=row["paused_by"],
            paused_reason=row["paused_reason"],
            queued=row["queued"],
            running=row["running"],
            slots=row["slots"],
            oldest_s=None if row["oldest_s"] is None else max(0.0, row["oldest_s"]),
            drained_per_s=rates[row["name"]],
        )
        for row in await connection.fetch(QUERIES["list_pools"], list(names))
    ]


async def list_tenants_pools(
    connection: Connection, tenant_id: TenantId, names: Sequence[str]
) -> list[Pool]:
    """These pools as a tenant may see them: which are paused and why, and its own jobs, counted
    among the oldest TENANTS_JOBS_MAX. Slots and rates are everybody's: none are told.
    """
    found = await connection.fetch(
        QUERIES["list_tenants_pools"], tenant_id, list(names), TENANTS_JOBS_MAX
    )
    return [
        Pool(
            name=row["name"],
            paused_at=row["paused_at"],
            paused_by=None,
            paused_reason=row["paused_reason"],
            queued=row["queued"],
            running=row["running"],
            slots=0,
            oldest_s=None if row["oldest_s"] is None else max(0.0, row["oldest_s"]),
            drained_per_s=0.0,
        )
        for row in found
    ]


async def dead_letters(connection: Connection) -> int:
    """Failed jobs that nobody has retried or discarded, counted up to DEAD_LETTERS_MAX."""
    count: int = await connection.fetchval(_OPERATIONS["count_dead_letters"], DEAD_LETTERS_MAX)
    return count


async def _drained(connection: Connection, kinds: KindRegistry) -> defaultdict[str, float]:
    """Jobs a second that ended lately, by pool; kinds unknown here have no pool."""
    rows = await connection.fetch(QUERIES["drained"], _RATE_JOBS)
    is_full = sum(row["jobs"] for row in rows) >= _RATE_JOBS
    rates: defaultdict[str, float] = defaultdict(float)
    pools = {kind.name: kind.pool for kind in kinds}
    for row in rows:
        within_s = max(row["within_s"], 0.001) if is_full else _RATE_WINDOW_S
        rates[pools.get(row["kind"], "")] += row["jobs"] / within_s
    return rates


async def unannounced(
    connection: Connection, *, older_than_s: float, limit: int = 64, now: datetime | None = None
) -> Ready:
    """Each pool's first jobs that could have run that long ago: announce them again."""
    found: defaultdict[str, tuple[UUID, ...]] = defaultdict(tuple)
    for row in await connection.fetch(QUERIES["unannounced"], older_than_s, limit, now):
        found[row["pool"]] += (row["job_id"],)
    return dict(found)


def retry_after_s(pool: Pool, excess: int) -> int:
    """Whole seconds until `excess` jobs will have drained, by the measured rate (1 to 300)."""
    if pool.drained_per_s <= 0:
        return _RETRY_AFTER_S_MAX
    return max(1, min(_RETRY_AFTER_S_MAX, math.ceil(excess / pool.drained_per_s)))
