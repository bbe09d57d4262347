"""Each broken promise by the smallest history that shows it, and nothing else is reported."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from chaos.checker import check, report
from chaos.history import (
    AcceptedBatch,
    AcceptedJob,
    Cancelled,
    ClientLog,
    Effect,
    History,
    Hold,
    IndexFinding,
    LimitSet,
    ReceivedWebhook,
    Retried,
    Run,
    StoredAttempt,
    StoredBatch,
    StoredCallback,
    StoredEvent,
    StoredFamily,
    StoredJob,
    StoredLimit,
    StoredRequest,
    StoredUniqueKey,
    Unanswered,
)
from jobs.model import DEFAULT_TENANT, Counts, SlotId, Token
from jobs.states import BatchState, JobState
from tests.support.repository import sources

START = datetime(2026, 1, 1, tzinfo=UTC)
SLOT, OTHER_SLOT = SlotId(1), SlotId(2)
URL = "http://127.0.0.1:9/hook"
BATCH = UUID(int=100)
HOOK, OTHER_HOOK, ENDPOINT = UUID(int=200), UUID(int=201), UUID(int=300)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def job_id(number: int) -> UUID:
    return UUID(int=number)


QUEUED = StoredJob(
    id=job_id(1),
    tenant_id=DEFAULT_TENANT,
    state=JobState.QUEUED,
    created_at=at(0),
    max_attempts=3,
    attempt=0,
    failures=0,
    places=("ready",),
)
WAITING = replace(QUEUED, state=JobState.SCHEDULED, places=("parked",), parked_for="delayed")
RUNNING = replace(
    QUEUED, state=JobState.RUNNING, places=("held",), hold=Hold(SLOT, Token(11), attempt=1)
)
DONE = replace(
    QUEUED,
    state=JobState.SUCCEEDED,
    places=(),
    attempt=1,
    started_at=at(1),
    finished_at=at(2),
    xid=1001,
)
BATCH_OF_NONE = StoredBatch(BATCH, BatchState.RUNNING, 1, Counts(), Counts())


def numbered(job: StoredJob, number: int) -> StoredJob:
    return replace(job, id=job_id(number), xid=None if job.xid is None else 1000 + number)


def end_of(job: StoredJob) -> StoredEvent:
    assert job.xid is not None
    assert job.finished_at is not None
    return StoredEvent(job.xid, job.finished_at, f"job.{job.state}", job.id, settled=True)


def run_of(
    job: StoredJob,
    began_s: float,
    ended_s: float | None,
    *,
    attempt: int = 1,
    token: int | None = None,
    slot: SlotId = SLOT,
) -> Run:
    return Run(
        job.id,
        Token(job.id.int * 10 + attempt if token is None else token),
        attempt,
        slot,
        at(began_s),
        None if ended_s is None else at(ended_s),
    )


def left(*jobs: StoredJob, log: ClientLog | None = None, **facts: object) -> History:
    """These jobs, their ends told as they should be, and a log that knows of them."""
    events = tuple(end_of(job) for job in jobs if job.is_terminal)
    log = log or ClientLog()
    if not log.accepted:
        own = (job for job in jobs if job.parent_id is None)
        log = replace(log, accepted=tuple(AcceptedJob(job.id, at(0.5)) for job in own))
    rows: dict[str, object] = {"events": events, **facts}
    return History(log=log, jobs=jobs, **rows)  # type: ignore[arg-type]  # fields by name


def webhook(place: str = "delivered", **fields: object) -> StoredCallback:
    given: dict[str, object] = {
        "id": HOOK,
        "place": place,
        "type": "job.settled",
        "url": URL,
        "occurred_at": at(2),
        "subject": DONE.id,
        "endpoint_id": ENDPOINT,
        **fields,
    }
    return StoredCallback(**given)  # type: ignore[arg-type]  # fields by name


def arrived(**fields: object) -> ReceivedWebhook:
    given = {"webhook_id": HOOK, "type": "job.settled", "subject": DONE.id, "is_signed": True}
    return ReceivedWebhook(**{**given, **fields})  # type: ignore[arg-type]  # fields by name


SECOND = numbered(DONE, 2)
RETRIED = ClientLog(retried=(Retried(DONE.id, at(3)),))
KEYED = replace(DONE, concurrency_key="k")
UNIQUE = replace(QUEUED, unique_key="u", unique_until="finished")
UNIQUE_DONE = replace(DONE, unique_key="u", unique_until="finished")
HELD_KEY = StoredUniqueKey(DEFAULT_TENANT, "u", UNIQUE.id, "finished")
CHILD = replace(WAITING, id=job_id(2), pending_parents=1, parked_for="dependency")
FOLLOW_UP = replace(
    numbered(DONE, 2), parent_id=job_id(1), lineage=(job_id(1),), created_at=at(1.5)
)
FAMILY = StoredFamily(
    job_id(1), open=0, total=1, succeeded=1, failed=0, cancelled=0, is_settled=True
)
LIMIT = StoredLimit(DEFAULT_TENANT, "k", concurrency=1, in_use=0)

BROKEN: Mapping[str, History] = {
    "lost-job": left(log=ClientLog(accepted=(AcceptedJob(job_id(9), at(0)),))),
    "lost-batch": left(log=ClientLog(batches=(AcceptedBatch(BATCH, at(0), 3),))),
    "batch-size": left(
        log=ClientLog(batches=(AcceptedBatch(BATCH, at(0), 3),)), batches=(BATCH_OF_NONE,)
    ),
    "invented-job": left(DONE, SECOND, log=ClientLog(accepted=(AcceptedJob(DONE.id, at(0)),))),
    "request-twice": left(
        DONE,
        SECOND,
        log=ClientLog(
            accepted=(AcceptedJob(DONE.id, at(0), "key"), AcceptedJob(SECOND.id, at(1), "key"))
        ),
    ),
    "lost-answer": left(
        log=ClientLog(unanswered=(Unanswered(at(0), idempotency_key="key"),)),
        requests=(StoredRequest("key", job_id(9)),),
    ),
    "misplaced": left(replace(QUEUED, places=("ready", "held"))),
    "orphan": left(orphans=(("ready", job_id(9)),)),
    "live-and-over": left(QUEUED, DONE),
    "end-untold": left(DONE, events=(replace(end_of(DONE), type="job.failed"),)),
    "end-told-twice": left(
        DONE, events=(replace(end_of(DONE), xid=7, settled=False), end_of(DONE))
    ),
    "success-told-twice": left(
        DONE, log=RETRIED, events=(replace(end_of(DONE), xid=7, settled=False), end_of(DONE))
    ),
    "settled-untold": left(DONE, events=(replace(end_of(DONE), settled=False),)),
    "settled-twice": left(
        DONE, events=(end_of(DONE), StoredEvent(1002, at(3), "job.settled", DONE.id))
    ),
    "attempts-not-growing": left(DONE, attempts=(StoredAttempt(DONE.id, 1, "lost", at(1)),)),
    "attempts-miscounted": left(QUEUED, attempts=(StoredAttempt(QUEUED.id, 1, "lost", at(1)),)),
    "over-budget": left(replace(QUEUED, failures=3)),
    "ran-twice-at-once": left(
        replace(DONE, attempt=2),
        log=ClientLog(
            runs=(run_of(DONE, 1, 9), run_of(DONE, 2, 3, attempt=2, slot=OTHER_SLOT)),
        ),
        attempts=(StoredAttempt(DONE.id, 1, "lost", at(1.5)),),
        slots={SLOT: at(2.5), OTHER_SLOT: None},
    ),
    "token-given-twice": left(
        DONE,
        SECOND,
        log=ClientLog(runs=(run_of(DONE, 1, 2, token=5), run_of(SECOND, 1, 2, token=5))),
    ),
    "attempt-given-twice": left(
        DONE, log=ClientLog(runs=(run_of(DONE, 1, 2, token=5), run_of(DONE, 2, 3, token=6)))
    ),
    "attempt-unknown": left(DONE, log=ClientLog(runs=(run_of(DONE, 1, 2, attempt=4),))),
    "effect-twice": left(
        DONE, log=ClientLog(effects=(Effect(DONE.id, Token(11), 1), Effect(DONE.id, Token(11), 1)))
    ),
    "effect-of-a-loser": left(
        replace(DONE, attempt=2),
        log=ClientLog(effects=(Effect(DONE.id, Token(11), 1),)),
        attempts=(StoredAttempt(DONE.id, 1, "lost", at(1)),),
    ),
    "effect-missing": left(
        DONE, log=ClientLog(accepted=(AcceptedJob(DONE.id, at(0), has_effect=True),))
    ),
    "ran-before-parent": left(
        DONE,
        SECOND,
        log=ClientLog(
            accepted=(
                AcceptedJob(DONE.id, at(0)),
                AcceptedJob(SECOND.id, at(0), depends_on=(DONE.id,)),
            ),
            runs=(run_of(SECOND, 1.9, 2),),
        ),
    ),
    "cancel-undone": left(
        DONE, log=ClientLog(cancelled=(Cancelled(DONE.id, at(0), at(1), was_waiting=True),))
    ),
    "limit-exceeded": left(
        KEYED,
        numbered(KEYED, 2),
        numbered(KEYED, 3),
        log=ClientLog(
            limits=(LimitSet("k", 2, at(0), at(0.1)), LimitSet("k", 1, at(1), at(1.1))),
            runs=tuple(run_of(numbered(KEYED, n), 1 + n / 10, 2) for n in (1, 2, 3)),
        ),
        limits=(LIMIT,),
    ),
    "permits-miscounted": left(limits=(replace(LIMIT, in_use=1),)),
    "permits-uncounted": left(replace(QUEUED, concurrency_key="k")),
    "permit-idle": left(replace(WAITING, concurrency_key="k", parked_for="limit"), limits=(LIMIT,)),
    "unique-twice": left(UNIQUE, replace(UNIQUE, id=job_id(2)), unique_keys=(HELD_KEY,)),
    "unique-shared": left(UNIQUE_DONE, numbered(UNIQUE_DONE, 2)),
    "unique-leaked": left(UNIQUE_DONE, unique_keys=(HELD_KEY,)),
    "unique-unheld": left(UNIQUE),
    "waits-for-the-dead": left(DONE, CHILD, dependencies=((DONE.id, CHILD.id),)),
    "parents-miscounted": left(QUEUED, CHILD),
    "did-not-wait": left(
        QUEUED,
        replace(CHILD, state=JobState.QUEUED, places=("ready",), parked_for=None),
        dependencies=((QUEUED.id, CHILD.id),),
    ),
    "family-miscounted": left(DONE, FOLLOW_UP, families=(replace(FAMILY, total=2),)),
    "family-settled-wrongly": left(QUEUED, FOLLOW_UP, families=(FAMILY,)),
    "batch-miscounted": left(replace(QUEUED, batch_id=BATCH), batches=(BATCH_OF_NONE,)),
    "batch-finished-early": left(
        replace(QUEUED, batch_id=BATCH),
        batches=(
            replace(BATCH_OF_NONE, state=BatchState.FINISHED, counts=Counts(total=1, queued=1)),
        ),
        events=(StoredEvent(7, at(3), "batch.finished", batch_id=BATCH, run=1),),
    ),
    "batch-told-wrongly": left(
        batches=(BATCH_OF_NONE,),
        events=(StoredEvent(7, at(3), "batch.finished", batch_id=BATCH, run=1),),
    ),
    "webhook-count": left(replace(DONE, callback_url=URL)),
    "webhook-in-two-places": left(DONE, callbacks=(webhook("outbox"), webhook("delivered"))),
    "webhook-two-ids": left(DONE, callbacks=(webhook(), webhook(id=OTHER_HOOK))),
    "webhook-unsigned": left(
        DONE, log=ClientLog(webhooks=(arrived(is_signed=False),)), callbacks=(webhook(),)
    ),
    "webhook-unknown": left(
        DONE, log=ClientLog(webhooks=(arrived(type="job.failed"),)), callbacks=(webhook(),)
    ),
    "webhook-not-received": left(DONE, log=ClientLog(receiver=URL), callbacks=(webhook(),)),
    "index-differs": left(index=(IndexFinding("default", "segments do not overlap", ("1",)),)),
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_promise_is_reported_alone(code: str) -> None:
    violations = check(BROKEN[code])
    assert [violation.code for violation in violations] == [code], report(violations)


def test_every_violation_has_a_case() -> None:
    text = "".join(path.read_text() for path in sources("chaos/rules"))
    assert set(re.findall(r'Violation\(\s*"([a-z-]+)"', text)) == set(BROKEN)


CLEAN: Mapping[str, History] = {
    "nothing at all": History(),
    "a job in each place": left(QUEUED, replace(WAITING, id=job_id(2)), numbered(RUNNING, 3)),
    "a second life after a retry": left(
        replace(DONE, attempt=2),
        log=replace(
            RETRIED, effects=(Effect(DONE.id, Token(11), 1), Effect(DONE.id, Token(12), 2))
        ),
        attempts=(StoredAttempt(DONE.id, 1, "succeeded", at(1)),),
        events=(replace(end_of(DONE), xid=7), end_of(DONE)),
    ),
    "a rescue after the slot was declared dead, whose zombie ran on": left(
        replace(DONE, attempt=2),
        log=ClientLog(
            runs=(run_of(DONE, 1, 9), run_of(DONE, 2, 3, attempt=2, slot=OTHER_SLOT)),
            effects=(Effect(DONE.id, Token(12), 2),),
        ),
        attempts=(StoredAttempt(DONE.id, 1, "lost", at(1.6)),),
        slots={SLOT: at(1.5), OTHER_SLOT: None},
    ),
    "a limit that was cut while jobs ran": left(
        KEYED,
        numbered(KEYED, 2),
        log=ClientLog(
            limits=(LimitSet("k", 2, at(0), at(0.1)), LimitSet("k", 1, at(1), at(1.1))),
            runs=(run_of(KEYED, 0.5, 2), run_of(numbered(KEYED, 2), 0.6, 2)),
        ),
        limits=(LIMIT,),
    ),
    "a unique key that went on to the next job": left(
        replace(UNIQUE_DONE, finished_at=at(0.2)),
        replace(UNIQUE, id=job_id(2)),
        unique_keys=(replace(HELD_KEY, job_id=job_id(2)),),
    ),
    "a child whose parent ended, and a follow-up": left(
        DONE,
        FOLLOW_UP,
        numbered(replace(DONE, finished_at=at(4)), 3),
        log=ClientLog(
            accepted=(
                AcceptedJob(DONE.id, at(0)),
                AcceptedJob(job_id(3), at(0), depends_on=(DONE.id,)),
            ),
            runs=(run_of(numbered(DONE, 3), 3, 4),),
        ),
        families=(FAMILY,),
    ),
    "a cancelled job that was retried": left(
        DONE,
        log=replace(RETRIED, cancelled=(Cancelled(DONE.id, at(0), at(1), was_waiting=True),)),
    ),
    "a submit whose answer was never read": left(
        DONE,
        SECOND,
        log=ClientLog(
            accepted=(AcceptedJob(DONE.id, at(0)),),
            unanswered=(Unanswered(at(0), idempotency_key="key"),),
        ),
        requests=(StoredRequest("key", SECOND.id),),
    ),
    "a batch that ended twice": left(
        replace(DONE, batch_id=BATCH),
        log=ClientLog(batches=(AcceptedBatch(BATCH, at(0), 1),), retried=(Retried(BATCH, at(3)),)),
        batches=(
            replace(
                BATCH_OF_NONE,
                state=BatchState.FINISHED,
                run=2,
                counts=Counts(total=1, succeeded=1),
                callback_url=URL,
            ),
        ),
        events=(
            end_of(DONE),
            *(StoredEvent(n, at(n), "batch.finished", batch_id=BATCH, run=n) for n in (1, 2)),
        ),
        callbacks=tuple(
            webhook(
                id=hook, type="batch.finished", subject=BATCH, occurred_at=at(n), endpoint_id=None
            )
            for n, hook in ((1, HOOK), (2, OTHER_HOOK))
        ),
    ),
    "a webhook that arrived twice under its one id": left(
        replace(DONE, callback_url=URL),
        log=ClientLog(receiver=URL, webhooks=(arrived(), arrived())),
        callbacks=(webhook(endpoint_id=None),),
    ),
}


@pytest.mark.parametrize("story", CLEAN)
def test_a_kept_promise_is_not_reported(story: str) -> None:
    violations = check(CLEAN[story])
    assert not violations, report(violations)


def test_a_report_shows_some_ids_and_counts_the_rest() -> None:
    lost = tuple(AcceptedJob(job_id(n), at(0)) for n in range(5))
    jobs = tuple(numbered(QUEUED, n) for n in range(5, 10))
    found = check(History(ClientLog(accepted=lost), jobs=jobs))
    lines = report(found).splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("lost-job: 00000000-")
    assert " and 2 more 5 jobs that nobody submitted" in lines[-1]
