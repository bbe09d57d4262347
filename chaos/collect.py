"""Reads what the stores hold, in one snapshot, beside what the clients saw. Judges nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from uuid import UUID

import asyncpg
import orjson

from chaos.history import (
    ClientLog,
    History,
    Hold,
    IndexFinding,
    StoredAttempt,
    StoredBatch,
    StoredCallback,
    StoredEvent,
    StoredFamily,
    StoredJob,
    StoredLimit,
    StoredRequest,
    StoredUniqueKey,
)
from corpus import audit, collections
from jobs.model import DEFAULT_TENANT, Counts, JsonValue, SlotId, TenantId, Token
from jobs.states import BatchState, JobState
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("chaos")

# More collections than a run has.
_COLLECTIONS_MAX = 1000


async def collect(connection: Connection, log: ClientLog) -> History:
    """All facts; `connection` must not be in a transaction. The index is audited by the rules that
    Postgres can check: who can read its files adds what it finds.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        history = await _stored(connection, log)
    tenants = {job.tenant_id for job in history.jobs} | {DEFAULT_TENANT}
    findings = [
        finding
        for tenant_id in sorted(tenants)
        for finding in await _index_findings(connection, tenant_id)
    ]
    return replace(history, index=tuple(findings))


async def _stored(connection: Connection, log: ClientLog) -> History:
    async def rows(query: str) -> list[asyncpg.Record]:
        return await connection.fetch(QUERIES[query])

    return History(
        log=log,
        jobs=tuple(map(_job, await rows("all_jobs"))),
        orphans=tuple((row["place"], row["job_id"]) for row in await rows("orphans")),
        attempts=tuple(StoredAttempt(**row) for row in await rows("all_attempts")),
        events=tuple(map(_event, await rows("all_events"))),
        families=tuple(StoredFamily(**row) for row in await rows("all_families")),
        dependencies=tuple(
            (row["parent_id"], row["job_id"]) for row in await rows("all_dependencies")
        ),
        limits=tuple(StoredLimit(**row) for row in await rows("all_limits")),
        unique_keys=tuple(StoredUniqueKey(**row) for row in await rows("all_unique_keys")),
        batches=tuple(map(_batch, await rows("all_batches"))),
        requests=tuple(
            StoredRequest(row["key"], _subject(row["body"])) for row in await rows("all_requests")
        ),
        callbacks=tuple(map(_callback, await rows("all_callbacks"))),
        slots={SlotId(row["id"]): row["ended_at"] for row in await rows("all_slots")},
    )


async def _index_findings(connection: Connection, tenant_id: TenantId) -> Iterable[IndexFinding]:
    found = await collections.list_page(connection, tenant_id, limit=_COLLECTIONS_MAX)
    audits = [await audit.audit(connection, tenant_id, item.name) for item in found]
    return [
        IndexFinding(one.collection, finding.rule, finding.ids)
        for one in audits
        for finding in one.findings
    ]


def _job(row: asyncpg.Record) -> StoredJob:
    places = tuple(row["places"])
    hold = None
    if row["token"] is not None:
        hold = Hold(SlotId(row["slot_id"]), Token(row["token"]), row["held_attempt"])
    return StoredJob(
        id=row["id"],
        tenant_id=TenantId(row["tenant_id"]),
        state=JobState(row["ended_as"] or _live_state(places)),
        created_at=row["created_at"],
        max_attempts=row["max_attempts"],
        attempt=row["attempt"],
        failures=row["failures"],
        places=places,
        hold=hold,
        parked_for=row["reason"],
        pending_parents=row["pending_parents"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        xid=None if row["xid"] is None else int(row["xid"]),
        unique_key=row["unique_key"],
        unique_until=row["unique_until"],
        concurrency_key=row["concurrency_key"],
        batch_id=row["batch_id"],
        parent_id=row["parent_id"],
        lineage=tuple(row["lineage"]),
        schedule_id=row["schedule_id"],
        callback_url=row["callback_url"],
    )


def _live_state(places: tuple[str, ...]) -> JobState:
    """As the view `live_jobs` has it."""
    if "held" in places:
        return JobState.RUNNING
    return JobState.QUEUED if "ready" in places else JobState.SCHEDULED


def _event(row: asyncpg.Record) -> StoredEvent:
    return StoredEvent(
        int(row["xid"]),
        row["at"],
        row["type"],
        row["job_id"],
        row["batch_id"],
        row["settled"],
        row["run"],
    )


def _batch(row: asyncpg.Record) -> StoredBatch:
    return StoredBatch(
        id=row["id"],
        state=BatchState(row["state"]),
        run=row["run"],
        counts=_counts(row, ""),
        follow_ups=_counts(row, "follow_"),
        callback_url=row["callback_url"],
    )


def _counts(row: asyncpg.Record, prefix: str) -> Counts:
    return Counts(**{name: row[prefix + name] for name in ("total", *JobState)})


def _callback(row: asyncpg.Record) -> StoredCallback:
    data: Mapping[str, JsonValue] = row["data"]
    run = data.get("run")
    return StoredCallback(
        id=row["id"],
        place=row["place"],
        type=row["type"],
        url=row["url"],
        occurred_at=row["occurred_at"],
        subject=_as_id(data.get("id") or data.get("job_id") or data.get("batch_id")),
        run=run if isinstance(run, int) else None,
        endpoint_id=row["endpoint_id"],
    )


def _subject(body: bytes | None) -> UUID | None:
    """The id in a stored answer, if it is an object with one."""
    try:
        answer = orjson.loads(body or b"null")
    except orjson.JSONDecodeError:
        return None
    return _as_id(answer.get("id")) if isinstance(answer, dict) else None


def _as_id(text: JsonValue) -> UUID | None:
    try:
        return UUID(text) if isinstance(text, str) else None
    except ValueError:
        return None
