"""How often a tenant may ask: requests a minute, counted in the ledger for all API processes
together.

A process takes requests of the tenant's minute in hand some at a time, so that most requests ask
nobody. Redis is not asked: it may be lost at any time. Without Postgres nobody is refused by this:
what needs Postgres is refused anyhow. Fields as in draft-ietf-httpapi-ratelimit-headers-09.
"""

import math
import time
from dataclasses import dataclass, field

import anyio

from api.errors import Problem, ProblemType
from api.keys import QUERIES
from api.translations import POSTGRES_AWAY
from jobs.model import TenantId
from runtime.postgres import Pool

WINDOW_S = 60
ACQUIRE_TIMEOUT_S = 1.0
TENANTS_MAX = 10_000
# A twentieth of the quota at a time: few writes, and little is lost in a process that idles.
_SHARE = 20
_NAME = '"requests"'

type Fields = list[tuple[bytes, bytes]]  # as ASGI has headers


@dataclass(slots=True)
class _Window:
    """What this process has in hand of a tenant's minute, and what the ledger had left then."""

    left: int = 0
    remaining: int = 0
    ends_at: float = 0.0
    lock: anyio.Lock = field(default_factory=anyio.Lock)


class Rates:
    """The minutes of the tenants that have a quota of requests."""

    def __init__(self, postgres: Pool) -> None:
        self._postgres = postgres
        self._windows: dict[TenantId, _Window] = {}

    async def take(self, tenant_id: TenantId, limit: int) -> Fields:
        """Count a request; the fields that say what is left. Raises Problem 429 when nothing is."""
        window = self._windows.setdefault(tenant_id, _Window())
        if len(self._windows) > TENANTS_MAX:
            self._windows.pop(next(iter(self._windows)))
        if window.left <= 0 or time.monotonic() >= window.ends_at:
            async with window.lock:
                await self._refill(window, tenant_id, limit)
        reset_s = max(1, math.ceil(window.ends_at - time.monotonic()))
        if window.left <= 0:
            raise _limited(limit, reset_s)
        window.left -= 1
        return _fields(limit, window.left + window.remaining, reset_s)

    async def _refill(self, window: _Window, tenant_id: TenantId, limit: int) -> None:
        """Take some more in hand, unless somebody has meanwhile, or the minute is used up."""
        is_over = time.monotonic() >= window.ends_at
        if not is_over and (window.left > 0 or window.remaining <= 0):
            return
        share = max(1, limit // _SHARE)
        try:
            async with self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                row = await connection.fetchrow(QUERIES["lease_requests"], tenant_id, limit, share)
        except POSTGRES_AWAY:
            row = None
        if row is None:
            window.left, window.remaining = share, 0
            window.ends_at = time.monotonic() + 1.0
            return
        window.left, window.remaining = row["granted"], row["remaining"] if row["granted"] else 0
        window.ends_at = time.monotonic() + max(0.0, row["ends_in_s"])


def _fields(limit: int, remaining: int, reset_s: int) -> Fields:
    return [
        (b"ratelimit-policy", f"{_NAME};q={limit};w={WINDOW_S}".encode()),
        (b"ratelimit", f"{_NAME};r={remaining};t={reset_s}".encode()),
    ]


def _limited(limit: int, reset_s: int) -> Problem:
    fields = {name.decode(): value.decode() for name, value in _fields(limit, 0, reset_s)}
    return Problem(
        ProblemType.RATE_LIMITED,
        f"the tenant may ask {limit} times a minute; the next minute begins in {reset_s} s",
        headers={"Retry-After": str(reset_s), **fields},
    )
