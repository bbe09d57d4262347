"""How fast the stack drains a queue: before any fault, and again after all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from uuid import UUID

import anyio
import httpx
import orjson

from chaos.clients import NDJSON, Log
from chaos.history import AcceptedBatch
from chaos.stack import Stack
from runtime.postgres import Connection
from runtime.sql import load_queries

ROUND_JOBS = 4_000
ROUNDS = 3
ROUNDS_MAX = 15
ROUND_TIMEOUT_S = 30.0
# The share of the fault-free rate that must be back.
WANTED = 0.95
_POLL_S = 0.02

QUERIES = load_queries("chaos", "runs")


@dataclass(frozen=True, slots=True)
class Rates:
    """Drained jobs a second, one number a round."""

    fault_free: tuple[float, ...] = ()
    recovered: tuple[float, ...] = ()

    @property
    def share(self) -> float | None:
        """The last rounds after the faults over those before them, by their medians."""
        if not self.fault_free or not self.recovered:
            return None
        return _median(self.recovered) / _median(self.fault_free)

    @property
    def is_recovered(self) -> bool:
        """Whether what is wanted is back; nothing is wanted where nothing was measured."""
        return self.share is None or self.share >= WANTED


async def measure_fault_free(stack: Stack, http: httpx.AsyncClient, log: Log) -> tuple[float, ...]:
    """Some rounds on the untouched stack; the first, which warms it up, does not count."""
    async with stack.database() as connection:
        found = [await _round(connection, http, log) for _ in range(ROUNDS + 1)]
    return tuple(found[1:])


async def measure_recovered(
    stack: Stack, http: httpx.AsyncClient, log: Log, fault_free: Sequence[float]
) -> Rates:
    """Rounds until the last few are as fast as those before, or no more are allowed."""
    rates = Rates(tuple(fault_free))
    async with stack.database() as connection:
        for number in range(1, ROUNDS_MAX + 1):
            rate = await _round(connection, http, log)
            rates = Rates(rates.fault_free, (*rates.recovered, rate))
            if number >= ROUNDS and rates.is_recovered:
                break
    return rates


def _median(rounds: Sequence[float]) -> float:
    return median(rounds[-ROUNDS:])


async def _round(connection: Connection, http: httpx.AsyncClient, log: Log) -> float:
    """Accept a batch of no-ops in one commit, and see how fast it is gone."""
    line = orjson.dumps({"kind": "probe", "payload": {}}) + b"\n"
    response = await http.post(
        "/v1/batches", content=line * ROUND_JOBS, headers={"content-type": NDJSON}
    )
    response.raise_for_status()
    batch_id = UUID(response.json()["id"])
    log.batches.append(AcceptedBatch(batch_id, datetime.now(UTC), ROUND_JOBS))
    with anyio.fail_after(ROUND_TIMEOUT_S):
        while True:
            row = await connection.fetchrow(QUERIES["drained"], batch_id)
            if row is not None and row["jobs"] == ROUND_JOBS:
                return float(ROUND_JOBS / row["seconds"])
            await anyio.sleep(_POLL_S)
