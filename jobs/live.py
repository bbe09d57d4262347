"""What watchers see between two transitions: progress, tokens, and the nudge to look again.

Everything here goes through Redis only and may be lost; the ledger and its events are the truth. A
job's tokens lie for a while in a stream of its own, so that a watcher who comes late or reconnects
misses none.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import orjson
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.dispatch import UNAVAILABLE
from jobs.model import ClaimedJob, JsonObject
from runtime import metrics
from runtime.redis import Client

CHANNEL = "xnai:live"
STREAM_PREFIX = "xnai:tokens:"
PROGRESS_PREFIX = "xnai:progress:"
STREAM_ENTRIES_MAX = 20_000
TTL_S = 900
# Asked for with every answer about a running job: it may not hold that back.
PROGRESS_LIMIT_S = 0.25
SUBSCRIPTION_POLL_S = 2.0

# A `changed` message: this byte, which opens no JSON, the tenant, then 16 bytes an id.
_TOUCHED = b"\x00"
_TENANT_BYTES = 4
_ID_BYTES = 16


# The ids' bytes: making UUIDs of all of them would cost a reader, who looks for few, far more.
type Touched = frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing that happened: `type` is `job.progress`, `job.token` or `changed`.

    `cursor` is the id in the job's token stream, None for other types. `changed` names no single
    job: `touched` holds the ids of all jobs and batches that one commit changed.
    """

    type: str
    tenant_id: int
    job_id: UUID | None
    batch_id: UUID | None
    data: JsonObject
    cursor: str | None = None
    touched: Touched = frozenset()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job is; `total` is None while it is not known."""

    done: int
    total: int | None
    message: str


class Token(NamedTuple):
    """A piece of generated text, and the cursor after it in its job's stream."""

    cursor: str
    attempt: int
    text: str


