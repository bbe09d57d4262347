"""What a measurement costs: processor time of whole process trees, bytes of the servers' logs,
order statistics.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from statistics import median

import asyncpg
import psutil
from redis.asyncio import Redis

from runtime.sql import load_queries

QUERIES = load_queries("bench")


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time of these processes, of their living descendants and of those they have
    reaped.
    """
    seconds = 0.0
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(root)
            for member in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = member.cpu_times()
                    seconds += times.user + times.system
                    seconds += times.children_user + times.children_system
    return seconds


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
