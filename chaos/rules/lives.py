"""A job's life: it is in one place, its attempts only grow, its end is told once."""

from collections import Counter
from collections.abc import Iterator

from chaos.facts import Facts
from chaos.history import StoredJob
from chaos.violation import Violation
from jobs.states import JobState

_SUCCEEDED = f"job.{JobState.SUCCEEDED}"


def live_jobs_are_in_one_place(facts: Facts) -> Iterator[Violation]:
    """Scheduled, queued or running, and nothing else."""
    for job in facts.live:
        if len(job.places) != 1:
            places = " and ".join(job.places) or "no narrow table"
            yield Violation("misplaced", f"lives in {places}", (job.id,))
    for place, job_id in facts.history.orphans:
        yield Violation("orphan", f"is in {place} without being live", (job_id,))


def jobs_are_live_or_over(facts: Facts) -> Iterator[Violation]:
    """A job has one row, in `jobs` or in `history`."""
    rows = Counter(job.id for job in facts.history.jobs)
    for job_id, count in rows.items():
        if count > 1:
            ends = sum(1 for job in facts.ended if job.id == job_id)
            detail = f"has {count} rows, {ends} of them in history"
            yield Violation("live-and-over", detail, (job_id,))


def ends_are_told_once(facts: Facts) -> Iterator[Violation]:
    """One terminal event a life, written by the transaction that ended it."""
    for job in facts.ended:
        types = {event.type for event in facts.ends[job.id] if event.xid == job.xid}
        if types != {f"job.{job.state}"}:
            told_of = ", ".join(sorted(types)) or "nothing"
            detail = f"is {job.state}, and the transaction that ended it told {told_of}"
            yield Violation("end-untold", detail, (job.id,))
    for job in facts.jobs.values():
        told = Counter(event.xid for event in facts.ends[job.id])
        lives = facts.lives_max(job) - (not job.is_terminal)
        if len(told) > lives or any(count > 1 for count in told.values()):
            detail = f"ended {told.total()} times in {len(told)} transactions and {lives} lives"
            yield Violation("end-told-twice", detail, (job.id,))
        elif (successes := _successes_told(facts, job)) > (had := _successes(facts, job)):
            # Whatever clients may have asked for: a retry keeps the attempt that it undoes.
            detail = f"was told to have succeeded {successes} times, by {had} attempts"
            yield Violation("success-told-twice", detail, (job.id,))


def _successes_told(facts: Facts, job: StoredJob) -> int:
    return sum(1 for event in facts.ends[job.id] if event.type == _SUCCEEDED)


def _successes(facts: Facts, job: StoredJob) -> int:
    return sum(1 for _, outcome in facts.outcomes[job.id] if outcome == JobState.SUCCEEDED)


def settling_is_told_once(facts: Facts) -> Iterator[Violation]:
    """A job settles when it and its family are over; again only when one of them was retried."""
    unsettled = {family.job_id for family in facts.history.families if not family.is_settled}
    family_retries = Counter[object]()
    for job in facts.history.jobs:
        for ancestor in job.lineage:
            family_retries[ancestor] += facts.lives_max(job) - 1
    for job in facts.jobs.values():
        told = facts.settled[job.id]
        if job.is_terminal and job.id not in unsettled and not told:
            yield Violation("settled-untold", "is settled, and no event says so", (job.id,))
        lives = facts.lives_max(job) + family_retries[job.id]
        if told > lives:
            detail = f"was told settled {told} times in at most {lives} lives"
            yield Violation("settled-twice", detail, (job.id,))


def attempts_only_grow(facts: Facts) -> Iterator[Violation]:
    """An attempt's number is given once, to the next one."""
    for job_id, outcomes in facts.outcomes.items():
        numbers = [number for number, _ in outcomes]
        if numbers != sorted(set(numbers)):
            yield Violation("attempts-not-growing", f"has attempts {numbers}", (job_id,))
    for job in facts.jobs.values():
        ended = [number for number, outcome in facts.outcomes[job.id] if outcome != "running"]
        if ended and max(ended) > job.attempt:
            detail = f"counts {job.attempt} attempts, and attempt {max(ended)} has ended"
            yield Violation("attempts-miscounted", detail, (job.id,))


def failures_keep_to_the_budget(facts: Facts) -> Iterator[Violation]:
    """max_attempts counts failures."""
    for job in facts.history.jobs:
        if job.failures > job.max_attempts or (not job.is_terminal and _is_spent(job)):
            detail = f"failed {job.failures} times, allowed {job.max_attempts}"
            yield Violation("over-budget", f"is {job.state}, {detail}", (job.id,))


def _is_spent(job: StoredJob) -> bool:
    return job.failures >= job.max_attempts


RULES = (
    live_jobs_are_in_one_place,
    jobs_are_live_or_over,
    ends_are_told_once,
    settling_is_told_once,
    attempts_only_grow,
    failures_keep_to_the_budget,
)
