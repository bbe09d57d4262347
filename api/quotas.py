"""What a tenant may have: its quotas, what it uses, and the refusal of more.

Things that are made one by one (schedules, webhooks, open batches) are counted in the transaction
that adds one, behind the tenant's lock: exactly. Jobs and what is stored are counted now and then:
a tenant may exceed these by what several API processes accept within the same seconds. A tenant
without such a quota, which is the default, is not counted at all.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum

import anyio
import asyncpg

from api.errors import Problem, ProblemType
from api.keys import QUERIES
from jobs.kinds import KindRegistry
from jobs.model import TenantId
from runtime.postgres import Connection, Pool

ACQUIRE_TIMEOUT_S = 4.0
# How long a count is taken for true, for what is counted outside of the transaction.
JOBS_S = 1.0
STORED_S = 10.0
_RETRY_AFTER_S = {"live_jobs": 5, "streams": 30}
_FULL_RETRY_AFTER_S = 60
TENANTS_MAX = 10_000
TENANT_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
# Advisory locks of this class: the tenant is the second number.
_LOCK_CLASS = 0x786E_6127


class Counted(StrEnum):
    """What is made one by one, and counted exactly."""

    SCHEDULES = "schedules"
    WEBHOOKS = "webhooks"
    OPEN_BATCHES = "open_batches"


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much a tenant may have at a time; None is as much as there is room for."""

    live_jobs: int | None = None
    documents: int | None = None
    stored_bytes: int | None = None
    schedules: int | None = 10_000
    webhooks: int | None = 1_000
    open_batches: int | None = 10_000
    streams: int | None = 10_000
    requests_per_minute: int | None = None


NAMES = tuple(f.name for f in fields(Quotas))
DEFAULTS = Quotas()


@dataclass(frozen=True, slots=True)
class Granted:
    """A tenant, and those of its quotas that somebody has set."""

    tenant_id: TenantId
    tenant: str
    changed: Mapping[str, int]

    @property
    def quotas(self) -> Quotas:
        """The quotas that hold."""
        return quotas_from(self.changed)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant has now. Streams are those of one API process; stored bytes are as stored,
    compressed.
    """

    live_jobs: int
    documents: int
    stored_bytes: int
    schedules: int
    webhooks: int
    open_batches: int


@dataclass(slots=True)
class _Count:
    value: int = 0
    stale_at: float = 0.0
    lock: anyio.Lock = field(default_factory=anyio.Lock)


class QuotaGuard:
    """Refuses what would exceed a tenant's quotas."""

    def __init__(self, postgres: Pool, kinds: KindRegistry) -> None:
        self._postgres = postgres
        self._crawl_pool = kinds["crawl"].pool
        self._counts: dict[tuple[TenantId, str], _Count] = {}

    async def admit_jobs(
        self, tenant_id: TenantId, quotas: Quotas, per_pool: Mapping[str, int]
    ) -> None:
        """Raise Problem 429 if the tenant may not have as many more jobs; crawls also need room
        for what they find.
        """
        if self._crawl_pool in per_pool:
            await self.admit_stored(tenant_id, quotas)
        if quotas.live_jobs is None:
            return
        jobs = sum(per_pool.values())
        count = await self._counted(tenant_id, "live_jobs", quotas.live_jobs, JOBS_S)
        if count.value + jobs > quotas.live_jobs:
            raise exceeded("live_jobs", quotas.live_jobs)
        count.value += jobs

    async def admit_stored(self, tenant_id: TenantId, quotas: Quotas) -> None:
        """Raise Problem 429 if the tenant has stored what it may."""
        for name, limit in (
            ("documents", quotas.documents),
            ("stored_bytes", quotas.stored_bytes),
        ):
            if limit is not None:
                count = await self._counted(tenant_id, name, limit, STORED_S)
                if count.value >= limit:
                    raise exceeded(name, limit)

    async def _counted(self, tenant_id: TenantId, name: str, limit: int, holds_s: float) -> _Count:
        count = self._counts.setdefault((tenant_id, name), _Count())
        if len(self._counts) > TENANTS_MAX:
            self._counts.pop(next(iter(self._counts)))
        async with count.lock:
            if time.monotonic() >= count.stale_at:
                async with self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                    count.value = await _count(connection, tenant_id, name, limit)
                count.stale_at = time.monotonic() + holds_s
        return count


async def admit_one(
    connection: Connection, tenant_id: TenantId, quotas: Quotas, what: Counted
) -> None:
    """Raise Problem 429 if the tenant has all of these that it may. Within the transaction that
    adds one, before it does.
    """
    limit: int | None = getattr(quotas, what)
    if limit is None:
        return
    await connection.execute(QUERIES["lock_quota"], _LOCK_CLASS, tenant_id)
    if await _count(connection, tenant_id, what, limit) >= limit:
        raise exceeded(what, limit)


def exceeded(name: str, limit: int) -> Problem:
    """The 429 that names the quota."""
    retry_after_s = _RETRY_AFTER_S.get(name, _FULL_RETRY_AFTER_S)
    return Problem(
        ProblemType.QUOTA_EXCEEDED,
        f"the tenant's quota of {name} is {limit}: GET /v1/quotas shows what it uses; an admin of "
        "the installation may grant more",
        headers={"Retry-After": str(retry_after_s)},
    )


def quotas_from(changed: Mapping[str, int | None]) -> Quotas:
    """The defaults, with what was set for a tenant in their place."""
    return replace(DEFAULTS, **{k: v for k, v in changed.items() if v is not None})


async def usage(connection: Connection, tenant_id: TenantId) -> Usage:
    """What the tenant has now, counted."""
    row = await connection.fetchrow(QUERIES["usage"], tenant_id)
    return Usage(**dict(row)) if row is not None else Usage(0, 0, 0, 0, 0, 0)


async def find(connection: Connection, tenant: str) -> Granted | None:
    """A tenant by its name."""
    row = await connection.fetchrow(QUERIES["quotas_of_tenant"], tenant)
    return None if row is None else _granted(row)


async def list_tenants(connection: Connection, after: str | None, limit: int) -> list[Granted]:
    """Tenants by name, after a cursor."""
    rows = await connection.fetch(QUERIES["list_tenants"], after, limit)
    return [_granted(row) for row in rows]


async def put(connection: Connection, tenant_id: TenantId, changed: Mapping[str, int]) -> None:
    """Set what a tenant is granted; whatever is left out has its default again."""
    values = [changed.get(name) for name in NAMES]
    await connection.execute(QUERIES["put_quotas"], tenant_id, *values)


def as_dict(quotas: Quotas) -> dict[str, int | None]:
    """The quotas by name."""
    return asdict(quotas)


def _granted(row: asyncpg.Record) -> Granted:
    changed = {name: row[name] for name in NAMES if row[name] is not None}
    return Granted(TenantId(row["tenant_id"]), row["tenant"], changed)


async def _count(connection: Connection, tenant_id: TenantId, name: str, limit: int) -> int:
    """How many there are; counting ends at the limit, but for bytes, which must be summed."""
    if name == "stored_bytes":
        stored: int = await connection.fetchval(QUERIES["count_stored_bytes"], tenant_id)
        return stored
    found: int = await connection.fetchval(_COUNTS[name], tenant_id, limit)
    return found


_COUNTS = {
    "live_jobs": QUERIES["count_live_jobs"],
    "documents": QUERIES["count_documents"],
    Counted.SCHEDULES: QUERIES["count_schedules"],
    Counted.WEBHOOKS: QUERIES["count_webhooks"],
    Counted.OPEN_BATCHES: QUERIES["count_open_batches"],
}
