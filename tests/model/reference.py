"""The ledger in plain Python, as docs/state_machine.md tells it: what the real one must agree with.

One thread, one clock, no tables: a job has a state, and every verb is a few loops.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from jobs.model import SlotId
from jobs.states import BatchState, JobState, OnParentFailure, ScheduledReason

AGEING_S = 60.0
LIVES = 3
LOSSES_ALONE = 2

type Until = Literal["started", "finished", "time"]
type EndingName = Literal["succeed", "retry", "fail", "cancel", "release"]


@dataclass(frozen=True, slots=True)
class Wish:
    """A job as its submitter describes it; `parents` are known ids."""

    number: int
    priority: int = 4
    delay_s: float | None = None
    expires_s: float | None = None
    max_attempts: int = 2
    unique: tuple[str, Until] | None = None
    unique_s: float | None = None
    key: str | None = None
    parents: tuple[UUID, ...] = ()
    # Numbers of earlier jobs of the same call, on which it depends by their custom_ids.
    siblings: tuple[int, ...] = ()
    policy: OnParentFailure = OnParentFailure.CANCEL
    callback: bool = False


@dataclass(slots=True)
class ModelJob:
    """A job. `run_at` and `sort_at` are as submitted or changed, `due_at` and `place` as of now."""

    id: UUID
    wish: Wish
    priority: int
    run_at: datetime
    sort_at: datetime
    due_at: datetime
    place: datetime
    expires_at: datetime | None
    batch: UUID | None = None
    lineage: tuple[UUID, ...] = ()
    state: JobState = JobState.SCHEDULED
    reason: ScheduledReason | None = None
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    is_asked: bool = False
    slot: SlotId | None = None
    pending: set[UUID] = field(default_factory=set)

    def lives(self) -> bool:
        return not self.state.is_terminal

    @property
    def order(self) -> tuple[datetime, UUID]:
        return self.place, self.id

    def rank(self) -> timedelta:
        return timedelta(seconds=self.priority * AGEING_S)

    def wait(self, reason: ScheduledReason) -> None:
        self.state, self.reason = JobState.SCHEDULED, reason

    def queue(self) -> None:
        self.state, self.reason = JobState.QUEUED, None


@dataclass(slots=True)
class ModelBatch:
    """A batch."""

    state: BatchState
    run: int = 1


@dataclass(frozen=True, slots=True)
class EndedAttempt:
    """How an attempt ended; `created` are follow-ups with the ids that they were given."""

    job_id: UUID
    ending: EndingName
    after_s: float = 0.0
    created: tuple[tuple[Wish, UUID], ...] = ()


class Model:
    """All jobs, and the verbs of the ledger."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.jobs: dict[UUID, ModelJob] = {}
        self.batches: dict[UUID, ModelBatch] = {}
        self.limits: dict[str, int] = {}
        self.unique: dict[str, tuple[UUID, str, datetime | None]] = {}
        self.is_paused = False

    # Taking jobs in

    def holder_of(self, wish: Wish) -> UUID | None:
        """Who has the job's unique key already."""
        if wish.unique is None or wish.unique[0] not in self.unique:
            return None
        holder, _, until = self.unique[wish.unique[0]]
        return None if until is not None and until <= self.now else holder

    def enqueue(
        self,
        wishes: Sequence[tuple[Wish, UUID]],
        batch: UUID | None = None,
        lineage: tuple[UUID, ...] = (),
    ) -> list[UUID]:
        """Take jobs in under the ids that the ledger gave; answers what each stands for."""
        answers: dict[int, UUID] = {}
        new: list[ModelJob] = []
        for wish, job_id in wishes:
            holder = self.holder_of(wish)
            if holder is None:
                new.append(self._new(wish, job_id, batch, lineage))
            answers[wish.number] = holder or job_id
        for job in new:
            siblings = {answers[number] for number in job.wish.siblings}
            job.pending = {*job.wish.parents, *siblings}
        for job in new:
            self._place(job)
        return list(answers.values())

    def _new(
        self, wish: Wish, job_id: UUID, batch: UUID | None, lineage: tuple[UUID, ...]
    ) -> ModelJob:
        run_at = self.now + timedelta(seconds=wish.delay_s or 0)
        place = run_at - timedelta(seconds=wish.priority * AGEING_S)
        expires_at = None
        if wish.expires_s is not None:
            expires_at = self.now + timedelta(seconds=wish.expires_s)
        job = ModelJob(
            job_id, wish, wish.priority, run_at, place, run_at, place, expires_at, batch, lineage
        )
        self.jobs[job_id] = job
        self._take_key(job)
        return job

    def _take_key(self, job: ModelJob) -> None:
        if job.wish.unique is not None:
            key, until = job.wish.unique
            ends_at = None
            if until == "time":
                ends_at = self.now + timedelta(seconds=job.wish.unique_s or 0)
            self.unique[key] = job.id, until, ends_at

    def _place(self, job: ModelJob) -> None:
        """Wait for live parents, or do what those that have ended decide."""
        if not job.lives():
            return
        job.wait(ScheduledReason.DEPENDENCY)
        ended = [parent for parent in sorted(job.pending) if not self.jobs[parent].lives()]
        for parent in ended:
            job.pending.discard(parent)
        for parent in ended:
            if job.lives():
                self._tell(job, self.jobs[parent])
        if job.lives() and not job.pending:
            self._go_on(job)

    def _tell(self, job: ModelJob, parent: ModelJob) -> None:
        """A parent of a waiting job has ended."""
        job.pending.discard(parent.id)
        policy = job.wish.policy
        if parent.state is JobState.SUCCEEDED or policy is OnParentFailure.RUN:
            return
        is_cancelled = policy is OnParentFailure.CANCEL
        self._end(job, JobState.CANCELLED if is_cancelled else JobState.FAILED)

    def _go_on(self, job: ModelJob) -> None:
        """Wait for the time, then for a permit, then be queued."""
        if job.due_at > self.now:
            job.wait(ScheduledReason.DELAYED)
        elif job.wish.key is not None:
            job.wait(ScheduledReason.LIMIT)
        else:
            job.queue()

    # Running

    def claim(self, slot: SlotId, limit: int, *, alone_ok: bool) -> list[UUID]:
        """Who a slot is given, in order."""
        if self.is_paused:
            return []
        queued = sorted(self._in_state(JobState.QUEUED), key=lambda job: job.order)
        suspects = [job for job in queued if job.losses >= LOSSES_ALONE]
        chosen = [job for job in queued if job.losses < LOSSES_ALONE][:limit]
        if alone_ok and suspects:
            chosen = suspects[:1]
        for job in chosen:
            job.state, job.slot, job.attempt = JobState.RUNNING, slot, job.attempt + 1
            if job.wish.unique is not None and job.wish.unique[1] == "started":
                self._let_key_go(job)
        return [job.id for job in chosen]

    def record(self, ended: Iterable[EndedAttempt]) -> None:
        """End attempts that are held: what they created comes first, freed permits last."""
        ends = [(self.jobs[end.job_id], end) for end in ended]
        over: list[tuple[ModelJob, JobState]] = []
        for job, end in ends:
            if end.created and not job.is_asked:
                self.enqueue(end.created, job.batch, (*job.lineage, job.id))
        for job, end in ends:
            state = self._outcome(job, end)
            if state is not None:
                over.append((job, state))
        self._end_all(over)
        self.fill()

    def _outcome(self, job: ModelJob, end: EndedAttempt) -> JobState | None:
        """How the job ends by this attempt; None when it lives on."""
        match end.ending:
            case "succeed":
                is_undone = bool(end.created) and job.is_asked
                return JobState.CANCELLED if is_undone else JobState.SUCCEEDED
            case "fail":
                job.failures += 1
                return JobState.FAILED
            case "cancel":
                return JobState.CANCELLED
            case "retry" if job.failures + 1 >= job.wish.max_attempts:
                job.failures += 1
                return JobState.FAILED
            case "retry" | "release" if job.is_asked:
                return JobState.CANCELLED
            case "retry":
                job.failures += 1
                job.due_at = self.now + timedelta(seconds=end.after_s)
                job.place = job.due_at + (job.sort_at - job.run_at)
                job.wait(ScheduledReason.BACKOFF)
            case "release":
                self._give_back(job)
        job.slot = None
        return None

    def _give_back(self, job: ModelJob) -> None:
        """Queue a job again where it stood; it keeps its permit."""
        job.slot, job.place = None, job.sort_at
        job.queue()

    def lose(self, slot: SlotId, started: frozenset[UUID]) -> None:
        """A slot is dead and its jobs come back."""
        over: list[tuple[ModelJob, JobState]] = []
        for job in [job for job in self._in_state(JobState.RUNNING) if job.slot == slot]:
            is_suspect = job.id in started
            if job.is_asked:
                over.append((job, JobState.CANCELLED))
            elif is_suspect and job.losses + 1 >= LIVES:
                over.append((job, JobState.FAILED))
            else:
                job.losses += is_suspect
                self._give_back(job)
        self._end_all(over)
        self.fill()

    # Ending

    def _end_all(self, over: Sequence[tuple[ModelJob, JobState]]) -> None:
        """End jobs at once; a dependent hears of every parent before it goes on."""
        for job, state in over:
            job.state = state
        for job, state in over:
            self._end(job, state)

    def _end(self, job: ModelJob, state: JobState) -> None:
        job.state, job.reason, job.slot = state, None, None
        if job.wish.unique is not None and job.wish.unique[1] != "time":
            self._let_key_go(job)
        for child in [child for child in self.jobs.values() if job.id in child.pending]:
            if not child.lives():
                child.pending.discard(job.id)
                continue
            self._tell(child, job)
            if child.lives() and not child.pending:
                self._go_on(child)

    def _let_key_go(self, job: ModelJob) -> None:
        key = (job.wish.unique or ("",))[0]
        if key in self.unique and self.unique[key][0] == job.id:
            del self.unique[key]

    def fill(self) -> None:
        """Give every free permit to whoever waits for it first."""
        for key in {job.wish.key for job in self.jobs.values()} - {None}:
            own = [job for job in self.jobs.values() if job.wish.key == key and job.lives()]
            used = sum(1 for job in own if job.state is not JobState.SCHEDULED)
            waiting = [job for job in own if job.reason is ScheduledReason.LIMIT]
            free = max(0, self.limits.get(key or "", 1) - used)
            for job in sorted(waiting, key=lambda job: job.order)[:free]:
                job.queue()

    # Time, and what users ask for

    def promote(self) -> None:
        """Delayed and backed-off jobs whose time has come."""
        for job in self._in_state(JobState.SCHEDULED):
            waits_for_time = job.reason in {ScheduledReason.DELAYED, ScheduledReason.BACKOFF}
            if waits_for_time and job.due_at <= self.now:
                self._go_on(job)
        self.fill()

    def expire(self) -> list[UUID]:
        """Waiting jobs that were not started in time."""
        late = [
            job
            for job in self.jobs.values()
            if job.lives() and job.slot is None
            if job.expires_at is not None and job.expires_at <= self.now
        ]
        self._end_all([(job, JobState.FAILED) for job in late])
        self.fill()
        return [job.id for job in late]

    def cancel(self, ids: Iterable[UUID]) -> list[UUID]:
        """Cancel jobs and what they created; answers those that are over at once."""
        asked = set(ids)
        found = [
            job
            for job in self.jobs.values()
            if job.lives() and (job.id in asked or asked.intersection(job.lineage))
        ]
        waiting = [job for job in found if job.slot is None]
        for job in found:
            job.is_asked = True
        self._end_all([(job, JobState.CANCELLED) for job in waiting])
        self.fill()
        return [job.id for job in waiting]

    def retry(self, ids: Iterable[UUID]) -> list[UUID]:
        """Bring terminal jobs back; of two that want one key the younger gets it."""
        asked = [self.jobs[job_id] for job_id in sorted(set(ids))]
        terminal = [job for job in asked if not job.lives()]
        wanted = {
            job.wish.unique[0]: job for job in terminal if _wants_key(job) and job.wish.unique
        }
        back = [
            job
            for job in terminal
            if not _wants_key(job) or (job in wanted.values() and self.holder_of(job.wish) is None)
        ]
        for job in back:
            self._revive(job)
        self.fill()
        return [job.id for job in back]

    def _revive(self, job: ModelJob) -> None:
        if _wants_key(job):
            self._take_key(job)
        job.failures = job.losses = 0
        job.is_asked, job.expires_at = False, None
        job.run_at = job.due_at = self.now
        job.sort_at = job.place = self.now - job.rank()
        if job.pending:
            job.wait(ScheduledReason.DEPENDENCY)
        else:
            self._go_on(job)
        if job.batch is not None and self.batches[job.batch].state is BatchState.FINISHED:
            self.batches[job.batch] = ModelBatch(
                BatchState.RUNNING, self.batches[job.batch].run + 1
            )

    def change(self, job_id: UUID, priority: int | None, run_at: datetime | None) -> bool:
        """Change a job's place or time; False when its state does not allow it."""
        job = self.jobs[job_id]
        if not job.lives() or (job.slot is not None and run_at is not None):
            return False
        job.priority = job.priority if priority is None else priority
        job.run_at = run_at or job.run_at
        job.sort_at = job.run_at - job.rank()
        if job.state is JobState.SCHEDULED:
            job.due_at = run_at or job.due_at
            job.place = job.due_at - job.rank()
            if run_at is not None and job.reason is not ScheduledReason.DEPENDENCY:
                self._go_on(job)
        elif job.state is JobState.QUEUED:
            job.place, job.due_at = job.sort_at, job.run_at
            if run_at is not None and run_at > self.now:
                job.wait(ScheduledReason.DELAYED)
        self.fill()
        return True

    def finish_batches(self) -> list[UUID]:
        """Batches of which nothing is live."""
        live = {job.batch for job in self.jobs.values() if job.lives()}
        due = [
            batch_id
            for batch_id, batch in self.batches.items()
            if batch.state is BatchState.RUNNING and batch_id not in live
        ]
        for batch_id in due:
            self.batches[batch_id].state = BatchState.FINISHED
        return due

    def seen(self) -> Mapping[UUID, tuple[object, ...]]:
        """What a reader sees of every job."""
        return {
            job.id: (job.state, job.reason, job.attempt, job.lives() and job.is_asked)
            for job in self.jobs.values()
        }

    def _in_state(self, state: JobState) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.state is state]


def _wants_key(job: ModelJob) -> bool:
    """Whether a retry must have the job's unique key again."""
    return job.wish.unique is not None and job.wish.unique[1] != "time"
