"""Slots: who may hold jobs, whether they live, and what becomes of the jobs of a dead one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from jobs.kinds import KindRegistry
from jobs.model import SlotId, Token
from jobs.outcomes import Ending
from jobs.results import Rescued
from runtime.postgres import Connection, Pool


@dataclass(frozen=True, slots=True)
class Slot:
    """A live slot and how many jobs it holds."""

    id: SlotId
    supervisor_id: UUID
    pool: str
    number: int
    host: str
    pid: int
    cores: tuple[int, ...]
    kinds: tuple[str, ...]
    version: str
    started_at: datetime
    beat: int
    beat_at: datetime
    running: int


async def register(
    connection: Connection,
    *,
    supervisor_id: UUID,
    pool: str,
    number: int,
    host: str,
    pid: int,
    cores: Sequence[int],
    kinds: Sequence[str],
    version: str = "",
) -> SlotId:
    """Make a slot known; its id is never used again."""
    raise NotImplementedError


async def beat(connection: Connection, slot_ids: Sequence[SlotId]) -> frozenset[SlotId]:
    """Bump the counters of a supervisor's slots; answers those still live (stop the others)."""
    raise NotImplementedError


async def beats(connection: Connection) -> dict[SlotId, int]:
    """The counter of every live slot: what a sweeper compares over time."""
    raise NotImplementedError


async def live(connection: Connection) -> list[Slot]:
    """Every live slot."""
    raise NotImplementedError


async def end(connection: Connection, slot_id: SlotId, reason: str) -> bool:
    """Declare a slot dead, for ever; False when it was. Its jobs stay held until `rescue`."""
    raise NotImplementedError


async def ended_holding(connection: Connection) -> list[SlotId]:
    """Dead slots that still hold jobs: what a sweeper rescues."""
    raise NotImplementedError


async def rescue(
    postgres: Pool,
    slot_id: SlotId,
    *,
    started: Collection[UUID] | None,
    kinds: KindRegistry,
    endings: Mapping[UUID, tuple[Token, Ending]] | None = None,
    now: datetime | None = None,
) -> Rescued:
    """Take the jobs of a dead slot back, each in a transaction of its own, so that none can wedge it.

    Only `started` jobs (None: all) are suspects: each loses one life. The second loss lets a job
    run only alone, the third fails it as `worker_lost`. `endings` are what killing the slot decided
    for single attempts. Idempotent. Raises StateConflict while the slot lives.
    """
    raise NotImplementedError


async def requested_cancels(
    connection: Connection, slot_ids: Sequence[SlotId]
) -> dict[SlotId, tuple[UUID, ...]]:
    """The held jobs of these slots that somebody asked to cancel."""
    raise NotImplementedError
