"""A slot's loop: claim what there is room for, run it, hand the endings to the recorder, wait for a
wake-up.

Always one claim statement in the ledger's order, woken or polling. The slot claims until nothing is
left, then blocks on its pool's queue; while Redis is away it polls.
"""

import time
from dataclasses import dataclass, field
from uuid import UUID

import anyio
from anyio.abc import TaskGroup

from engines.memory import give_back_memory
from jobs import ledger
from jobs.announcer import Announcer
from jobs.kinds import Kind
from jobs.ledger import Ended
from jobs.model import ClaimedJob, SlotId
from jobs.outcomes import Backoff, Cancelled, Ending, Failed, Released
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import PASSING
from runtime.redis import Client
from workers.board import ENTRIES_MAX, Board, Started
from workers.execution import InHand, StopReason, execute, prepare
from workers.recorder import Book, Recorder
from workers.run import Services
from workers.wakeups import WakeUps

CLAIM_MAX = 500
# A slot claims at most this much measured work ahead, so that a neighbour is never kept waiting for
# it.
AHEAD_S = 0.05
SMOOTHING = 0.2
WATCH_BUSY_S = 0.1
WATCH_IDLE_S = 0.5
STOP_GRACE_S = 3.0

log = logger("runner")


@dataclass(frozen=True, slots=True)
class Post:
    """A slot's place: who it is, what it may run, and where it shows what it is doing."""

    slot_id: SlotId
    pool: str
    board: Board
    redis: Client
    services: Services


