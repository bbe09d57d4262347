"""Slots: who may hold jobs, whether they live, and what becomes of the jobs of a dead one."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from jobs.model import SlotId
from jobs.rescue import rescue
from runtime.postgres import Connection
from runtime.sql import load_queries

__all__ = [
    "Slot",
    "beat",
    "beats",
    "end",
    "ended_holding",
    "live",
    "register",
    "requested_cancels",
    "rescue",
]

QUERIES = load_queries("jobs")


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
    slot_id: int = await connection.fetchval(
        QUERIES["register_slot"],
        supervisor_id,
        pool,
        number,
        host,
        pid,
        list(cores),
        list(kinds),
        version,
    )
    return SlotId(slot_id)


async def beat(connection: Connection, slot_ids: Sequence[SlotId]) -> frozenset[SlotId]:
    """Bump the counters of a supervisor's slots; answers those still live (stop the others)."""
    rows = await connection.fetch(QUERIES["beat"], sorted(slot_ids))
    return frozenset(SlotId(row["id"]) for row in rows)


async def beats(connection: Connection) -> dict[SlotId, int]:
    """The counter of every live slot: what a sweeper compares over time."""
    return {SlotId(row["id"]): row["beat"] for row in await connection.fetch(QUERIES["beats"])}


async def live(connection: Connection) -> list[Slot]:
    """Every live slot."""
    return [
        Slot(
            id=SlotId(row["id"]),
            supervisor_id=row["supervisor_id"],
            pool=row["pool"],
            number=row["number"],
            host=row["host"],
            pid=row["pid"],
            cores=tuple(row["cores"]),
            kinds=tuple(row["kinds"]),
            version=row["version"],
            started_at=row["started_at"],
            beat=row["beat"],
            beat_at=row["beat_at"],
            running=row["running"],
        )
        for row in await connection.fetch(QUERIES["live_slots"])
    ]


async def end(connection: Connection, slot_id: SlotId, reason: str) -> bool:
    """Declare a slot dead, for ever; False when it was. Its jobs stay held until `rescue`."""
    return await connection.fetchval(QUERIES["end_slot"], slot_id, reason) is not None


async def ended_holding(connection: Connection) -> list[SlotId]:
    """Dead slots that still hold jobs: what a sweeper rescues."""
    return [SlotId(row["id"]) for row in await connection.fetch(QUERIES["ended_holding"])]


async def requested_cancels(
    connection: Connection, slot_ids: Sequence[SlotId]
) -> dict[SlotId, tuple[UUID, ...]]:
    """The held jobs of these slots that somebody asked to cancel."""
    by_slot: defaultdict[SlotId, tuple[UUID, ...]] = defaultdict(tuple)
    for row in await connection.fetch(QUERIES["requested_cancels"], list(slot_ids)):
        by_slot[SlotId(row["slot_id"])] += (row["job_id"],)
    return dict(by_slot)
