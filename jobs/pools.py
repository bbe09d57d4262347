"""Pools as operators see them: paused or not, how deep, how old, how fast."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from jobs.kinds import KindRegistry
from jobs.results import Ready
from runtime.postgres import Connection


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool's queue. `oldest_s` is the age of the first queued job, `drained_per_s` was measured lately."""

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
    raise NotImplementedError


async def resume(connection: Connection, pool: str) -> None:
    """Let slots claim again; announce the pool after the commit. Idempotent."""
    raise NotImplementedError


async def list_pools(
    connection: Connection, names: Sequence[str], *, kinds: KindRegistry
) -> list[Pool]:
    """These pools, and every other that was paused or holds jobs."""
    raise NotImplementedError


async def unannounced(
    connection: Connection, *, older_than_s: float, limit: int = 64, now: datetime | None = None
) -> Ready:
    """The first queued jobs of each pool whose head has waited that long: announce them (again)."""
    raise NotImplementedError


def retry_after_s(pool: Pool, excess: int) -> int:
    """Whole seconds until `excess` jobs will have drained, by the measured rate (1 to 300)."""
    raise NotImplementedError
