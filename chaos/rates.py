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

ROUND_JOBS = range(500, 4_001)
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
        before = _median(self.fault_free)
        return _median(self.recovered) / before if before else None

    @property
    def is_recovered(self) -> bool:
        """Whether what is wanted is back; nothing is wanted where nothing was measured."""
        return self.share is None or self.share >= WANTED


def jobs_a_round(jobs: int) -> int:
    """How many no-ops a round drains, for a run of so many jobs."""
    return min(max(jobs, ROUND_JOBS[0]), ROUND_JOBS[-1])


class Meter:
    """Measures one stack, always in the same way."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient, log: Log, jobs: int) -> None:
        self._stack = stack
        self._http = http
        self._log = log
        self._jobs = jobs_a_round(jobs)

    async def fault_free(self) -> tuple[float, ...]:
        """Some rounds on the untouched stack; the first, which warms it up, does not count."""
        async with self._stack.database() as connection:
            found = [await self._round(connection) for _ in range(ROUNDS + 1)]
        return tuple(found[1:])

    async def recovered(self, fault_free: Sequence[float]) -> Rates:
        """Rounds until the last few are as fast as those before, or no more are allowed."""
        rates = Rates(tuple(fault_free))
        async with self._stack.database() as connection:
            for number in range(1, ROUNDS_MAX + 1):
                rate = await self._round(connection)
                rates = Rates(rates.fault_free, (*rates.recovered, rate))
                if rate == 0.0 or (number >= ROUNDS and rates.is_recovered):
                    break
        return rates

    async def _round(self, connection: Connection) -> float:
        """Accept a batch of no-ops in one commit, and see how fast it is gone; 0 for never."""
        line = orjson.dumps({"kind": "probe", "payload": {}}) + b"\n"
        response = await self._http.post(
            "/v1/batches", content=line * self._jobs, headers={"content-type": NDJSON}
        )
        response.raise_for_status()
        batch_id = UUID(response.json()["id"])
        self._log.batches.append(AcceptedBatch(batch_id, datetime.now(UTC), self._jobs))
        with anyio.move_on_after(ROUND_TIMEOUT_S):
            while True:
                row = await connection.fetchrow(QUERIES["drained"], batch_id)
                if row is not None and row["jobs"] == self._jobs:
                    return float(self._jobs / row["seconds"])
                await anyio.sleep(_POLL_S)
        return 0.0


def _median(rounds: Sequence[float]) -> float:
    return median(rounds[-ROUNDS:])
