"""Accepted is kept: nothing is lost, nothing invented, and a request has one effect."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from uuid import UUID

from chaos.facts import Facts
from chaos.history import AcceptedBatch, AcceptedJob
from chaos.violation import Violation


def accepted_jobs_exist(facts: Facts) -> Iterator[Violation]:
    """What was answered with 202 is live or terminal."""
    for job_id in dict.fromkeys(accepted.id for accepted in facts.log.accepted):
        if job_id not in facts.jobs:
            yield Violation("lost-job", "was accepted and is neither live nor terminal", (job_id,))


def accepted_batches_are_whole(facts: Facts) -> Iterator[Violation]:
    """A batch holds as many jobs as were accepted with it."""
    known = {batch.id: batch for batch in facts.history.batches}
    sizes = Counter(job.batch_id for job in facts.history.jobs if job.parent_id is None)
    for accepted in facts.log.batches:
        if accepted.id not in known:
            yield Violation("lost-batch", f"of {accepted.jobs} jobs is unknown", (accepted.id,))
        elif sizes[accepted.id] != accepted.jobs:
            detail = f"was accepted with {accepted.jobs} jobs and has {sizes[accepted.id]}"
            yield Violation("batch-size", detail, (accepted.id,))


def nothing_is_invented(facts: Facts) -> Iterator[Violation]:
    """Every job was submitted, created by a job, or fired by a schedule."""
    if not facts.log.is_complete:
        return
    batches = {batch.id for batch in facts.log.batches}
    known = {accepted.id for accepted in facts.log.accepted} | _answered_unread(facts)
    strange = [
        job.id
        for job in facts.history.jobs
        if job.parent_id is None and job.schedule_id is None
        if job.id not in known and job.batch_id not in batches and job.batch_id not in known
    ]
    unread = sum(item.jobs for item in facts.log.unanswered if item.idempotency_key is None)
    if len(strange) > unread:
        detail = f"{len(strange)} jobs that nobody submitted, {unread} submits without an answer"
        yield Violation("invented-job", detail, tuple(strange))


def _answered_unread(facts: Facts) -> set[UUID]:
    """What the stored answers to those requests name whose answer was not read."""
    keys = {item.idempotency_key for item in facts.log.unanswered}
    return {
        item.subject
        for item in facts.history.requests
        if item.key in keys and item.subject is not None
    }


def one_request_one_effect(facts: Facts) -> Iterator[Violation]:
    """An Idempotency-Key names one job or batch, for clients and in the stored answer."""
    named: defaultdict[str, set[UUID]] = defaultdict(set)
    answers: tuple[AcceptedJob | AcceptedBatch, ...] = (*facts.log.accepted, *facts.log.batches)
    for accepted in answers:
        if accepted.idempotency_key is not None:
            named[accepted.idempotency_key].add(accepted.id)
    stored = {item.key: item.subject for item in facts.history.requests}
    for key, ids in named.items():
        subject = stored.get(key)
        every = ids if subject is None else ids | {subject}
        if len(every) > 1:
            detail = f"Idempotency-Key {key!r} was answered with {len(every)} of them"
            yield Violation("request-twice", detail, tuple(sorted(every)))


def stored_answers_are_true(facts: Facts) -> Iterator[Violation]:
    """A stored answer, which a repeat would be given, names what exists."""
    ours = {item.idempotency_key for item in facts.log.accepted}
    ours |= {item.idempotency_key for item in facts.log.unanswered}
    batches = {batch.id for batch in facts.history.batches}
    for item in facts.history.requests:
        subject = item.subject
        if item.key in ours and subject is not None and subject not in facts.jobs.keys() | batches:
            detail = f"is the stored answer to Idempotency-Key {item.key!r} and does not exist"
            yield Violation("lost-answer", detail, (subject,))


RULES = (
    accepted_jobs_exist,
    accepted_batches_are_whole,
    nothing_is_invented,
    one_request_one_effect,
    stored_answers_are_true,
)
