"""What really ran: a live owner's job never twice at once, an effect once, nobody after a cancel.

Handlers stamp their own begin and end; the ledger's clock must be the same machine's.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from uuid import UUID

from chaos.facts import NEVER, Facts
from chaos.history import Effect, Run
from chaos.violation import Violation
from jobs.model import Token
from jobs.states import JobState


def nobody_runs_beside_a_live_owner(facts: Facts) -> Iterator[Violation]:
    """The next run of a job begins when the one before has ended or its slot was declared dead."""
    for job_id, runs in facts.runs.items():
        for first, second in pairwise(runs):
            if second.began_at < facts.run_end(first):
                detail = (
                    f"attempt {second.attempt} began on slot {second.slot_id} while attempt "
                    f"{first.attempt} ran on slot {first.slot_id}, which lived"
                )
                yield Violation("ran-twice-at-once", detail, (job_id,))


def tokens_are_given_once(facts: Facts) -> Iterator[Violation]:
    """A token names one attempt of one job, and an attempt has one token."""
    attempts: defaultdict[Token, set[tuple[UUID, int]]] = defaultdict(set)
    tokens: defaultdict[tuple[UUID, int], set[Token]] = defaultdict(set)
    for job_id, attempt, token in _tokens(facts):
        attempts[token].add((job_id, attempt))
        tokens[job_id, attempt].add(token)
    for token, named in attempts.items():
        if len(named) > 1:
            ids = tuple(sorted({job_id for job_id, _ in named}))
            yield Violation("token-given-twice", f"token {token} has {len(named)} attempts", ids)
    for (job_id, attempt), given in tokens.items():
        if len(given) > 1:
            detail = f"attempt {attempt} has tokens {sorted(given)}"
            yield Violation("attempt-given-twice", detail, (job_id,))


def _tokens(facts: Facts) -> Iterator[tuple[UUID, int, Token]]:
    seen_all: tuple[Run | Effect, ...] = (*facts.log.runs, *facts.log.effects)
    for seen in seen_all:
        yield seen.job_id, seen.attempt, seen.token
    for job in facts.live:
        if job.hold is not None:
            yield job.id, job.hold.attempt, job.hold.token


def runs_belong_to_attempts(facts: Facts) -> Iterator[Violation]:
    """Whatever ran was an attempt that the ledger gave and remembers."""
    for job_id, runs in facts.runs.items():
        known = {number for number, _ in facts.outcomes[job_id]}
        strange = sorted({run.attempt for run in runs} - known)
        if strange and job_id in facts.jobs:
            detail = f"ran as attempts {strange}, the ledger knows {sorted(known)}"
            yield Violation("attempt-unknown", detail, (job_id,))


def effects_happen_once(facts: Facts) -> Iterator[Violation]:
    """Each success has one effect, that of the attempt which the ledger calls successful."""
    by_job: defaultdict[UUID, list[Effect]] = defaultdict(list)
    for effect in facts.log.effects:
        by_job[effect.job_id].append(effect)
    for job_id, effects in by_job.items():
        job = facts.jobs.get(job_id)
        lives = 1 if job is None else facts.lives_max(job)
        if len(effects) > lives:
            tokens = [effect.token for effect in effects]
            detail = f"has {len(effects)} effects in at most {lives} lives, of tokens {tokens}"
            yield Violation("effect-twice", detail, (job_id,))
        succeeded = {n for n, outcome in facts.outcomes[job_id] if outcome == JobState.SUCCEEDED}
        if foreign := sorted({effect.attempt for effect in effects} - succeeded):
            detail = f"has effects of attempts {foreign}, which did not succeed"
            yield Violation("effect-of-a-loser", detail, (job_id,))
    for accepted in facts.log.accepted:
        job = facts.jobs.get(accepted.id)
        is_due = accepted.has_effect and job is not None and job.state is JobState.SUCCEEDED
        if is_due and job is not None and job.attempt not in _attempts(by_job[accepted.id]):
            yield Violation("effect-missing", "succeeded without its effect", (accepted.id,))


def _attempts(effects: list[Effect]) -> set[int]:
    return {effect.attempt for effect in effects}


def parents_end_first(facts: Facts) -> Iterator[Violation]:
    """A job does not begin before each parent has ended once, a retried one no sooner."""
    for accepted in facts.log.accepted:
        runs = facts.runs[accepted.id]
        for parent in accepted.depends_on if runs else ():
            ends = [event.at for event in facts.ends[parent]]
            if not ends or runs[0].began_at < min(ends):
                when = f"at {min(ends)}" if ends else "not yet"
                detail = f"began at {runs[0].began_at}, its parent ended {when}"
                yield Violation("ran-before-parent", detail, (accepted.id, parent))


def cancelled_jobs_stay_cancelled(facts: Facts) -> Iterator[Violation]:
    """A job that was answered as cancelled never runs again unless it is retried."""
    retried = _last_retries(facts)
    for cancelled in facts.log.cancelled:
        job = facts.jobs.get(cancelled.id)
        if not cancelled.was_waiting or job is None:
            continue
        over_at = [retried[key] for key in (job.id, job.batch_id) if key in retried]
        if any(at >= cancelled.asked_at for at in over_at):
            continue
        later = [run.attempt for run in facts.runs[job.id] if run.began_at > cancelled.at]
        if job.state is not JobState.CANCELLED or later:
            detail = f"was cancelled while it waited, ran later as {later}, and is {job.state}"
            yield Violation("cancel-undone", detail, (job.id,))


def _last_retries(facts: Facts) -> dict[UUID | None, datetime]:
    """Until when each job or batch may have been retried."""
    found: dict[UUID | None, datetime] = {}
    for retried in facts.log.retried:
        found[retried.id] = max(retried.at or NEVER, found.get(retried.id, retried.asked_at))
    return found


def limits_hold_at_every_moment(facts: Facts) -> Iterator[Violation]:
    """Never more jobs of a key run at once than some limit in force since they came allowed."""
    for (tenant_id, key), jobs in facts.by_key.items():
        runs = [run for job in {job.id: job for job in jobs}.values() for run in facts.runs[job.id]]
        for at, running in _peaks(facts, runs):
            since = min(facts.jobs[run.job_id].created_at for run in running)
            count = len({run.job_id for run in running})
            allowed = max(facts.limits_between(tenant_id, key, since, at))
            if count > allowed:
                detail = f"{count} jobs of key {key!r} ran at {at}, allowed {allowed}"
                ids = tuple(run.job_id for run in running)
                yield Violation("limit-exceeded", detail, ids)
                break


def _peaks(facts: Facts, runs: list[Run]) -> Iterator[tuple[datetime, list[Run]]]:
    """Who runs whenever another one begins; at the same instant, ends come first."""
    running: list[Run] = []
    for run in sorted(runs, key=lambda run: run.began_at):
        running = [other for other in running if facts.run_end(other) > run.began_at]
        running.append(run)
        yield run.began_at, running


RULES = (
    nobody_runs_beside_a_live_owner,
    tokens_are_given_once,
    runs_belong_to_attempts,
    effects_happen_once,
    parents_end_first,
    cancelled_jobs_stay_cancelled,
    limits_hold_at_every_moment,
)
