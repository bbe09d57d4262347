"""Slots: who may hold jobs, whether they live, and what becomes of the jobs of a dead one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import asyncpg

from jobs.model import SlotId
from jobs.rescue import holds, rescue
from runtime.postgres import Connection
from runtime.processes import Identity
from runtime.sql import load_queries

__all__ = [
    "Beat",
    "Slot",
    "SlotState",
    "ToSweep",
    "beat",
    "beats",
    "close_connections",
    "connection_role",
    "end",
    "ended_holding",
    "holds",
    "live",
    "register",
    "rescue",
    "to_sweep",
]

QUERIES = load_queries("jobs", "slots")
UNKNOWN = Identity("", 0, 0)


class SlotState(StrEnum):
    """What a slot that is not dead is doing, as its supervisor sees it."""

    STARTING = "starting"
    LIVE = "live"
    DRAINING = "draining"
    STOPPED = "stopped"


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
    state: SlotState
    started_at: datetime
    beat: int
    beat_at: datetime
    running: int


@dataclass(frozen=True, slots=True)
class Beat:
    """How often a slot's supervisor has beaten for it, and which process that is."""

    count: int
    supervisor: Identity


@dataclass(frozen=True, slots=True)
class ToSweep:
    """What there is to do for a sweeper."""

    expired: bool
    due: bool
    batches: bool
    limits: bool
    ready: bool


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
    supervisor: Identity = UNKNOWN,
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
        supervisor.machine,
        supervisor.started_ticks,
    )
    return SlotId(slot_id)


async def beat(
    connection: Connection, states: Mapping[SlotId, SlotState]
) -> dict[SlotId, tuple[UUID, ...]]:
    """Bump the counters of a supervisor's slots and say how they are.

    Answers those still live (stop the others), each with its jobs that are to be cancelled.
    """
    slot_ids = sorted(states)
    rows = await connection.fetch(QUERIES["beat"], slot_ids, [states[one] for one in slot_ids])
    return {SlotId(row["id"]): tuple(row["cancels"]) for row in rows}


async def beats(connection: Connection) -> dict[SlotId, Beat]:
    """The counter of every live slot: what a sweeper compares over time."""
    return {
        SlotId(row["id"]): Beat(
            row["beat"], Identity(row["machine"], row["pid"], row["pid_started"])
        )
        for row in await connection.fetch(QUERIES["beats"])
    }


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
            state=SlotState(row["state"]),
            started_at=row["started_at"],
            beat=row["beat"],
            beat_at=row["beat_at"],
            running=row["running"],
        )
        for row in await connection.fetch(QUERIES["live_slots"])
    ]


def connection_role(slot_id: SlotId) -> str:
    """The role under which a slot opens its connections: the start of their names."""
    return f"slot {slot_id} "


async def end(connection: Connection, slot_id: SlotId, reason: str) -> bool:
    """Declare a slot dead, for ever; False when it was. Its jobs stay held until `rescue`.

    Who waits for a lock of the slot in vain closes the slot's connections. Call it outside of a
    transaction. Raises LockNotAvailableError when that did not help either.
    """
    try:
        return await _end(connection, slot_id, reason)
    except asyncpg.LockNotAvailableError:
        await close_connections(connection, slot_id)
        return await _end(connection, slot_id, reason)


async def close_connections(connection: Connection, slot_id: SlotId) -> None:
    """End what a slot has open in the database, with all its locks; it may connect anew."""
    await connection.execute(QUERIES["close_connections"], f"xnai {connection_role(slot_id)}")


async def _end(connection: Connection, slot_id: SlotId, reason: str) -> bool:
    async with connection.transaction():
        await connection.execute(QUERIES["limit_end_wait"])
        return await connection.fetchval(QUERIES["end_slot"], slot_id, reason) is not None


async def ended_holding(connection: Connection, *, since_s: float = 0.0) -> list[SlotId]:
    """Slots that have been dead for so long and still hold jobs: what a sweeper rescues."""
    rows = await connection.fetch(QUERIES["ended_holding"], since_s)
    return [SlotId(row["id"]) for row in rows]


async def to_sweep(connection: Connection) -> ToSweep:
    """Look for work of a sweeper, cheaply."""
    row = await connection.fetchrow(QUERIES["to_sweep"])
    if row is None:
        raise AssertionError("a SELECT without FROM answers one row")
    return ToSweep(**row)
