"""Starts, pins, watches, renews and kills the slots of its pools. Never runs job code.

Its heartbeats vouch for its slots: one counter a slot, bumped whatever the slot is busy with. A
slot that exits, or that must be killed, is declared dead here at once; the death of this process
itself is found by the sweepers of others, or by its successor's.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import anyio
from anyio.abc import Process
from redis.asyncio import Redis

from jobs import dispatch, slots
from jobs.kinds import KindRegistry, load_kinds
from jobs.model import SlotId, Token
from jobs.outcomes import Ending, Failed, Problem
from runtime import metrics
from runtime.ids import uuid7
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Pool, open_pool
from runtime.readiness import Notifier
from runtime.redis import connect
from runtime.settings import Settings
from runtime.version import VERSION
from workers.board import Board, Started
from workers.runner import STOP_GRACE_S
from workers.slots import READY, SlotConfig
from workers.sweeper import Sweeper
from workers.topology import SlotPlan, plan_slots, thread_environment

WATCH_S = 0.25
CANCEL_POLL_S = 0.5
# Cooperative first: what has not stopped by itself after this long is stopped with its slot.
KILL_AFTER_S = 2.0
STALL_S = 2.0
START_S = 30.0
PAUSE_FIRST_S = 0.2
PAUSE_MAX_S = 10.0
POSTGRES_CONNECTIONS = 3

log = logger("supervisor")


@dataclass(slots=True)
class Slot:
    """One living slot process and the supervisor's ends of what it shares with it."""

    plan: SlotPlan
    slot_id: SlotId
    process: Process
    board: Board
    control: socket.socket
    started_at: float = field(default_factory=time.monotonic)
    cancels: dict[UUID, float] = field(default_factory=dict)
    killed_for: str | None = None

    def order(self, line: str) -> None:
        """Send a line; a slot that is gone or does not read is left to the watch."""
        try:
            self.control.send(f"{line}\n".encode(), socket.MSG_DONTWAIT)
        except OSError as error:
            log.warning("slot_unreachable", slot_id=self.slot_id, error=str(error))

    def kill(self, reason: str) -> None:
        """SIGKILL the slot; its jobs are rescued when its exit is seen."""
        if self.killed_for is None and self.process.returncode is None:
            self.killed_for = reason
            log.warning("slot_killed", slot_id=self.slot_id, pool=self.plan.pool, reason=reason)
            self.process.kill()


