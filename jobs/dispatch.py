"""Wake-ups over arq: tells an idle slot that its pool has work. It decides nothing and may lose
everything.

A wake-up is an arq message on the pool's own queue (`arq:queue:POOL`, arq's sorted set and job
keys, JSON instead of pickle). Its ids are hints: whoever is woken claims from the ledger, in the
ledger's order. Of arq's worker nothing else is used (docs/decisions/0010): no in-progress keys,
retries, results or cron, since those hide a dead slot's message for minutes. Announce only after
the commit, never inside a transaction.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from uuid import UUID

import orjson
from arq.constants import default_queue_name, job_key_prefix
from arq.jobs import DeserializationError, deserialize_job_raw, serialize_job
from redis.asyncio import Redis
from redis.exceptions import RedisError

from runtime import metrics
from runtime.logs import logger
from runtime.redis import Client, RedisAwayError

# However deep the backlog, at most this many wake-ups of a pool lie in Redis.
RUNWAY = 64
IDS_PER_MESSAGE_MAX = 16
# Hints age fast: whoever is woken later claims without them. Their keys are what a deep backlog
# would otherwise leave in Redis.
MESSAGE_TTL_MS = 5_000

_REASON_MAX = 300

# What redis-py raises when the server is away, slow, loading or refusing writes.
UNAVAILABLE = (RedisError, OSError, TimeoutError)

log = logger("dispatch")


@dataclass(frozen=True, slots=True)
class WakeUp:
    """One message taken off a pool's queue: the hints, and how long it lay there in seconds."""

    pool: str
    job_ids: tuple[str, ...]
    age_s: float


def queue_name(pool: str) -> str:
    """The key of the pool's arq queue."""
    return f"{default_queue_name}:{pool}"


async def announce(redis: Client, ready: Mapping[str, Sequence[UUID]]) -> None:
    """Wake one slot for each few jobs that became ready; `ready` maps pools to job ids.

    Never raises when Redis is away, and never waits long: slots poll and the sweeper announces
    again, so nothing is lost.
    """
    if not any(ready.values()):
        return
    try:
        with redis.briefly():
            pipe = redis.pipeline(transaction=False)
            for pool, ids in ready.items():
                _queue_messages(pipe, pool, ids)
            await pipe.execute()
    except RedisAwayError:
        metrics.DISPATCH_FAILURES.inc()
    except UNAVAILABLE as error:
        metrics.DISPATCH_FAILURES.inc()
        reason = str(error)[:_REASON_MAX] or type(error).__name__
        log.warning("announce_failed", error=reason, pools=sorted(ready))


def _queue_messages(pipe: Redis, pool: str, ids: Sequence[UUID]) -> None:
    """Spread the ids over at most a runway of messages; surplus ids are left to the claims."""
    if not ids:
        return
    now_ms = time.time_ns() // 1_000_000
    share = min(IDS_PER_MESSAGE_MAX, -(-len(ids) // RUNWAY))
    scores: dict[str, float] = {}
    for hints in batched(ids[: RUNWAY * share], share):
        message_id = str(hints[0])
        ids_text = tuple(map(str, hints))
        data = serialize_job(pool, ids_text, {}, None, now_ms, serializer=orjson.dumps)
        pipe.psetex(job_key_prefix + message_id, MESSAGE_TTL_MS, data)
        scores[message_id] = now_ms
    pipe.zadd(queue_name(pool), scores)
    pipe.zremrangebyrank(queue_name(pool), 0, -RUNWAY - 1)


async def wait(redis: Client, pool: str, timeout_s: float) -> WakeUp | None:
    """Block until a wake-up of the pool arrives; None after `timeout_s`. Raises UNAVAILABLE."""
    popped = await redis.bzpopmin(queue_name(pool), timeout=timeout_s)
    if popped is None:
        return None
    _, message_id, score = popped
    data = await redis.getdel(job_key_prefix + message_id.decode())
    return WakeUp(pool, _hints(data), max(0.0, time.time() - float(score) / 1000))


def _hints(data: bytes | None) -> tuple[str, ...]:
    """The ids of a message; none when it has expired or is not ours."""
    if data is None:
        return ()
    try:
        _, args, *_ = deserialize_job_raw(data, deserializer=orjson.loads)
    except DeserializationError:
        return ()
    return tuple(map(str, args))


async def waiting(redis: Client, pool: str) -> int:
    """How many wake-ups of the pool lie in Redis."""
    return int(await redis.zcard(queue_name(pool)))
