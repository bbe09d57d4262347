"""Decides what the end of an attempt means for its job. Pure: no database, no clock."""

import random
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple, assert_never

import orjson

from jobs.model import ClaimedJob, JsonValue, NewJob
from jobs.outcomes import Backoff, Cancelled, Completed, Ending, Failed, Problem, Released
from jobs.results import Ended
from jobs.states import JobState

RESULT_BYTES_MAX = 1024 * 1024
DETAIL_CHARS_MAX = 16_384
LOSSES_MAX = 3
# A job that was lost this often runs alone (jobs/queries.sql compares with the same number).
LOSSES_ALONE = 2
# So many attempts may end with their supervisor or host, or in a drain, before that counts.
INTERRUPTIONS_FREE = 5
# What an ending of up to so many bytes keeps in memory is bounded by the number of endings.
_SMALL_BYTES = 4096


class Suspicion(Enum):
    """How likely a job was what ended its slot."""

    NONE = "it had not started, or the slot was ended from outside"
    VAGUE = "its supervisor or host went with the slot"
    STRONG = "it had started, and the slot died by itself"


class Finish(NamedTuple):
    """The job is over. `result` and `error` are JSON text."""

    job: ClaimedJob
    waited_s: float
    state: JobState
    result: str | None = None
    error: str | None = None
    follow_ups: tuple[NewJob, ...] = ()


@dataclass(frozen=True, slots=True)
class BackOff:
    """The attempt failed and another one follows, `after_s` from now."""

    job: ClaimedJob
    waited_s: float
    problem: Problem
    after_s: float


@dataclass(frozen=True, slots=True)
class GiveBack:
    """The attempt does not count; the job is queued again where it stood."""

    job: ClaimedJob
    waited_s: float
    problem: Problem
    outcome: Literal["released", "lost"] = "released"


type Ruling = Finish | BackOff | GiveBack


def pack(job: ClaimedJob, ending: Ending, waited_s: float) -> Ended:
    """An ending as it may wait for its commit, in memory that is counted: the result as text, or as
    the failure that an unfit one is.
    """
    if isinstance(ending, Completed):
        text = _serialised(ending.result)
        if isinstance(text, Problem):
            return Ended(job, Failed(text), waited_s)
        if ending.follow_ups or (text is not None and len(text) > _SMALL_BYTES):
            return _pack_large(job, ending, waited_s, text)
        return Ended(job, ending, waited_s, text)
    if isinstance(ending, Failed) and len(ending.problem.detail) > _SMALL_BYTES:
        problem = ending.problem
        detail = problem.detail[:DETAIL_CHARS_MAX]
        ending = Failed(Problem(problem.type, detail, problem.retryable, problem.after_s))
        return Ended(job, ending, waited_s, size=len(detail))
    return Ended(job, ending, waited_s)


def _pack_large(job: ClaimedJob, ending: Completed, waited_s: float, text: bytes | None) -> Ended:
    size = len(text or b"")
    for follow_up in ending.follow_ups:
        # What cannot be serialised is refused when it is enqueued.
        with suppress(TypeError):
            size += len(orjson.dumps(follow_up.payload))
    return Ended(job, Completed(None, ending.follow_ups), waited_s, text, size)


def rule(ended: Ended, backoff: Backoff, rng: random.Random) -> Ruling:
    """What becomes of the job."""
    job, waited_s = ended.job, max(0.0, ended.waited_s)
    match ended.ending:
        case Completed(result, follow_ups):
            text = _serialised(result) if ended.text is None else ended.text
            if isinstance(text, Problem):
                return Finish(job, waited_s, JobState.FAILED, error=_as_text(text))
            stored = None if text is None else text.decode()
            return Finish(job, waited_s, JobState.SUCCEEDED, stored, None, follow_ups)
        case Failed(problem):
            return _fail(job, waited_s, problem, backoff=backoff, rng=rng)
        case Cancelled(reason):
            return cancelled(job, waited_s, reason)
        case Released(reason):
            return GiveBack(job, waited_s, Problem("released", _clean(reason)))
        case _:
            assert_never(ended.ending)


def cancelled(job: ClaimedJob, waited_s: float, reason: str = "cancelled by request") -> Finish:
    """The job ends as cancelled."""
    problem = Problem("cancelled", reason, retryable=False)
    return Finish(job, waited_s, JobState.CANCELLED, error=_as_text(problem))


def lost(job: ClaimedJob, suspicion: Suspicion, reason: str) -> Ruling:
    """What the death of its slot means for a job: a suspect pays with one of its three lives.

    Under a vague suspicion only a job that has been interrupted often pays: whatever takes its
    supervisor or host down each time must not be able to do so for ever (decision 0022).
    """
    interruptions = job.attempt - 1 - job.failures - job.losses
    is_often = suspicion is Suspicion.VAGUE and interruptions >= INTERRUPTIONS_FREE
    if suspicion is not Suspicion.STRONG and not is_often:
        return GiveBack(job, 0.0, Problem("released", reason))
    if job.losses + 1 < LOSSES_MAX:
        return GiveBack(job, 0.0, Problem("worker_lost", reason), "lost")
    detail = f"its worker died {LOSSES_MAX} times while it ran ({reason}): look at what it does"
    return Finish(
        job, 0.0, JobState.FAILED, error=_as_text(Problem("worker_lost", detail, retryable=False))
    )


def bad_result(job: ClaimedJob, waited_s: float, detail: str) -> Finish:
    """The job fails because what it returned cannot be stored."""
    return Finish(job, waited_s, JobState.FAILED, error=_as_text(_bad_result(detail)))


def _bad_result(detail: str) -> Problem:
    facts = f"what the handler returned cannot be stored: {detail}"
    return Problem("bad_result", facts, retryable=False)


def _serialised(result: JsonValue) -> bytes | Problem | None:
    """A result as JSON text; None for none, or why it cannot be stored."""
    if result is None:
        return None
    try:
        text = orjson.dumps(result)
    except TypeError as error:
        return _bad_result(str(error))
    if len(text) > RESULT_BYTES_MAX:
        detail = (
            f"the result has {len(text)} bytes, more than {RESULT_BYTES_MAX}: "
            "store it and return where it is"
        )
        return Problem("result_too_large", detail, retryable=False)
    return text


def _fail(
    job: ClaimedJob,
    waited_s: float,
    problem: Problem,
    *,
    backoff: Backoff,
    rng: random.Random,
) -> Ruling:
    failures = job.failures + 1
    if not problem.retryable or failures >= job.max_attempts:
        return Finish(job, waited_s, JobState.FAILED, error=_as_text(problem))
    cleaned = Problem(problem.type, _clean(problem.detail), retryable=True)
    return BackOff(job, waited_s, cleaned, backoff.pause_s(problem, failures, rng))


def _as_text(problem: Problem) -> str:
    cleaned = Problem(problem.type, _clean(problem.detail), problem.retryable)
    return orjson.dumps(cleaned.as_json()).decode()


def _clean(detail: str) -> str:
    """Postgres stores neither U+0000 nor half a surrogate pair, and nobody reads a megabyte."""
    shortened = detail[:DETAIL_CHARS_MAX].replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return shortened.encode("utf-8", "replace").decode()
