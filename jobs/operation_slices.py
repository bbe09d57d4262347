"""Works bulk operations off, a slice at a time, committed with where the next slice begins.

Any number of tickers may call `work` at once: each takes another operation. It never announces;
its callers do, after the commit (docs/decisions/0021).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never
from uuid import UUID

import asyncpg

from jobs import ledger
from jobs.batch_verbs import finish_due
from jobs.enqueue import DEFAULT_AGEING_S
from jobs.matching import OPERATIONS, OperationAction, find
from jobs.model import JsonObject, TenantId
from jobs.operations import Operation, operation_from
from jobs.outcomes import Problem
from jobs.results import Ready
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Connection

PUT_OFF_S = 5.0

# What the data of one job can do to the statement of a whole slice.
_BAD_ROW = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)

log = logger("operations")


@dataclass(frozen=True, slots=True)
class Worked:
    """What a slice changed: announce `ready`, nudge whoever watches the jobs and batches."""

    tenant_id: TenantId
    ready: Ready = field(default_factory=dict)
    jobs: tuple[UUID, ...] = ()
    batches: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class _Applied:
    """What became of a slice's jobs."""

    done: frozenset[UUID] = frozenset()
    failed: int = 0
    error: JsonObject | None = None
    ready: Ready = field(default_factory=dict)
    batches: tuple[UUID, ...] = ()

    def and_then(self, other: "_Applied") -> "_Applied":
        """Both; the first error stays."""
        pools = {*self.ready, *other.ready}
        ready = {pool: (*self.ready.get(pool, ()), *other.ready.get(pool, ())) for pool in pools}
        return _Applied(
            self.done | other.done,
            self.failed + other.failed,
            self.error or other.error,
            ready,
            tuple(sorted({*self.batches, *other.batches})),
        )


async def work(
    connection: Connection, *, ageing_s: float = DEFAULT_AGEING_S, now: datetime | None = None
) -> Worked | None:
    """Do one slice of the operation that has waited longest; None when none is due.

    Call it outside of a transaction: it commits one of its own, and puts the operation off when
    Postgres refuses the slice. Raises what tells that Postgres is away.
    """
    if not await connection.fetchval(OPERATIONS["is_operation_due"], now):
        return None
    operation: Operation | None = None
    try:
        async with connection.transaction():
            row = await connection.fetchrow(OPERATIONS["take_operation"], now)
            if row is None:
                return None
            operation = operation_from(row)
            worked = await _Slice(connection, operation, ageing_s, now).do()
        if worked.batches:
            await finish_due(connection, worked.batches, now=now)
    except asyncpg.PostgresError as error:
        if operation is None or isinstance(error, UNREACHABLE):
            raise
        await _put_off(connection, operation, error, now)
        return Worked(operation.tenant_id)
    return worked


async def _put_off(
    connection: Connection, operation: Operation, error: asyncpg.PostgresError, now: datetime | None
) -> None:
    log.warning("operation_put_off", operation_id=str(operation.id), error=str(error))
    problem = _problem(error, f"put off for {PUT_OFF_S:g} s: {error}")
    await connection.execute(OPERATIONS["put_off_operation"], operation.id, PUT_OFF_S, problem, now)


def _problem(error: asyncpg.PostgresError, detail: str) -> JsonObject:
    return Problem(type(error).__name__, detail).as_json()


@dataclass(frozen=True, slots=True)
class _Slice:
    """One slice of an operation whose row the transaction has locked."""

    connection: Connection
    operation: Operation
    ageing_s: float
    now: datetime | None

    async def do(self) -> Worked:
        """Find the next jobs, act on them, move the cursor."""
        operation = self.operation
        found = await find(self.connection, operation.wanted, operation.after_id)
        applied = await self._apply_all_or_each(found.ids)
        await self.connection.execute(
            OPERATIONS["advance_operation"],
            operation.id,
            found.after_id,
            len(applied.done),
            len(found.ids) - len(applied.done) - applied.failed,
            applied.failed,
            applied.error,
            found.is_last,
            self.now,
        )
        return Worked(operation.tenant_id, applied.ready, tuple(applied.done), applied.batches)

    async def _apply_all_or_each(self, ids: Sequence[UUID]) -> _Applied:
        """All at once; when the data of some job is at fault, one by one."""
        try:
            return await self._apply(ids)
        except _BAD_ROW:
            total = _Applied()
        for job_id in ids:
            try:
                one = await self._apply([job_id])
            except _BAD_ROW as error:
                one = _Applied(failed=1, error=_problem(error, f"job {job_id}: {error}"))
            total = total.and_then(one)
        return total

    async def _apply(self, ids: Sequence[UUID]) -> _Applied:
        """The ledger's own verb, which runs in a savepoint."""
        tenant_id = self.operation.tenant_id
        if not ids:
            return _Applied()
        match self.operation.action:
            case OperationAction.CANCEL:
                cancelled = await ledger.cancel(self.connection, tenant_id, ids, now=self.now)
                asked = (job_id for jobs in cancelled.requested.values() for job_id in jobs)
                done = frozenset(ids).intersection((*cancelled.cancelled, *asked))
                return _Applied(done, ready=cancelled.ready, batches=cancelled.batches)
            case OperationAction.RETRY:
                same = await self._lock_unchanged(ids)
                retried = await ledger.retry(
                    self.connection, tenant_id, same, now=self.now, ageing_s=self.ageing_s
                )
                return _Applied(
                    frozenset(retried.retried), ready=retried.ready, batches=retried.batches
                )
            case OperationAction.DISCARD:
                same = await self._lock_unchanged(ids)
                gone = await ledger.discard(
                    self.connection, tenant_id, same, by=self.operation.actor, now=self.now
                )
                return _Applied(frozenset(gone.discarded))
            case _:
                assert_never(self.operation.action)

    async def _lock_unchanged(self, ids: Sequence[UUID]) -> list[UUID]:
        """Those that nobody has brought back since they were found."""
        operation = self.operation
        rows = await self.connection.fetch(
            OPERATIONS["lock_unchanged"], operation.tenant_id, ids, operation.as_of
        )
        return [row["id"] for row in rows]