class Supervisor:
    """Keeps the slots of some pools of this host alive until told to stop."""

    def __init__(
        self, settings: Settings, postgres: Pool, redis: Redis, kinds: KindRegistry
    ) -> None:
        self._settings = settings
        self._postgres = postgres
        self._redis = redis
        self._kinds = kinds
        self._id = uuid7()
        self._slots: dict[SlotId, Slot] = {}
        self._not_ready: set[SlotPlan] = set()
        self._notifier = Notifier()
        self._stopping = anyio.Event()
        self._beat_ok_at = time.monotonic()

    async def run(self, plans: Sequence[SlotPlan], notifier: Notifier) -> None:
        """Keep one process a plan until SIGTERM or SIGINT, then drain; a second signal kills.

        Ready once every slot has been ready.
        """
        self._not_ready.update(plans)
        self._notifier = notifier
        async with anyio.create_task_group() as helpers:
            helpers.start_soon(self._obey_signals)
            helpers.start_soon(self._end_overdue_drain)
            helpers.start_soon(self._beat)
            helpers.start_soon(self._watch)
            helpers.start_soon(self._pass_cancels)
            helpers.start_soon(
                Sweeper(self._settings, self._postgres, self._redis, self._kinds).run
            )
            async with anyio.create_task_group() as keepers:
                for plan in plans:
                    keepers.start_soon(self._keep, plan)
            helpers.cancel_scope.cancel()

    # -- a slot's life

    async def _keep(self, plan: SlotPlan) -> None:
        """Start the slot, wait for its end, rescue what it held, start the next one."""
        pause_s = PAUSE_FIRST_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                slot = await self._start(plan)
            except UNREACHABLE as error:
                log.warning("slot_start_waits", pool=plan.pool, error=str(error))
            else:
                await self._hear(slot)
                await slot.process.wait()
                await self._bury(slot)
            if time.monotonic() - began > START_S:
                pause_s = PAUSE_FIRST_S
            with anyio.move_on_after(pause_s):
                await self._stopping.wait()
            pause_s = min(PAUSE_MAX_S, pause_s * 2)

    async def _start(self, plan: SlotPlan) -> Slot:
        kinds = tuple(kind.name for kind in self._kinds.of_pool(plan.pool))
        async with self._postgres.acquire() as connection:
            slot_id = await slots.register(
                connection,
                supervisor_id=self._id,
                pool=plan.pool,
                number=plan.number,
                host=socket.gethostname(),
                pid=os.getpid(),
                cores=plan.cpus,
                kinds=kinds,
                version=VERSION,
            )
        slot = await self._spawn(plan, slot_id)
        self._slots[slot_id] = slot
        if self._stopping.is_set():
            slot.order("drain")
        log.info(
            "slot_started",
            slot_id=slot_id,
            pool=plan.pool,
            number=plan.number,
            pid=slot.process.pid,
        )
        return slot

    async def _spawn(self, plan: SlotPlan, slot_id: SlotId) -> Slot:
        board = Board.create()
        ours, theirs = socket.socketpair()
        config = SlotConfig(
            plan.pool, plan.number, slot_id, plan.cpus, os.getpid(), board.fd, theirs.fileno()
        )
        with theirs:
            process = await anyio.open_process(
                [sys.executable, "-m", "workers.slots", config.encode()],
                stdin=None,
                stdout=None,
                stderr=None,
                pass_fds=(board.fd, theirs.fileno()),
                env=_environment(self._settings, len(plan.cpus)),
            )
        return Slot(plan, slot_id, process, board, ours)

    async def _hear(self, slot: Slot) -> None:
        """Return when the slot is ready, or has ended before."""
        await anyio.wait_readable(slot.control)
        with suppress(ConnectionResetError):
            if slot.control.recv(len(READY)) != READY:
                return
            self._not_ready.discard(slot.plan)
            if not self._not_ready:
                self._notifier.ready()

    async def _bury(self, slot: Slot) -> None:
        """Declare a dead slot dead and put its jobs back, however long Postgres takes to answer."""
        started = slot.board.read()
        reason = slot.killed_for or f"exit {slot.process.returncode}"
        rescued = None
        while rescued is None:
            try:
                async with self._postgres.acquire() as connection:
                    await slots.end(connection, slot.slot_id, reason)
                rescued = await slots.rescue(
                    self._postgres,
                    slot.slot_id,
                    started=[job.job_id for job in started],
                    endings=self._endings(slot, started),
                    kinds=self._kinds,
                )
            except UNREACHABLE as error:
                log.warning("rescue_waits", slot_id=slot.slot_id, error=str(error))
                await anyio.sleep(self._settings.poll_s)
        del self._slots[slot.slot_id]
        slot.board.close()
        slot.control.close()
        metrics.SLOT_DEATHS.labels(pool=slot.plan.pool).inc()
        log.info("slot_ended", slot_id=slot.slot_id, reason=reason, rescued=rescued.total)
        await dispatch.announce(self._redis, rescued.ready)

    def _endings(
        self, slot: Slot, started: Sequence[Started]
    ) -> Mapping[UUID, tuple[Token, Ending]]:
        """What the kill of this slot decided for single jobs; all others are rescued."""
        now_ns = time.monotonic_ns()
        problem = Problem("timeout", "did not stop at its timeout_s, so its slot was killed")
        return {
            job.job_id: (Token(job.token), Failed(problem))
            for job in started
            if slot.killed_for and job.deadline_ns <= now_ns
        }

    # -- watching

    async def _beat(self) -> None:
        """Bump the counters of all slots; an outage of Postgres is nobody's death."""
        while True:
            try:
                async with self._postgres.acquire() as connection:
                    await slots.beat(connection, list(self._slots))
                self._beat_ok_at = time.monotonic()
            except UNREACHABLE as error:
                log.warning("beat_failed", error=str(error))
            await anyio.sleep(self._settings.heartbeat_s)

    async def _watch(self) -> None:
        """Kill slots whose job overstays its deadline or cancel, or whose loop stands still."""
        while True:
            for slot in list(self._slots.values()):
                if (reason := self._overdue(slot)) is not None:
                    slot.kill(reason)
            await anyio.sleep(WATCH_S)

    def _overdue(self, slot: Slot) -> str | None:
        now_ns = time.monotonic_ns()
        grace_ns = int(KILL_AFTER_S * 1e9)
        turned_ns = slot.board.turned_ns
        if turned_ns == 0:
            return "did not start" if time.monotonic() - slot.started_at > START_S else None
        started = slot.board.read()
        for job in started:
            if now_ns > job.deadline_ns + grace_ns:
                return f"job {job.job_id} overstayed its timeout"
            asked_at = slot.cancels.get(job.job_id)
            if asked_at is not None and time.monotonic() - asked_at > KILL_AFTER_S:
                return f"job {job.job_id} did not stop when cancelled"
        has_shared = any(not job.exclusive for job in started)
        if has_shared and now_ns - turned_ns > int(STALL_S * 1e9):
            return "event loop stood still"
        return None

    async def _pass_cancels(self) -> None:
        """Tell slots which of their jobs are to be cancelled."""
        while True:
            try:
                async with self._postgres.acquire() as connection:
                    requested = await slots.requested_cancels(connection, list(self._slots))
            except UNREACHABLE:
                requested = {}
            for slot_id, job_ids in requested.items():
                if (slot := self._slots.get(slot_id)) is not None:
                    self._cancel(slot, job_ids)
            await anyio.sleep(CANCEL_POLL_S)

    def _cancel(self, slot: Slot, job_ids: Sequence[UUID]) -> None:
        slot.cancels = {job_id: slot.cancels.get(job_id, time.monotonic()) for job_id in job_ids}
        for job_id in job_ids:
            slot.order(f"cancel {job_id}")

    # -- stopping

    async def _obey_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                if self._stopping.is_set():
                    log.warning("stopping_now", signal=number.name)
                    self._kill_all("second signal")
                else:
                    log.info("draining", signal=number.name, slots=len(self._slots))
                    self._stopping.set()
                    for slot in self._slots.values():
                        slot.order("drain")

    async def _end_overdue_drain(self) -> None:
        """A slot whose loop is stuck cannot end its own drain: kill what is left after the grace
        period.
        """
        await self._stopping.wait()
        await anyio.sleep(self._settings.grace_s + STOP_GRACE_S + 1)
        self._kill_all("did not drain")

    def _kill_all(self, reason: str) -> None:
        for slot in self._slots.values():
            slot.kill(reason)


def _environment(settings: Settings, cores: int) -> dict[str, str]:
    """The environment of a slot: ours, the resolved addresses, and its thread limits."""
    return {
        **os.environ,
        "XNAI_DATA_DIR": str(settings.data_dir),
        "XNAI_DATABASE_URL": settings.database_url or "",
        "XNAI_REDIS_URL": settings.redis_url or "",
        **thread_environment(cores),
    }


async def run_supervisor(settings: Settings, pools: Sequence[str], notifier: Notifier) -> None:
    """The role `xnai work POOL…`: keep the slots of these pools until told to stop."""
    kinds = load_kinds(settings.kinds)
    plans = [plan for plan in plan_slots(settings.pools) if plan.pool in pools]
    postgres = await open_pool(settings, role=f"work {' '.join(pools)}", size=POSTGRES_CONNECTIONS)
    redis = connect(settings)
    try:
        await Supervisor(settings, postgres, redis, kinds).run(plans, notifier)
    finally:
        with anyio.move_on_after(1, shield=True):
            await postgres.close()
        await redis.aclose()
