"""Writes a spool of plain jobs by COPY: the fast way in for a big batch, with the ledger's result.

What `insert_jobs` does for jobs of any sort, this does for those that nothing holds back: they are
queued at once. The rows' form is PostgreSQL's (its manual, COPY, "Binary Format").
"""

import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import batched
from uuid import UUID

import anyio
import anyio.to_thread

from jobs.counts import BatchDeltas
from jobs.enqueue import (
    DEFAULT_AGEING_S,
    Origin,
    assert_new_names,
    enqueue_entries,
    ready_of,
    seeing_new_names,
)
from jobs.errors import JobsRefused
from jobs.intake import Entry, check
from jobs.kinds import KindRegistry
from jobs.model import TenantId
from jobs.results import Ready
from jobs.spool import Spool, Terms
from runtime import metrics
from runtime.ids import uuid7s_as_bytes
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

# More ids than a pool's wake-ups can carry tell nobody anything.
HINTS_MAX = 1024
_ROWS_AT_ONCE = 1000
_CHUNKS_A_STATEMENT = 16
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
_END = struct.pack(">h", -1)
_NULL = struct.pack(">i", -1)
_TEXT_OID = 25
_JSONB_VERSION = b"\x01"

_OWN = ("id", "custom_id", "payload")
_SHARED = (
    "tenant_id",
    "batch_id",
    "kind",
    "pool",
    "priority",
    "run_at",
    "sort_at",
    "created_at",
    "timeout_s",
    "max_attempts",
    "tags",
    "callback_url",
)
_JOBS = (*_OWN, *_SHARED)
_READY = ("job_id", "pool", "sort_at", "kind", "tenant_id")


async def prepare(spool: Spool, kinds: KindRegistry) -> None:
    """Make jobs of a spool that is not plain, beside the event loop. Raises JobsRefused."""
    if spool.is_plain:
        return

    def examine() -> list[Entry]:
        return check(spool.as_jobs(), kinds)

    spool.entries = await anyio.to_thread.run_sync(examine)


async def fill(
    connection: Connection,
    tenant_id: TenantId,
    spool: Spool,
    *,
    kinds: KindRegistry,
    batch_id: UUID,
    ageing_s: float = DEFAULT_AGEING_S,
) -> Ready:
    """Accept all jobs of the spool or none, in the caller's transaction; answers whom to wake.

    Raises JobsRefused. A spool that is not plain goes through the ledger as jobs of any sort do:
    `prepare` a big one before the transaction, which would stand still meanwhile.
    """
    origin = Origin(tenant_id, batch_id, ageing_s=ageing_s)
    if not spool.is_plain:
        entries = check(spool.as_jobs(), kinds) if spool.entries is None else spool.entries
        return ready_of(await enqueue_entries(connection, origin, entries))
    if refusals := spool.repeated_custom_ids():
        raise JobsRefused(tuple(refusals))

    async def write() -> Ready:
        await assert_new_names(connection, batch_id, spool.positions_by_name())
        return await _copy(connection, origin, batch_id, spool)

    return await seeing_new_names(connection, write)


async def _copy(connection: Connection, origin: Origin, batch_id: UUID, spool: Spool) -> Ready:
    now = await connection.fetchval(QUERIES["transaction_time"])
    rows = _Rows(origin.tenant_id, batch_id, now, origin.ageing_s)
    ids = uuid7s_as_bytes(len(spool))
    await _copy_to(connection, "jobs", _JOBS, rows.jobs(spool, ids))
    await _copy_to(connection, "ready", _READY, rows.ready(spool, ids))
    deltas = BatchDeltas()
    deltas.add(batch_id, "total", len(spool), follow_up=False)
    await deltas.write(connection, origin.writer)
    for kind, count in spool.per_kind.items():
        metrics.JOBS_ENQUEUED.labels(kind).inc(count)
    return _hints(spool, ids)


