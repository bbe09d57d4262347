"""What a measurement costs: processor time of whole process trees, bytes of the servers' logs,
order statistics.
"""

import math
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import asyncpg
import psutil
from redis.asyncio import Redis

from runtime.sql import load_queries

QUERIES = load_queries("bench")


def cpu_seconds(roots: Iterable[int], *, alone: bool = False) -> float:
    """User and system time of these processes, of their living descendants and of those they have
    reaped.
    """
    seconds = 0.0
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(root)
            members = [] if alone else process.children(recursive=True)
            for member in (process, *members):
                with suppress(psutil.NoSuchProcess):
                    times = member.cpu_times()
                    seconds += times.user + times.system
                    if not alone:
                        seconds += times.children_user + times.children_system
    return seconds


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor seconds of what was measured, and the share of the machine that others took."""

    own: float
    foreign: float


class CpuMeter:
    """From its making to `read`: the processor time of some trees, of this process, and of all."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = list(roots)
        self._began = time.monotonic()
        self._own, self._harness, self._all = self._now()

    def read(self) -> Spent:
        """What was spent since."""
        own, harness, everything = self._now()
        own -= self._own
        available = (time.monotonic() - self._began) * (psutil.cpu_count() or 1)
        foreign = everything - self._all - own - (harness - self._harness)
        return Spent(own, min(1.0, max(0.0, foreign / available)))

    def _now(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        return cpu_seconds(self._roots), cpu_seconds([os.getpid()], alone=True), busy


def memory_bytes(pid: int) -> int:
    """Resident memory of one process."""
    return int(psutil.Process(pid).memory_info().rss)


async def wal_bytes(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    """Everything that the cluster has ever written ahead."""
    return int(await connection.fetchval(QUERIES["wal_position"]))


async def aof_bytes(redis: Redis) -> int:
    """The size of the append-only file, which the harness keeps from being rewritten."""
    return int((await redis.info("persistence"))["aof_current_size"])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def middle(values: Sequence[float]) -> float:
    """The median."""
    return median(values)
