"""Says no to submissions while a pool's queue is full, with the time until there will be room.

Depths are read at most once a second and beside the requests, so that a deep queue slows no
submission down.
"""

import math
import time
from collections.abc import Mapping

import anyio
from anyio.abc import TaskGroup

from api.errors import Problem, ProblemType
from api.translations import POSTGRES_AWAY
from jobs import pools
from jobs.kinds import KindRegistry
from runtime import metrics
from runtime.postgres import Pool

REFRESH_S = 1.0
# Reading depths may take this share of the time at most, however deep the queues are.
_SHARE = 0.05


class BacklogGuard:
    """The last known depth of each pool."""

    def __init__(self, postgres: Pool, kinds: KindRegistry, *, backlog_max: int) -> None:
        self._postgres = postgres
        self._kinds = kinds
        self._backlog_max = backlog_max
        self._pools: dict[str, pools.Pool] = {}
        self._stale_at = 0.0
        self._lock = anyio.Lock()

    def check(self, pool_name: str, jobs: int, owner: TaskGroup) -> None:
        """Raise Problem 429 if `jobs` more would overfill the pool; refreshes stale knowledge in
        `owner`.
        """
        if self._is_stale() and not self._lock.locked():
            owner.start_soon(self.refresh)
        pool = self._pools.get(pool_name)
        if pool is None or pool.queued + jobs <= self._backlog_max or pool.queued == 0:
            return
        wait_s = pools.retry_after_s(pool, pool.queued + jobs - self._backlog_max)
        raise Problem(
            ProblemType.QUEUE_FULL,
            # Not how many there are: they are all tenants' jobs.
            f"pool {pool_name!r} is full: at most {self._backlog_max} queued jobs are taken "
            f"(XNAI_BACKLOG_MAX); at the measured rate there is room in {wait_s} s",
            headers={"Retry-After": str(math.ceil(wait_s))},
        )

    def check_all(self, per_pool: Mapping[str, int], owner: TaskGroup) -> None:
        """Check as many jobs of each pool."""
        for pool_name, jobs in per_pool.items():
            self.check(pool_name, jobs, owner)

    async def refresh_if_stale(self) -> None:
        """Read the depths unless that was done just now, as for the metrics."""
        if self._is_stale():
            await self.refresh()

    async def refresh(self) -> None:
        """Read the depths; without Postgres the last known ones stay."""
        async with self._lock:
            began = time.monotonic()
            try:
                async with self._postgres.acquire(timeout=REFRESH_S) as connection:
                    found = await pools.list_pools(connection, self._kinds.pools, kinds=self._kinds)
                    metrics.DEAD_LETTERS.set(await pools.dead_letters(connection))
            except POSTGRES_AWAY:
                found = list(self._pools.values())
            took_s = time.monotonic() - began
            self._pools = {pool.name: pool for pool in found}
            _show(found)
            self._stale_at = time.monotonic() + max(REFRESH_S, took_s / _SHARE)

    def _is_stale(self) -> bool:
        return time.monotonic() >= self._stale_at


def _show(found: list[pools.Pool]) -> None:
    for pool in found:
        metrics.QUEUE_DEPTH.labels(pool=pool.name, state="queued").set(pool.queued)
        metrics.QUEUE_DEPTH.labels(pool=pool.name, state="running").set(pool.running)
        metrics.QUEUE_OLDEST_AGE.labels(pool=pool.name).set(pool.oldest_s or 0.0)
        metrics.POOL_PAUSED.labels(pool=pool.name).set(pool.paused_at is not None)