async def _copy_to(
    connection: Connection, table: str, columns: Sequence[str], rows: Iterator[bytes]
) -> None:
    async def source(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
        yield _SIGNATURE
        for chunk in chunks:
            yield chunk
            # The server takes what it gets without a pause: others want their turn.
            await anyio.lowlevel.checkpoint()
        yield _END

    # Several statements, so that none of them comes near its time limit however large all is.
    for chunks in batched(rows, _CHUNKS_A_STATEMENT):
        await connection.copy_to_table(
            table, source=source(chunks), columns=columns, format="binary"
        )


class _Rows:
    """The binary rows of both tables. What jobs share is encoded once for each of their terms."""

    def __init__(self, tenant_id: TenantId, batch_id: UUID, now: datetime, ageing_s: float) -> None:
        self._tenant = _field(struct.pack(">i", tenant_id))
        self._batch = _field(batch_id.bytes)
        self._now_us = (now - _EPOCH) // timedelta(microseconds=1)
        self._ageing_us = round(ageing_s * 1_000_000)

    def jobs(self, spool: Spool, ids: Sequence[bytes]) -> Iterator[bytes]:
        """Rows of `jobs`, many at once."""
        head = struct.pack(">hi", len(_JOBS), 16)
        shared: dict[int, bytes] = {}
        start = 0
        for payloads in spool.payloads():
            parts: list[bytes] = []
            for position, payload in enumerate(payloads, start):
                terms = spool.terms[position]
                tail = shared.get(id(terms))
                if tail is None:
                    tail = shared[id(terms)] = self._shared(terms)
                name = spool.custom_ids[position]
                parts += (
                    head,
                    ids[position],
                    _NULL if name is None else _text(name),
                    _length(len(payload) + 1),
                    _JSONB_VERSION,
                    payload,
                    tail,
                )
            start += len(payloads)
            yield b"".join(parts)

    def ready(self, spool: Spool, ids: Sequence[bytes]) -> Iterator[bytes]:
        """Rows of `ready`, many at once."""
        head = struct.pack(">hi", len(_READY), 16)
        shared: dict[int, bytes] = {}
        for rows in batched(zip(ids, spool.terms, strict=True), _ROWS_AT_ONCE):
            parts: list[bytes] = []
            for job_id, terms in rows:
                tail = shared.get(id(terms))
                if tail is None:
                    kind = terms.kind
                    fields = (_text(kind.pool), self._sort_at(terms), _text(kind.name))
                    tail = shared[id(terms)] = b"".join((*fields, self._tenant))
                parts += (head, job_id, tail)
            yield b"".join(parts)

    def _shared(self, terms: Terms) -> bytes:
        """The columns of _SHARED, in their order."""
        kind = terms.kind
        now = _field(struct.pack(">q", self._now_us))
        timeout_s = kind.timeout_s if terms.timeout_s is None else terms.timeout_s
        return b"".join(
            (
                self._tenant,
                self._batch,
                _text(kind.name),
                _text(kind.pool),
                _field(struct.pack(">h", terms.priority)),
                now,
                self._sort_at(terms),
                now,
                _field(struct.pack(">d", timeout_s)),
                _field(struct.pack(">h", terms.max_attempts or kind.max_attempts)),
                _texts(terms.tags),
                _NULL if terms.callback_url is None else _text(terms.callback_url),
            )
        )

    def _sort_at(self, terms: Terms) -> bytes:
        """As insert_jobs has it: a level of priority is worth `ageing_s` of waiting."""
        return _field(struct.pack(">q", self._now_us - terms.priority * self._ageing_us))


_length = struct.Struct(">i").pack


def _field(value: bytes) -> bytes:
    return _length(len(value)) + value


def _text(value: str) -> bytes:
    return _field(value.encode())


def _texts(values: Sequence[str]) -> bytes:
    """An array of text: its dimensions (none when it is empty), and each element as a field."""
    if not values:
        return _field(struct.pack(">iii", 0, 0, _TEXT_OID))
    head = struct.pack(">iiiii", 1, 0, _TEXT_OID, len(values), 1)
    return _field(head + b"".join(map(_text, values)))


def _hints(spool: Spool, ids: Sequence[bytes]) -> Ready:
    found: dict[str, list[UUID]] = {pool: [] for pool in spool.per_pool}
    for job_id, terms in zip(ids, spool.terms, strict=True):
        hints = found[terms.kind.pool]
        if len(hints) < HINTS_MAX:
            hints.append(UUID(bytes=job_id))
    return {pool: tuple(hints) for pool, hints in found.items()}
