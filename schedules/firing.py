"""Turns fires into jobs of the ledger and asks it how they stand. Always in the caller's
transaction.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from jobs import ledger, lookup
from jobs.enqueue import DEFAULT_AGEING_S
from jobs.errors import LedgerError
from jobs.kinds import KindRegistry
from jobs.model import Accepted, Job, NewJob, TenantId
from runtime.postgres import Connection
from schedules.model import Overlap, Schedule

DEDUPLICATED = "an earlier job holds the same unique key: it stands for this fire"


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What the ledger needs besides the jobs: the known kinds, the ageing of priorities, the
    moment.
    """

    kinds: KindRegistry
    now: datetime
    ageing_s: float = DEFAULT_AGEING_S


def job_of(schedule: Schedule) -> NewJob:
    """The job that a fire of this schedule makes.

    Under `queue` the jobs of a schedule wait for each other by a concurrency key of their own,
    unless the user gave them one.
    """
    job = replace(schedule.spec.job, schedule_id=schedule.id)
    if schedule.spec.overlap is Overlap.QUEUE and job.concurrency_key is None:
        return replace(job, concurrency_key=f"schedule:{schedule.id}")
    return job


async def enqueue(
    connection: Connection, tenant_id: TenantId, jobs: Sequence[NewJob], how: Acceptance
) -> list[Accepted]:
    """Enqueue all of the jobs or none; raises what the ledger raises."""
    return await ledger.enqueue(
        connection, tenant_id, jobs, kinds=how.kinds, now=how.now, ageing_s=how.ageing_s
    )


async def enqueue_each(
    connection: Connection, schedules: Sequence[Schedule], how: Acceptance
) -> list[Accepted | LedgerError]:
    """One job for each schedule given (one may be given several times), in their order.

    A refused one answers with the ledger's error, and does not keep the others from being accepted.
    """
    answers: dict[int, Accepted | LedgerError] = {}
    by_tenant: dict[TenantId, list[int]] = defaultdict(list)
    for position, schedule in enumerate(schedules):
        by_tenant[schedule.tenant_id].append(position)
    for tenant_id, positions in by_tenant.items():
        jobs = [job_of(schedules[position]) for position in positions]
        made = await _enqueue_willing(connection, tenant_id, jobs, how)
        answers.update(zip(positions, made, strict=True))
    return [answers[position] for position in range(len(schedules))]


async def _enqueue_willing(
    connection: Connection, tenant_id: TenantId, jobs: Sequence[NewJob], how: Acceptance
) -> Sequence[Accepted | LedgerError]:
    """All at once, in a savepoint; after a refusal one by one, so that a bad one fails alone."""
    try:
        async with connection.transaction():
            return await enqueue(connection, tenant_id, jobs, how)
    except LedgerError as error:
        if len(jobs) == 1:
            return [error]
    each = [await _enqueue_willing(connection, tenant_id, [job], how) for job in jobs]
    return [answer for (answer,) in each]


async def standing(
    connection: Connection, owned: Iterable[tuple[TenantId, UUID]]
) -> dict[UUID, Job | None]:
    """How jobs stand, by id; None for one that retention has dropped already."""
    by_tenant: dict[TenantId, list[UUID]] = defaultdict(list)
    for tenant_id, job_id in owned:
        by_tenant[tenant_id].append(job_id)
    found: dict[UUID, Job | None] = {}
    for tenant_id, ids in by_tenant.items():
        found |= dict.fromkeys(ids)
        found |= {job.id: job for job in await lookup.get_many(connection, tenant_id, ids)}
    return found