@dataclass(slots=True)
class Runner:
    """Runs one slot until `drain`. Its state is of this process only; the ledger is in Postgres."""

    post: Post
    in_hand: dict[UUID, InHand] = field(default_factory=dict)
    _waiting: dict[UUID, ClaimedJob] = field(default_factory=dict)
    _cancelled: set[UUID] = field(default_factory=set)
    _unseen: list[ClaimedJob] = field(default_factory=list)
    _draining: anyio.Event = field(default_factory=anyio.Event)
    _freed: anyio.Event = field(default_factory=anyio.Event)
    _idle: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _one_at_a_time: anyio.Lock = field(default_factory=anyio.Lock)
    _job_s: float = AHEAD_S
    _has_run: bool = False

    async def run(self) -> None:
        """Claim and run until drained and recorded. Raises SlotEnded when the slot was declared
        dead.
        """
        services = self.post.services
        settings = services.settings
        announcer = Announcer(self.post.redis, services.live)
        book = Book(
            services.postgres,
            announcer,
            services.kinds,
            self.post.slot_id,
            Backoff(settings.backoff_s, settings.backoff_max_s),
        )
        recorder = Recorder(book)
        async with announcer.telling(), anyio.create_task_group() as recording:
            recording.start_soon(recorder.run)
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._watch, announcer)
                async with anyio.create_task_group() as running:
                    await self._claim_until_drained(running, recorder)
                watching.cancel_scope.cancel()
            recorder.close()

    def drain(self) -> None:
        """Claim no more; what is in hand goes on, what has not begun is given back."""
        self._draining.set()
        self._idle.cancel()
        self._freed.set()

    def stop_all(self) -> None:
        """Tell every running handler to stop; their attempts are given back."""
        for in_hand in list(self.in_hand.values()):
            in_hand.stop(StopReason.SHUTDOWN)

    def cancel(self, job_id: UUID) -> None:
        """Stop a job whose cancellation was requested, running or not begun."""
        if (in_hand := self.in_hand.get(job_id)) is not None:
            in_hand.stop(StopReason.CANCEL)
        elif job_id in self._waiting:
            self._cancelled.add(job_id)

    # -- claiming

    async def _claim_until_drained(self, running: TaskGroup, recorder: Recorder) -> None:
        poll_s = self.post.services.settings.poll_s
        wake_ups = WakeUps(self.post.redis, self.post.pool, poll_s=poll_s)
        while not self._draining.is_set():
            room = self._room()
            if room < 1:
                self._freed = anyio.Event()
                await self._freed.wait()
                continue
            jobs = await self._claim(room)
            wake_ups.found(len(jobs))
            for job in jobs:
                self._waiting[job.id] = job
                running.start_soon(self._run_job, job, recorder, time.monotonic())
            if not jobs:
                await self._block(wake_ups)

    def _room(self) -> int:
        """How many jobs to claim now: what runs at once, and for exclusive kinds a little ahead."""
        kinds = self.post.services.kinds.of_pool(self.post.pool)
        if any(kind.exclusive for kind in kinds):
            ahead = min(CLAIM_MAX, max(1, int(AHEAD_S / max(self._job_s, 1e-6))))
            return ahead - len(self._waiting) - len(self.in_hand)
        at_once = max((kind.in_hand for kind in kinds), default=1)
        return min(CLAIM_MAX, at_once, ENTRIES_MAX) - len(self._waiting) - len(self.in_hand)

    async def _claim(self, room: int) -> list[ClaimedJob]:
        """Claim up to `room` jobs; nothing while Postgres is away."""
        services = self.post.services
        kinds = [kind.name for kind in services.kinds.of_pool(self.post.pool)]
        alone_ok = not self.in_hand and not self._waiting
        try:
            async with services.postgres.acquire() as connection:
                jobs = await ledger.claim(
                    connection, self.post.slot_id, self.post.pool, kinds, room, alone_ok=alone_ok
                )
        except PASSING as error:
            log.warning("claim_waits", error=str(error))
            await anyio.sleep(services.settings.poll_s)
            return []
        metrics.JOBS_CLAIMED.labels(pool=self.post.pool).inc(len(jobs))
        if jobs:
            # One observation a claim: the job that waited longest.
            waited_s = max(job.queued_s for job in jobs)
            metrics.START_LATENCY.labels(self.post.pool).observe(max(0.0, waited_s))
        return jobs

    async def _block(self, wake_ups: WakeUps) -> None:
        """Sleep until a wake-up, a drain, or the next poll."""
        with anyio.CancelScope() as self._idle:
            if self._draining.is_set():
                return
            is_quiet = await wake_ups.wait()
            if is_quiet and self._has_run and not self.in_hand:
                self._has_run = False
                give_back_memory()

    # -- running

    async def _run_job(self, job: ClaimedJob, recorder: Recorder, claimed_at: float) -> None:
        kind = self.post.services.kinds[job.kind]
        if kind.exclusive:
            async with self._one_at_a_time:
                ended = await self._run_now(job, kind, claimed_at)
        else:
            ended = await self._run_now(job, kind, claimed_at)
        recorder.add(ended)
        self._freed.set()

    async def _run_now(self, job: ClaimedJob, kind: Kind, claimed_at: float) -> Ended:
        """Run a job whose turn has come, unless the slot drains or the job was cancelled."""
        del self._waiting[job.id]
        waited_s = time.monotonic() - claimed_at
        if job.id in self._cancelled:
            self._cancelled.discard(job.id)
            return Ended(job, Cancelled("cancelled by request"), waited_s)
        if self._draining.is_set():
            return Ended(job, Released("shutdown"), waited_s)
        run = prepare(job, kind, self.post.services)
        if isinstance(run, Failed):
            return Ended(job, run, waited_s)
        return Ended(job, await self._execute(InHand(run, kind, *self._begin(job, kind))), waited_s)

    def _begin(self, job: ClaimedJob, kind: Kind) -> tuple[int, int]:
        """Show the job on the board; returns its entry and its deadline."""
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + int((job.timeout_s or kind.timeout_s) * 1e9)
        entry = self.post.board.put(Started(job.id, job.token, now_ns, deadline_ns, kind.exclusive))
        return entry, deadline_ns

    async def _execute(self, in_hand: InHand) -> Ending:
        job = in_hand.run.job
        self.in_hand[job.id] = in_hand
        self._unseen.append(job)
        started = time.perf_counter()
        try:
            return await execute(in_hand)
        finally:
            ran_s = time.perf_counter() - started
            self._job_s += SMOOTHING * (ran_s - self._job_s)
            metrics.HANDLER_DURATION.labels(kind=job.kind).observe(ran_s)
            self._has_run = True
            del self.in_hand[job.id]
            self.post.board.clear(in_hand.entry)

    # -- watching

    async def _watch(self, announcer: Announcer) -> None:
        """Keep time: deadlines, the board's sign of life, and `job.started` for jobs that last."""
        while True:
            self.post.board.turn()
            now_ns = time.monotonic_ns()
            for in_hand in list(self.in_hand.values()):
                if now_ns >= in_hand.deadline_ns:
                    in_hand.stop(StopReason.TIMEOUT)
            metrics.SLOTS_BUSY.labels(self.post.pool).set(1 if self.in_hand else 0)
            self._show_started(announcer)
            await anyio.sleep(WATCH_BUSY_S if self.in_hand else WATCH_IDLE_S)

    def _show_started(self, announcer: Announcer) -> None:
        lasting = [job for job in self._unseen if job.id in self.in_hand]
        self._unseen.clear()
        announcer.started(lasting)
