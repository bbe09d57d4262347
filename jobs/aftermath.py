"""What the ends of jobs entail for others: dependents, ancestors, keys, callbacks, batches.

Collected while jobs end, applied once, in the one order of locks: jobs by id, families, keys,
batches. Jobs to which nothing is tied never come here.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import orjson

from jobs import families, permits
from jobs.counts import BatchDeltas
from jobs.model import SlotId, TenantId
from jobs.outcomes import Problem
from jobs.permits import Key
from jobs.results import Ready
from jobs.states import JobState, OnParentFailure
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

# How often a job may slip from one narrow table to another while it is being ended.
_SLIPS_MAX = 20


@dataclass(frozen=True, slots=True)
class Over:
    """A job that has just ended, and what is tied to it. `permit_key`: only if it held a permit."""

    id: UUID
    tenant_id: TenantId
    state: JobState
    unique_key: str | None
    permit_key: str | None
    has_dependents: bool
    has_family: bool
    lineage: Sequence[UUID]
    callback_url: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a waiting job is to end."""

    state: JobState
    problem: Problem


class Aftermath:
    """One transaction's consequences. Its caller reports `ready`, `settled` and `deltas`."""

    def __init__(self, connection: Connection, writer: SlotId, now: datetime | None) -> None:
        self._connection = connection
        self._writer = writer
        self.now = now
        self.deltas = BatchDeltas()
        self.ready: defaultdict[str, list[UUID]] = defaultdict(list)
        self.released: Counter[Key] = Counter()
        self.settled: list[UUID] = []
        self.has_returned = False
        self._over: list[Over] = []

    async def end_waiting(self, verdicts: Mapping[UUID, Verdict]) -> list[Over]:
        """End jobs that nobody holds, whose rows the caller has locked; held ones are left out.

        A sweeper may queue a job between two looks, without locking its row: ask until none is
        missed.
        """
        over: list[Over] = []
        left = dict(verdicts)
        for _ in range(_SLIPS_MAX):
            rows = await self._connection.fetch(
                QUERIES["finish_waiting"],
                self.now,
                list(left),
                [verdict.state for verdict in left.values()],
                [orjson.dumps(verdict.problem.as_json()).decode() for verdict in left.values()],
            )
            for row in rows:
                del left[row["id"]]
                was_parked, follow_up = row["was_parked"], row["follow_up"]
                self.deltas.add(row["batch_id"], row["state"], follow_up=follow_up)
                if was_parked:
                    self.deltas.add(row["batch_id"], "scheduled", -1, follow_up=follow_up)
                over.append(over_from(row, JobState(row["state"]), held_permit=not was_parked))
            self._over += over[len(over) - len(rows) :]
            if not left or not await self._connection.fetch(QUERIES["waiting_jobs"], list(left)):
                break
        return over

    def add(self, over: Iterable[Over]) -> None:
        """Note attempts that ended together with their jobs."""
        self._over += over

    async def apply(self) -> None:
        """Carry out everything, ending dependents of what ended without success as they wish."""
        told = 0
        while parents := [job for job in self._over[told:] if job.has_dependents]:
            told = len(self._over)
            await self._tell_dependents(parents)
        settled_later = await self._end_families(self._over)
        await self._release_keys(self._over)
        await self._owe_callbacks(self._over, settled_later)
        await self.deltas.write(self._connection, self._writer)

    async def unpark(self, ids: Sequence[UUID]) -> None:
        """Let parked jobs go on: to `ready`, or to wait for their time or their key's permit."""
        rows = await self._connection.fetch(QUERIES["unpark"], ids, self.now)
        for row in rows:
            if row["key"] is None:
                self.queued(row["job_id"], row["pool"], row["batch_id"], follow_up=row["follow_up"])
            else:
                self.wait_for_permit(TenantId(row["tenant_id"]), row["key"])

    def put_off(self, row: asyncpg.Record) -> None:
        """Note a job that went from `ready` to `parked`, giving its permit back."""
        self.deltas.add(row["batch_id"], "scheduled", follow_up=row["follow_up"])
        if row["concurrency_key"] is not None:
            self.released[TenantId(row["tenant_id"]), row["concurrency_key"]] += 1

    def ready_by_pool(self) -> Ready:
        """What became claimable, to be announced after the commit."""
        return {pool: tuple(ids) for pool, ids in self.ready.items()}

    def release(self, row: asyncpg.Record) -> None:
        """Note the permits that a row of finish_held tells of, by key."""
        self.has_returned = self.has_returned or bool(row["has_returned"])
        for tenant_id, key, permits_held in zip(
            row["tenants"] or (), row["keys"] or (), row["permits"] or (), strict=True
        ):
            self.released[TenantId(tenant_id), key] += permits_held

    def wait_for_permit(self, tenant_id: TenantId, key: str) -> None:
        """Note a job that is parked for its key's limit: this transaction may give it one."""
        self.released[tenant_id, key] += 0

    def queued(self, job_id: UUID, pool: str, batch_id: UUID | None, *, follow_up: bool) -> None:
        """Note a job that went from `parked` to `ready`."""
        self.ready[pool].append(job_id)
        self.deltas.add(batch_id, "scheduled", -1, follow_up=follow_up)

    async def fill_permits(self) -> None:
        """Take back what was released and queue whoever waited for it."""
        for job in await permits.fill(self._connection, self.released):
            self.queued(job.job_id, job.pool, job.batch_id, follow_up=job.follow_up)

    async def _tell_dependents(self, parents: Sequence[Over]) -> None:
        states = {parent.id: parent.state for parent in parents}
        dependents = await self._connection.fetch(QUERIES["lock_dependents"], list(states))
        policies = {row["id"]: OnParentFailure(row["on_parent_failure"]) for row in dependents}
        done: Counter[UUID] = Counter()
        doomed: dict[UUID, Verdict] = {}
        for edge in await self._connection.fetch(QUERIES["drop_dependencies"], list(states)):
            job_id, parent_id = edge["job_id"], edge["parent_id"]
            if job_id not in policies:
                continue
            verdict = verdict_on_parent(policies[job_id], parent_id, states[parent_id])
            if verdict is None:
                done[job_id] += 1
            else:
                doomed[job_id] = verdict
        await self._count_down({job_id: n for job_id, n in done.items() if job_id not in doomed})
        if doomed:
            await self.end_waiting(doomed)

    async def _count_down(self, done: Mapping[UUID, int]) -> None:
        if not done:
            return
        rows = await self._connection.fetch(
            QUERIES["count_down_parents"], list(done), list(done.values())
        )
        free = [row["id"] for row in rows if row["is_free"]]
        if free:
            await self.unpark(free)

    async def _end_families(self, over: Iterable[Over]) -> list[UUID]:
        changes = families.Changes()
        for job in over:
            if job.has_family:
                changes.ended(job.id)
            else:
                self.settled.append(job.id)
            for ancestor in job.lineage:
                changes.descendant_ended(ancestor, job.state)
        settled = await changes.write(self._connection, self.now)
        self.settled += settled
        return settled

    async def _release_keys(self, over: Iterable[Over]) -> None:
        keyed = sorted((job.tenant_id, job.unique_key, job.id) for job in over if job.unique_key)
        if keyed:
            await self._connection.execute(
                QUERIES["release_unique_keys"], *map(list, zip(*keyed, strict=True))
            )
        for job in over:
            if job.permit_key is not None:
                self.released[job.tenant_id, job.permit_key] += 1
        await self.fill_permits()

    async def _owe_callbacks(self, over: Sequence[Over], settled_later: Sequence[UUID]) -> None:
        tenants = list({job.tenant_id for job in over})
        if settled_later:
            await self._connection.execute(
                QUERIES["tell_settled"], settled_later, self.now, tenants
            )
        owed = [job.id for job in over if job.callback_url is not None and not job.has_family]
        if owed or settled_later:
            await self._connection.execute(
                QUERIES["owe_callbacks"], [*owed, *settled_later], self.now, tenants
            )


def over_from(row: asyncpg.Record, state: JobState, *, held_permit: bool) -> Over:
    """Read what is tied to a job from a row of finish_held or finish_waiting."""
    return Over(
        id=row["id"],
        tenant_id=TenantId(row["tenant_id"]),
        state=state,
        unique_key=row["unique_key"],
        permit_key=row["concurrency_key"] if held_permit else None,
        has_dependents=row["has_dependents"],
        has_family=row["has_family"],
        lineage=row["lineage"],
        callback_url=row["callback_url"],
    )


def verdict_on_parent(policy: OnParentFailure, parent_id: UUID, state: JobState) -> Verdict | None:
    """How a job ends because a parent did; None when the parent is simply done."""
    if state is JobState.SUCCEEDED or policy is OnParentFailure.RUN:
        return None
    own = JobState.CANCELLED if policy is OnParentFailure.CANCEL else JobState.FAILED
    detail = f"job {parent_id}, on which this one depends, is {state}"
    return Verdict(own, Problem("parent_failed", detail, retryable=False))
