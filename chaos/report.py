"""What a run has found, for people and for programs: the same facts in both."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from statistics import quantiles
from uuid import UUID

from chaos.faults import Injected
from chaos.history import History
from chaos.plan import MEANINGS
from chaos.run import Measured, Outcome
from chaos.violation import Violation
from jobs.model import JsonValue

type Document = dict[str, JsonValue]

# Whole stories are long: the first jobs that a rule names are told, the others only named.
STORIES_MAX = 10


def as_json(outcome: Outcome) -> Document:
    """The whole report as one document."""
    order = outcome.order
    return {
        "seed": order.seed,
        "jobs": order.jobs,
        "minutes": order.minutes,
        "began_at": _moment(outcome.began_at),
        "took_s": round(outcome.took_s, 1),
        "is_clean": outcome.is_clean,
        "violations": [_violation(outcome, found) for found in outcome.violations],
        "faults": [_fault(outcome, injected) for injected in outcome.injected],
        "counts": _counts(outcome),
        "latencies": _latencies(outcome.measured),
        "rates": _rates(outcome),
    }


def as_text(outcome: Outcome) -> str:
    """The report to read: what happened, what is left, what is wrong."""
    return "\n".join(_lines(outcome)) + "\n"


def _lines(outcome: Outcome) -> Iterator[str]:
    order = outcome.order
    yield f"xnai chaos --seed {order.seed}: {order.jobs} jobs, {outcome.took_s:.0f} s"
    yield ""
    yield "Faults (seconds since the first; recovered: the first new job finished after it)"
    yield from _timeline(outcome)
    yield ""
    yield "What is left"
    for name, value in _counts(outcome).items():
        yield f"  {name.replace('_', ' '):<28} {_plain(value)}"
    yield ""
    yield "How fast"
    for name, value in {**_latencies(outcome.measured), **_rates(outcome)}.items():
        yield f"  {name.replace('_', ' '):<28} {_plain(value)}"
    yield ""
    if outcome.is_clean:
        yield "No promise was broken."
        return
    yield f"{len(outcome.violations)} broken promises"
    for found in outcome.violations:
        yield f"  {found.code}: {found.detail}"
    for job_id in _told(outcome.violations):
        yield ""
        yield f"Job {job_id}"
        yield from (f"  {line}" for line in story(outcome.history, job_id))


def story(history: History, job_id: UUID) -> list[str]:
    """All that is known of one job, in the order of time."""
    known = [
        *_client_side(history, job_id),
        *_store_side(history, job_id),
        *_runs(history, job_id),
    ]
    effects = [e for e in history.log.effects if e.job_id == job_id]
    lines = [f"{_moment(at)}  {text}" for at, text in sorted(known)]
    return [*lines, *(f"effect of attempt {e.attempt}, token {e.token}" for e in effects)]


def _client_side(history: History, job_id: UUID) -> Iterator[tuple[datetime, str]]:
    log = history.log
    batch_id = next((job.batch_id for job in history.jobs if job.id == job_id), None)
    for accepted in log.accepted:
        if accepted.id == job_id:
            yield accepted.at, f"accepted, Idempotency-Key {accepted.idempotency_key}"
    for cancelled in log.cancelled:
        if cancelled.id == job_id:
            yield cancelled.at, f"cancel answered, over already: {cancelled.was_waiting}"
    for retried in log.retried:
        if retried.id in {job_id, batch_id}:
            what = "retry" if retried.id == job_id else "retry of its batch"
            how = "answered" if retried.at is not None else "without an answer"
            yield retried.asked_at, f"{what} asked for, {how}"


def _store_side(history: History, job_id: UUID) -> Iterator[tuple[datetime, str]]:
    for job in history.jobs:
        if job.id == job_id:
            where = ", ".join(job.places) or "history"
            yield job.created_at, f"created; now {job.state} in {where}, attempt {job.attempt}"
            if job.finished_at is not None:
                yield job.finished_at, f"finished: {job.state}, {job.failures} failures"
    for attempt in history.attempts:
        if attempt.job_id == job_id:
            yield attempt.finished_at, f"attempt {attempt.attempt} ended: {attempt.outcome}"
    for event in history.events:
        if event.job_id == job_id:
            yield event.at, f"event {event.type}"


def _runs(history: History, job_id: UUID) -> Iterator[tuple[datetime, str]]:
    for run in history.log.runs:
        if run.job_id != job_id:
            continue
        who = f"attempt {run.attempt}, token {run.token}, slot {run.slot_id}"
        yield run.began_at, f"handler began: {who}"
        if run.ended_at is not None:
            yield run.ended_at, f"handler ended: {who}"
        died_at = history.slots.get(run.slot_id)
        if died_at is not None:
            yield died_at, f"slot {run.slot_id} declared dead"


def _told(violations: Iterable[Violation]) -> list[UUID]:
    named = dict.fromkeys(found for violation in violations for found in violation.ids)
    return list(named)[:STORIES_MAX]


def _timeline(outcome: Outcome) -> Iterator[str]:
    for injected in outcome.injected:
        fault = injected.step.fault
        head = f"  {injected.step.at_s:6.1f}  {fault:<20}"
        if injected.skipped is not None:
            yield f"{head} not injected: {injected.skipped}"
            continue
        lasted_s = (injected.ended_at - injected.began_at).total_seconds()
        recovered_s = outcome.measured.recovery_s.get(injected.step.number)
        back = "-" if recovered_s is None else f"{recovered_s:.1f} s"
        lasting = f", {lasted_s:.1f} s" if injected.step.lasts_s else ""
        yield f"{head} {injected.target}{lasting}; recovered after {back}"


def _violation(outcome: Outcome, found: Violation) -> Document:
    told = set(_told(outcome.violations))
    stories: Document = {
        str(job_id): list(story(outcome.history, job_id)) for job_id in found.ids if job_id in told
    }
    return {
        "code": found.code,
        "detail": found.detail,
        "ids": [str(job_id) for job_id in found.ids],
        "stories": stories,
    }


def _fault(outcome: Outcome, injected: Injected) -> Document:
    return {
        "at_s": injected.step.at_s,
        "fault": str(injected.step.fault),
        "meaning": MEANINGS[injected.step.fault],
        "target": injected.target,
        "lasted_s": round((injected.ended_at - injected.began_at).total_seconds(), 2),
        "not_injected": injected.skipped,
        "recovered_after_s": _rounded(outcome.measured.recovery_s.get(injected.step.number)),
    }


def _counts(outcome: Outcome) -> Document:
    history = outcome.history
    states = Counter(str(job.state) for job in history.jobs)
    outcomes = Counter(attempt.outcome for attempt in history.attempts)
    places = Counter(callback.place for callback in history.callbacks)
    return {
        "jobs": len(history.jobs),
        **{f"jobs_{state}": count for state, count in sorted(states.items())},
        **{f"attempts_{ended}": count for ended, count in sorted(outcomes.items())},
        "accepted_singly": len(history.log.accepted),
        "accepted_batches": len(history.log.batches),
        "requests_repeated": outcome.measured.repeated_requests,
        "submits_never_answered": len(history.log.unanswered),
        "cancels_answered": len(history.log.cancelled),
        "handlers_run": len(history.log.runs),
        "effects": len(history.log.effects),
        "slots_started": len(history.slots),
        "webhooks_received": len(history.log.webhooks),
        **{f"callbacks_{place}": count for place, count in sorted(places.items())},
    }


def _latencies(measured: Measured) -> Document:
    return {
        "submit_ms": _spread(measured.submit_s),
        "start_ms": _spread(measured.start_s),
        "settled_after_faults_s": _rounded(measured.settled_in_s),
    }


def _spread(seconds: Sequence[float]) -> Document | None:
    if len(seconds) < 2:
        return None
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {
        "p50": round(cuts[49] * 1000, 1),
        "p99": round(cuts[98] * 1000, 1),
        "max": round(max(seconds) * 1000, 1),
    }


def _rates(outcome: Outcome) -> Document:
    rates = outcome.measured.rates
    return {
        "drained_per_s_fault_free": [round(rate) for rate in rates.fault_free],
        "drained_per_s_recovered": [round(rate) for rate in rates.recovered],
        "recovered_share": _rounded(rates.share),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _plain(value: JsonValue) -> str:
    match value:
        case None:
            return "-"
        case dict():
            return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
        case list() | tuple():
            return " ".join(_plain(one) for one in value)
        case _:
            return f"{value}"


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
