"""The circuits of lanes: after enough failures in a row one delivery at a time probes the receiver,
and the others wait without spending their attempts.

Rows exist only for lanes whose last attempt failed. One function a query; callers commit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from uuid import UUID

from asyncpg import Record

from runtime.postgres import Connection
from runtime.sql import load_queries
from webhooks import backoff

QUERIES = load_queries("webhooks", "outbox")


@dataclass(frozen=True, slots=True)
class Circuit:
    """What is held against a lane; `probe_at` is None while its circuit is closed."""

    failures: int
    failing_since: datetime
    probe_at: datetime | None


def lane_of(endpoint_id: UUID) -> str:
    """The lane of an endpoint's events, as the table of what is owed names it."""
    return f"endpoint {endpoint_id}"


async def fail(
    connection: Connection, lane: str, *, now: datetime, rng: Random, retry_after_s: float = 0.0
) -> Circuit:
    """Note a failure, and open the circuit or put the next probe off when it is time for that."""
    row = await connection.fetchrow(QUERIES["fail_lane"], lane, now)
    if row is None:
        detail = "an INSERT … RETURNING answered no row"
        raise RuntimeError(detail)
    circuit = _circuit(row)
    pause_s = backoff.probe_in_s(circuit.failures, rng, retry_after_s)
    if pause_s is None and circuit.probe_at is None:
        return circuit
    # A circuit that `Retry-After` had opened early stays open until something succeeds.
    probe_at = now + timedelta(seconds=pause_s or 0.0)
    await connection.execute(QUERIES["open_lane"], lane, probe_at)
    return Circuit(circuit.failures, circuit.failing_since, probe_at)


async def close(connection: Connection, lanes: Sequence[str]) -> None:
    """Hold nothing against these lanes any more."""
    await connection.execute(QUERIES["close_lanes"], lanes)


async def hasten(
    connection: Connection, lanes: Sequence[str], *, now: datetime | None = None
) -> None:
    """Let the next probe of these lanes go at once."""
    await connection.execute(QUERIES["hasten_lanes"], lanes, now)


async def of_endpoints(
    connection: Connection, endpoint_ids: Sequence[UUID]
) -> Mapping[UUID, Circuit]:
    """What is held against these endpoints; nothing is of one that is left out."""
    names = {lane_of(endpoint_id): endpoint_id for endpoint_id in endpoint_ids}
    rows = await connection.fetch(QUERIES["get_lanes"], list(names))
    return {names[row["lane"]]: _circuit(row) for row in rows}


async def prune(connection: Connection, *, before: datetime, limit: int = 10_000) -> int:
    """Forget lanes that have not been tried since; answers how many."""
    status = await connection.execute(QUERIES["prune_lanes"], before, limit)
    return int(status.rpartition(" ")[2])


def _circuit(row: Record) -> Circuit:
    return Circuit(row["failures"], row["failing_since"], row["probe_at"])
