"""Keys and ties between jobs: permits, unique keys, dependencies, families."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from uuid import UUID

from chaos.facts import NEVER, Facts
from chaos.history import StoredJob
from chaos.violation import Violation
from jobs.model import TenantId
from jobs.states import JobState

_PERMITTED = frozenset({JobState.QUEUED, JobState.RUNNING})


def permits_are_counted(facts: Facts) -> Iterator[Violation]:
    """A permit is held by every queued or running job of its key, and by nobody else."""
    using = {key: _in_state(jobs, *_PERMITTED) for key, jobs in facts.by_key.items()}
    known = {(limit.tenant_id, limit.key): limit for limit in facts.history.limits}
    for key, limit in known.items():
        ids = using.get(key, ())
        if limit.in_use != len(ids):
            detail = f"key {limit.key!r} counts {limit.in_use} permits, {len(ids)} jobs hold one"
            yield Violation("permits-miscounted", detail, ids)
    for (tenant_id, name), ids in using.items():
        if ids and (tenant_id, name) not in known:
            yield Violation("permits-uncounted", f"key {name!r} has no limit row", ids)


def permits_do_not_lie_idle(facts: Facts) -> Iterator[Violation]:
    """Nobody waits for a permit that is free."""
    for limit in facts.history.limits:
        jobs = facts.by_key[limit.tenant_id, limit.key]
        waiting = tuple(job.id for job in jobs if job.parked_for == "limit")
        if waiting and limit.in_use < limit.concurrency:
            detail = f"key {limit.key!r} has {limit.concurrency - limit.in_use} permits free"
            yield Violation("permit-idle", f"{detail}, {len(waiting)} jobs wait", waiting)


def _in_state(jobs: list[StoredJob], *states: JobState) -> tuple[UUID, ...]:
    return tuple(job.id for job in jobs if job.state in states)


def unique_keys_have_one_job(facts: Facts) -> Iterator[Violation]:
    """Never two live jobs hold one key."""
    holders: defaultdict[tuple[TenantId, str], list[UUID]] = defaultdict(list)
    for job in facts.live:
        if job.unique_key is not None and _claims_its_key(job):
            holders[job.tenant_id, job.unique_key].append(job.id)
    for (_, key), ids in holders.items():
        if len(ids) > 1:
            detail = f"key {key!r} has {len(ids)} live jobs"
            yield Violation("unique-twice", detail, tuple(ids))


def _claims_its_key(job: StoredJob) -> bool:
    """Whether nobody else may have its key. `started` may have been let go by any attempt."""
    waits_for_the_first_time = job.attempt == 0 and job.hold is None
    return job.unique_until == "finished" or (
        job.unique_until == "started" and waits_for_the_first_time
    )


def unique_keys_were_never_shared(facts: Facts) -> Iterator[Violation]:
    """As above, over time: between the answer to its submit and its end a job surely lived."""
    seen = {accepted.id: accepted.at for accepted in reversed(facts.log.accepted)}
    lives: defaultdict[tuple[TenantId, str], list[StoredJob]] = defaultdict(list)
    for job in facts.history.jobs:
        lived_once = facts.lives_max(job) == 1 and job.id in seen
        if lived_once and job.unique_key is not None and job.unique_until == "finished":
            lives[job.tenant_id, job.unique_key].append(job)
    for (_, key), jobs in lives.items():
        ordered = sorted(jobs, key=lambda job: seen[job.id])
        for first, second in pairwise(ordered):
            if (first.finished_at or NEVER) > seen[second.id] and not _is_live(first, second):
                detail = f"key {key!r} had two jobs at {seen[second.id]}"
                yield Violation("unique-shared", detail, (first.id, second.id))


def _is_live(*jobs: StoredJob) -> bool:
    """Whether these are live still, which another rule tells."""
    return not any(job.is_terminal for job in jobs)


def unique_keys_are_let_go(facts: Facts) -> Iterator[Violation]:
    """A key is held by a live job that wants it, and such a job holds it."""
    held = {(item.tenant_id, item.key): item for item in facts.history.unique_keys}
    for item in held.values():
        job = facts.jobs.get(item.job_id)
        if item.until != "time" and (job is None or job.is_terminal):
            detail = f"holds key {item.key!r} until it is {item.until}, and is not live"
            yield Violation("unique-leaked", detail, (item.job_id,))
    for job in facts.live:
        if job.unique_key is None or not _claims_its_key(job):
            continue
        if (job.tenant_id, job.unique_key) not in held:
            detail = f"lives, and nobody holds its key {job.unique_key!r}"
            yield Violation("unique-unheld", detail, (job.id,))


def dependents_are_counted(facts: Facts) -> Iterator[Violation]:
    """A job waits for live parents only, and for as many as it counts."""
    live = {job.id for job in facts.live}
    edges = Counter(child for _, child in facts.history.dependencies)
    for parent, child in facts.history.dependencies:
        if child in live and parent not in live:
            yield Violation(
                "waits-for-the-dead", "waits for a parent that is over", (child, parent)
            )
    for job in facts.live:
        if job.pending_parents != edges[job.id]:
            detail = f"counts {job.pending_parents} parents, waits for {edges[job.id]}"
            yield Violation("parents-miscounted", detail, (job.id,))
        if job.pending_parents and job.parked_for != "dependency":
            detail = f"is {job.state} while {job.pending_parents} parents live"
            yield Violation("did-not-wait", detail, (job.id,))


def families_are_counted(facts: Facts) -> Iterator[Violation]:
    """A family's counters are its descendants, and it is settled when all are over."""
    states: defaultdict[UUID, Counter[str]] = defaultdict(Counter)
    for job in facts.jobs.values():
        for ancestor in job.lineage:
            states[ancestor][job.state if job.is_terminal else "open"] += 1
    for family in facts.history.families:
        real = states[family.job_id]
        counted = {
            "open": family.open,
            "succeeded": family.succeeded,
            "failed": family.failed,
            "cancelled": family.cancelled,
        }
        if counted != {name: real[name] for name in counted} or family.total != real.total():
            detail = f"counts {counted} of {family.total}, has {dict(real)}"
            yield Violation("family-miscounted", detail, (family.job_id,))
        head = facts.jobs.get(family.job_id)
        is_over = head is not None and head.is_terminal and not real["open"]
        if family.is_settled != is_over:
            detail = f"is {'' if family.is_settled else 'not '}settled, {real['open']} live"
            yield Violation("family-settled-wrongly", detail, (family.job_id,))


RULES = (
    permits_are_counted,
    permits_do_not_lie_idle,
    unique_keys_have_one_job,
    unique_keys_were_never_shared,
    unique_keys_are_let_go,
    dependents_are_counted,
    families_are_counted,
)
