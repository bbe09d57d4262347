"""Batches: the counters are the jobs, and the end is told once a run."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from uuid import UUID

from chaos.facts import Facts
from chaos.history import StoredBatch
from chaos.violation import Violation
from jobs.states import LIVE_STATES, BatchState, JobState


def batches_count_their_jobs(facts: Facts) -> Iterator[Violation]:
    """Counts add up, the caller's jobs and those that they created."""
    own, follow_ups = _states(facts, is_follow_up=False), _states(facts, is_follow_up=True)
    for batch in facts.history.batches:
        for what, counts, real in (
            ("jobs", batch.counts, own[batch.id]),
            ("follow-ups", batch.follow_ups, follow_ups[batch.id]),
        ):
            expected = {"total": real.total()} | {str(state): real[state] for state in JobState}
            if asdict(counts) != expected:
                detail = f"its {what} are counted {asdict(counts)} and are {expected}"
                yield Violation("batch-miscounted", detail, (batch.id,))


def _states(facts: Facts, *, is_follow_up: bool) -> defaultdict[UUID, Counter[JobState]]:
    found: defaultdict[UUID, Counter[JobState]] = defaultdict(Counter)
    for job in facts.jobs.values():
        if job.batch_id is not None and (job.parent_id is not None) is is_follow_up:
            found[job.batch_id][job.state] += 1
    return found


def finished_batches_are_over(facts: Facts) -> Iterator[Violation]:
    """Nothing of a finished batch is live."""
    live = Counter(job.batch_id for job in facts.jobs.values() if job.state in LIVE_STATES)
    for batch in facts.history.batches:
        if batch.state is BatchState.FINISHED and live[batch.id]:
            detail = f"is finished with {live[batch.id]} live jobs"
            yield Violation("batch-finished-early", detail, (batch.id,))


def batches_finish_once_a_run(facts: Facts) -> Iterator[Violation]:
    """One batch.finished for every run that is over."""
    told: defaultdict[UUID | None, list[int | None]] = defaultdict(list)
    for event in facts.history.events:
        if event.type == "batch.finished":
            told[event.batch_id].append(event.run)
    for batch in facts.history.batches:
        if told[batch.id] != _runs_over(batch):
            detail = f"told the ends of runs {told[batch.id]}, ended {_runs_over(batch)}"
            yield Violation("batch-told-wrongly", detail, (batch.id,))


def _runs_over(batch: StoredBatch) -> list[int]:
    return list(range(1, batch.run + (batch.state is BatchState.FINISHED)))


RULES = (batches_count_their_jobs, finished_batches_are_over, batches_finish_once_a_run)