class LiveStream:
    """Publishes and reads live signals. Every publishing method is best effort and never raises."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis

    async def progress(self, job: ClaimedJob, done: int, total: int | None, text: str) -> None:
        """Remember and publish a job's progress."""
        data: JsonObject = {"done": done, "total": total, "message": text}
        try:
            with self._redis.briefly():
                pipe = self._redis.pipeline(transaction=False)
                pipe.setex(f"{PROGRESS_PREFIX}{job.id}", TTL_S, orjson.dumps(data))
                pipe.publish(CHANNEL, _encode("job.progress", job, data))
                await pipe.execute()
        except UNAVAILABLE:
            metrics.DISPATCH_FAILURES.inc()

    async def token(self, job: ClaimedJob, text: str) -> None:
        """Append a piece of generated text to the job's stream and publish it with its cursor."""
        data: JsonObject = {"attempt": job.attempt, "text": text}
        try:
            with self._redis.briefly():
                cursor = await self._append(job, text)
                await self._redis.publish(CHANNEL, _encode("job.token", job, data, cursor))
        except UNAVAILABLE:
            metrics.DISPATCH_FAILURES.inc()

    async def _append(self, job: ClaimedJob, text: str) -> str:
        """One step, so that no stream is ever without its end of life."""
        key = f"{STREAM_PREFIX}{job.id}"
        pipe = self._redis.pipeline(transaction=True)
        pipe.xadd(
            key,
            {"attempt": job.attempt, "text": text},
            maxlen=STREAM_ENTRIES_MAX,
            approximate=True,
        )
        pipe.expire(key, TTL_S)
        cursor, _ = await pipe.execute()
        return str(cursor.decode())

    async def started(self, jobs: Sequence[ClaimedJob]) -> None:
        """Nudge watchers of jobs that run, and of their batches: the ledger knows the attempt."""
        touched: defaultdict[int, dict[UUID, None]] = defaultdict(dict)
        for job in jobs:
            touched[job.tenant_id][job.id] = None
            if job.batch_id is not None:
                touched[job.tenant_id][job.batch_id] = None
        await self._publish([_pack_touched(tenant_id, ids) for tenant_id, ids in touched.items()])

    async def changed(
        self, tenant_id: int, job_ids: Iterable[UUID], batch_ids: Iterable[UUID] = ()
    ) -> None:
        """Nudge watchers of these jobs and batches, all at once, to read the ledger again."""
        touched = [*job_ids, *batch_ids]
        if touched:
            await self._publish([_pack_touched(tenant_id, touched)])

    async def _publish(self, signals: Iterable[bytes]) -> None:
        try:
            with self._redis.briefly():
                pipe = self._redis.pipeline(transaction=False)
                for signal in signals:
                    pipe.publish(CHANNEL, signal)
                await pipe.execute()
        except UNAVAILABLE:
            metrics.DISPATCH_FAILURES.inc()

    async def progress_of(self, job_ids: Sequence[UUID]) -> dict[UUID, Progress]:
        """The last progress of each job that has one; empty when Redis is away."""
        if not job_ids:
            return {}
        try:
            with self._redis.briefly(PROGRESS_LIMIT_S):
                keys = [f"{PROGRESS_PREFIX}{job_id}" for job_id in job_ids]
                found = await self._redis.mget(keys)
        except UNAVAILABLE:
            return {}
        return {
            job_id: Progress(**orjson.loads(data))
            for job_id, data in zip(job_ids, found, strict=True)
            if data is not None
        }

    async def tokens_after(self, places: Sequence[tuple[UUID, str]]) -> list[list[Token]]:
        """The tokens of each job after a cursor ("0-0": all), oldest first. Raises UNAVAILABLE."""
        with self._redis.briefly():
            pipe = self._redis.pipeline(transaction=False)
            for job_id, cursor in places:
                pipe.xrange(f"{STREAM_PREFIX}{job_id}", min=f"({cursor}")
            found = await pipe.execute()
        return [
            [Token(key.decode(), int(f[b"attempt"]), f[b"text"].decode()) for key, f in entries]
            for entries in found
        ]

    async def signals(self, subscribed: Callable[[], None]) -> AsyncIterator[Signal]:
        """Every signal from now on, of all tenants; endless. Raises one of UNAVAILABLE.

        Calls `subscribed` when Redis has confirmed the subscription, also a renewed one: whatever
        happened before was not heard. One subscription serves a whole process: the API fans it out
        to its watchers.
        """
        subscription = self._redis.pubsub()
        async with aclosing(subscription):
            await subscription.subscribe(CHANNEL)
            is_asked = False
            while True:
                received = await subscription.get_message(timeout=SUBSCRIPTION_POLL_S)
                if received is None:
                    # A line that is cut brings no error, only silence.
                    if is_asked:
                        raise RedisConnectionError("the subscription has fallen silent")
                    await subscription.ping()
                is_asked = received is None
                if received is not None and received["type"] == "subscribe":
                    subscribed()
                if received is not None and received["type"] == "message":
                    yield _decode(received["data"])


def _encode(type_: str, job: ClaimedJob, data: JsonObject, cursor: str | None = None) -> bytes:
    return _pack(type_, job.tenant_id, job.id, job.batch_id, data, cursor)


def _pack(  # noqa: PLR0917 - the six fields of a signal
    type_: str,
    tenant_id: int,
    job_id: UUID | None,
    batch_id: UUID | None,
    data: JsonObject,
    cursor: str | None,
) -> bytes:
    return orjson.dumps((type_, tenant_id, job_id, batch_id, data, cursor), default=str)


def _pack_touched(tenant_id: int, ids: Iterable[UUID]) -> bytes:
    return b"".join((_TOUCHED, tenant_id.to_bytes(_TENANT_BYTES), *(id_.bytes for id_ in ids)))


def _unpack_touched(packed: bytes) -> Signal:
    ids_at = len(_TOUCHED) + _TENANT_BYTES
    tenant_id = int.from_bytes(packed[len(_TOUCHED) : ids_at])
    ids = (packed[at : at + _ID_BYTES] for at in range(ids_at, len(packed), _ID_BYTES))
    return Signal("changed", tenant_id, None, None, {}, touched=frozenset(ids))


def _decode(packed: bytes) -> Signal:
    if packed.startswith(_TOUCHED):
        return _unpack_touched(packed)
    type_, tenant_id, job_id, batch_id, data, cursor = orjson.loads(packed)
    return Signal(
        type_,
        tenant_id,
        None if job_id is None else UUID(job_id),
        None if batch_id is None else UUID(batch_id),
        data,
        cursor,
    )
