"""A slot's loop: claim what there is room for, run it, hand the endings to the recorder, wait for a
wake-up.

Always one claim statement in the ledger's order, woken or polling. The next jobs are claimed while
the last ones run and those before them are recorded. The slot claims until nothing is left, then
blocks on its pool's queue; while Redis is away it polls.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import anyio

from engines.memory import give_back_memory
from jobs import ledger
from jobs.announcer import Announcer
from jobs.kinds import Kind
from jobs.ledger import Ended
from jobs.model import ClaimedJob, SlotId
from jobs.outcomes import Backoff, Cancelled, Ending, Failed, Released
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import PASSING, SILENCE_S
from runtime.redis import Client
from workers.board import Board, Started
from workers.execution import InHand, StopReason, execute, prepare, stopped
from workers.holdings import Holdings
from workers.lanes import Lanes
from workers.pace import Pace
from workers.recorder import UNRECORDED_MAX, Book, Recorder
from workers.run import Services
from workers.wakeups import WakeUps

# With little room, a slot waits so long for more: a claim costs the same for one job as for ten.
GATHER_S = 0.002
WATCH_S = 0.1
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


class Waiting(NamedTuple):
    """A claimed job that has not begun, and since when it is here."""

    job: ClaimedJob
    claimed_ns: int


class Runner:
    """Runs one slot until `drain`. Its state is of this process only; the ledger is in Postgres."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.in_hand: dict[UUID, InHand] = {}
        services = post.services
        kinds = services.kinds.of_pool(post.pool)
        self._kinds = {kind.name: kind for kind in kinds}
        self._pace = Pace(kinds)
        settings = services.settings
        self._announcer = Announcer(post.redis, services.live)
        self._wake_ups = WakeUps(post.redis, post.pool, poll_s=settings.poll_s)
        self._recorder = Recorder(
            Book(
                services.postgres,
                self._announcer,
                services.kinds,
                post.slot_id,
                self._recorded,
                Backoff(settings.backoff_s, settings.backoff_max_s),
            )
        )
        self._holdings = Holdings(
            services.postgres,
            post.slot_id,
            give_back=self._give_back,
            patience_s=settings.statement_timeout_s + SILENCE_S,
        )
        self._lanes: Lanes[Waiting] | None = None
        self._head = ledger.Head()
        # In a lane, and not begun: its turn comes later.
        self._unbegun: dict[UUID, anyio.CancelScope] = {}
        self._cancelled: set[UUID] = set()
        self._durations: defaultdict[str, list[float]] = defaultdict(list)
        self._is_draining = False
        self._needs_room = False
        self._has_suspect = False
        self._has_run = False
        self._is_watched = False
        self._freed = anyio.Event()
        self._begun = anyio.Event()
        self._idle = anyio.CancelScope()
        self._one_at_a_time = anyio.Lock()

    async def run(self) -> None:
        """Claim and run until drained and recorded. Raises SlotEnded when the slot was declared
        dead.
        """
        async with self._announcer.telling(), anyio.create_task_group() as recording:
            recording.start_soon(self._recorder.run)
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._watch)
                watching.start_soon(self._holdings.watch)
                async with anyio.create_task_group() as running:
                    lanes = Lanes(running, self._run_next, self._pace.at_once)
                    self._lanes = lanes
                    await self._claim_until_drained(lanes)
                    self._give_back_unbegun(lanes)
                    lanes.close()
                watching.cancel_scope.cancel()
            self._observe()
            self._recorder.close()

    @property
    def unrecorded(self) -> int:
        """Jobs that have ended here and are not committed yet."""
        return self._recorder.unrecorded

    @property
    def is_full(self) -> bool:
        """Whether the slot waits for room before it claims again."""
        return self._needs_room

    def drain(self) -> None:
        """Claim no more; what is in hand goes on, what has not begun is given back."""
        self._is_draining = True
        self._idle.cancel()
        self._freed.set()

    def stop_all(self) -> None:
        """Tell every running handler to stop; their attempts are given back."""
        for in_hand in list(self.in_hand.values()):
            in_hand.stop(StopReason.SHUTDOWN)

    def cancel(self, job_id: UUID) -> None:
        """Stop a job whose cancellation was requested; one that has not begun ends at once."""
        if (in_hand := self.in_hand.get(job_id)) is not None:
            in_hand.stop(StopReason.CANCEL)
        elif (scope := self._unbegun.get(job_id)) is not None:
            self._cancelled.add(job_id)
            scope.cancel()
        elif self._lanes is not None:
            for waiting in self._lanes.withdraw(lambda waiting: waiting.job.id == job_id):
                self._end_unbegun(waiting, Cancelled("cancelled by request"))

    # -- claiming

    async def _claim_until_drained(self, lanes: Lanes[Waiting]) -> None:
        while not self._is_draining:
            room = self._room(lanes)
            if room < 1:
                await self._wait_for_room(lanes)
                continue
            is_empty = not (lanes.waiting or self._unbegun or self.in_hand)
            jobs = await self._claim(room, alone_ok=is_empty)
            self._pace.claimed()
            self._wake_ups.found(len(jobs))
            claimed_ns = time.monotonic_ns()
            lanes.offer([Waiting(job, claimed_ns) for job in jobs])
            # Fewer than asked for are all there were; whatever came since is announced.
            if len(jobs) < room:
                await self._block()

    def _room(self, lanes: Lanes[Waiting]) -> int:
        """How many jobs to claim now. Nothing beside a suspect, and nothing while Postgres takes no
        records: then what has ended would pile up here.
        """
        waiting, running = len(lanes.waiting) + len(self._unbegun), len(self.in_hand)
        if self._has_suspect and (waiting or running):
            return 0
        self._has_suspect = False
        if self._recorder.unrecorded >= UNRECORDED_MAX or self._recorder.is_heavy:
            return 0
        return self._pace.room(waiting, running)

    async def _wait_for_room(self, lanes: Lanes[Waiting]) -> None:
        self._freed = anyio.Event()
        self._needs_room = True
        await self._freed.wait()
        self._needs_room = False
        if len(self.in_hand) + len(lanes.waiting) > self._pace.at_once * 3 // 4:
            await anyio.sleep(GATHER_S)

    def _recorded(self, batch: Sequence[Ended]) -> None:
        self._holdings.remove([ended.job.token for ended in batch])
        if self._needs_room:
            self._freed.set()

    def _give_back(self, job: ClaimedJob) -> None:
        self._recorder.add(job, Released("the answer to its claim was lost"), 0.0)

    async def _claim(self, room: int, *, alone_ok: bool) -> list[ClaimedJob]:
        """Claim up to `room` jobs; nothing while Postgres is away."""
        post = self.post
        try:
            async with self._holdings.claiming:
                async with post.services.postgres.acquire() as connection:
                    jobs = await ledger.claim(
                        connection,
                        post.slot_id,
                        post.pool,
                        list(self._kinds),
                        room,
                        alone_ok=alone_ok,
                        head=self._head,
                    )
                # Not before the connection is given back, which may fail as well.
                self._holdings.add(jobs)
        except PASSING as error:
            self._holdings.doubt()
            log.warning("claim_waits", error=str(error))
            await anyio.sleep(post.services.settings.poll_s)
            return []
        if jobs:
            metrics.JOBS_CLAIMED.labels(pool=post.pool).inc(len(jobs))
            # One observation a claim: the job that waited longest.
            waited_s = max(job.queued_s for job in jobs)
            metrics.START_LATENCY.labels(post.pool).observe(max(0.0, waited_s))
            self._has_suspect = jobs[0].alone
        return jobs

    async def _block(self) -> None:
        """Sleep until a wake-up, a drain, or the next poll."""
        with anyio.CancelScope() as self._idle:
            if self._is_draining:
                return
            is_quiet = await self._wake_ups.wait()
            if is_quiet and self._has_run and not self.in_hand:
                self._has_run = False
                give_back_memory()

    # -- running

    async def _run_next(self, waiting: Waiting, scope: anyio.CancelScope) -> None:
        kind = self._kinds[waiting.job.kind]
        if kind.exclusive or self._recorder.is_heavy:
            await self._run_in_turn(waiting, kind, scope)
        else:
            await self._run_now(waiting, kind, scope)
        if self._needs_room:
            self._freed.set()

    async def _run_in_turn(self, waiting: Waiting, kind: Kind, scope: anyio.CancelScope) -> None:
        """Run a job that may have to wait: for room for its ending, for the exclusive one that
        runs.
        """
        job_id = waiting.job.id
        self._unbegun[job_id] = scope
        async with AsyncExitStack() as turn:
            try:
                await self._recorder.lightened()
                if kind.exclusive:
                    await turn.enter_async_context(self._one_at_a_time)
            except anyio.get_cancelled_exc_class():
                # Not to begin at all, unless it is the slot itself that ends.
                if (ending := self._refusal(waiting.job)) is not None:
                    self._end_unbegun(waiting, ending)
                raise
            finally:
                del self._unbegun[job_id]
            await self._run_now(waiting, kind, scope)

    def _end_unbegun(self, waiting: Waiting, ending: Ending) -> None:
        waited_s = (time.monotonic_ns() - waiting.claimed_ns) * 1e-9
        self._recorder.add(waiting.job, ending, waited_s)

    def _give_back_unbegun(self, lanes: Lanes[Waiting]) -> None:
        """A slot that drains keeps nobody waiting for what still runs in it."""
        for waiting in lanes.withdraw(lambda _: True):
            self._end_unbegun(waiting, Released("shutdown"))
        for scope in self._unbegun.values():
            scope.cancel()

    async def _run_now(self, waiting: Waiting, kind: Kind, scope: anyio.CancelScope) -> None:
        """Run a job whose turn has come, unless the slot drains or the job was cancelled."""
        job, claimed_ns = waiting
        now_ns = time.monotonic_ns()
        waited_s = (now_ns - claimed_ns) * 1e-9
        self._pace.waited(waited_s)
        if (ending := self._refusal(job)) is None:
            run = prepare(job, kind, self.post.services)
            if isinstance(run, Failed):
                ending = run
            else:
                in_hand = InHand(run, kind, *self._begin(job, kind, now_ns), scope)
                ending = await self._execute(in_hand, waited_s)
        self._recorder.add(job, ending, waited_s)

    def _refusal(self, job: ClaimedJob) -> Ending | None:
        """Why a job is not to begin."""
        if self._cancelled and job.id in self._cancelled:
            self._cancelled.discard(job.id)
            return Cancelled("cancelled by request")
        return Released("shutdown") if self._is_draining else None

    def _begin(self, job: ClaimedJob, kind: Kind, now_ns: int) -> tuple[int, int]:
        """Show the job on the board; returns its entry and its deadline."""
        if not self._is_watched:
            # The watch rests while nothing runs: what was idle has not stood still.
            self._is_watched = self._has_run = True
            self.post.board.turn()
            self._begun.set()
        deadline_ns = now_ns + int((job.timeout_s or kind.timeout_s) * 1e9)
        entry = self.post.board.put(Started(job.id, job.token, now_ns, deadline_ns, kind.exclusive))
        return entry, deadline_ns

    async def _execute(self, in_hand: InHand, waited_s: float) -> Ending:
        job = in_hand.run.job
        self.in_hand[job.id] = in_hand
        try:
            return await execute(in_hand)
        except anyio.get_cancelled_exc_class():
            # Told to stop, unless it is the slot itself that ends. The lane deals with the rest.
            if in_hand.reason is not None:
                self._recorder.add(job, stopped(in_hand), waited_s)
            raise
        finally:
            ran_s = time.perf_counter() - in_hand.began
            self._pace.ran(ran_s)
            self._durations[job.kind].append(ran_s)
            del self.in_hand[job.id]
            self.post.board.clear(in_hand.entry)

    # -- watching

    async def _watch(self) -> None:
        """Keep time while jobs run: deadlines, the board's sign of life, and `job.started` for jobs
        that last. A slot without jobs rests.
        """
        busy = metrics.SLOTS_BUSY.labels(self.post.pool)
        self.post.board.turn()
        while True:
            self._observe()
            if not self.in_hand:
                busy.set(0)
                self._begun = anyio.Event()
                self._is_watched = False
                await self._begun.wait()
                busy.set(1)
            self.post.board.turn()
            self._stop_overdue()
            self._show_started()
            await anyio.sleep(WATCH_S)

    def _stop_overdue(self) -> None:
        now_ns = time.monotonic_ns()
        for in_hand in list(self.in_hand.values()):
            if now_ns >= in_hand.deadline_ns:
                in_hand.stop(StopReason.TIMEOUT)

    def _show_started(self) -> None:
        lasting = [in_hand for in_hand in self.in_hand.values() if not in_hand.is_shown]
        for in_hand in lasting:
            in_hand.is_shown = True
        self._announcer.started([in_hand.run.job for in_hand in lasting])

    def _observe(self) -> None:
        """Add what ran since the last look to the metrics."""
        durations, self._durations = self._durations, defaultdict(list)
        for kind, observed in durations.items():
            metrics.observe_all(metrics.HANDLER_DURATION.labels(kind), observed)
