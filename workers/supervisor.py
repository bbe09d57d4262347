"""Starts, pins, watches, renews and kills the slots of its pools. Never runs job code.

Its heartbeats vouch for its slots: one counter a slot, bumped whatever the slot is busy with. A
slot that exits, stops, or must be killed, is declared dead here at once; the death of this process
itself is found by the sweepers of others, or by its successor's.
"""

import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from uuid import UUID

import anyio
import asyncpg
from anyio.abc import TaskGroup

from jobs import dispatch, slots
from jobs.kinds import KindRegistry, load_kinds
from jobs.model import SlotId, Token
from jobs.outcomes import Backoff, Ending, Failed, Problem
from jobs.results import Rescued
from runtime import metrics
from runtime.ids import uuid7
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Pool, open_pool
from runtime.processes import own_identity
from runtime.readiness import Notifier
from runtime.redis import Client, connect
from runtime.settings import Settings
from runtime.version import VERSION
from workers.board import Started
from workers.runner import STOP_GRACE_S
from workers.slot_process import SlotProcess, spawn
from workers.slots import EXIT_DONE, EXIT_ENDED
from workers.sweeper import Sweeper
from workers.topology import SlotPlan, plan_slots
from workers.verdicts import is_lost, overdue, worn_out

WATCH_BUSY_S = 0.5
WATCH_IDLE_S = 1.0
# A watch that comes so late was itself held up: what it sees proves nothing against the slots.
HELD_UP_S = 3 * WATCH_IDLE_S
# How long the process of an abandoned slot may stay stopped, until it is killed after all.
ABANDONED_S = 300.0
PAUSE_FIRST_S = 0.2
PAUSE_MAX_S = 10.0
POSTGRES_CONNECTIONS = 3

# The supervisor must outlive whatever Postgres says to it.
_POSTPONED = (*UNREACHABLE, asyncpg.PostgresError, asyncpg.InterfaceError)

log = logger("supervisor")


class Supervisor:
    """Keeps the slots of some pools of this host alive until told to stop."""

    def __init__(
        self, settings: Settings, postgres: Pool, redis: Client, kinds: KindRegistry
    ) -> None:
        self._settings = settings
        self._postgres = postgres
        self._redis = redis
        self._kinds = kinds
        self._id = uuid7()
        self._identity = own_identity()
        self._slots: dict[SlotId, SlotProcess] = {}
        self._not_ready: set[SlotPlan] = set()
        self._notifier = Notifier()
        self._stopping = anyio.Event()
        self._watched_at = time.monotonic()

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
            helpers.start_soon(
                Sweeper(self._settings, self._postgres, self._redis, self._kinds).run
            )
            async with anyio.create_task_group() as keepers:
                for plan in plans:
                    keepers.start_soon(self._keep, plan, helpers)
            helpers.cancel_scope.cancel()

    # -- a slot's life

    async def _keep(self, plan: SlotPlan, helpers: TaskGroup) -> None:
        """Start the slot, wait for its end, rescue what it held, start the next one."""
        pause_s = PAUSE_FIRST_S
        while not self._stopping.is_set():
            try:
                slot = await self._start(plan)
            except _POSTPONED as error:
                log.warning("slot_start_waits", pool=plan.pool, error=str(error))
            else:
                await self._attend(slot)
                await self._bury(slot, helpers)
                if slot.is_ready:
                    # It died of what it did, not of how it was started.
                    pause_s = PAUSE_FIRST_S
                    continue
            with anyio.move_on_after(pause_s):
                await self._stopping.wait()
            pause_s = min(PAUSE_MAX_S, pause_s * 2)

    async def _start(self, plan: SlotPlan) -> SlotProcess:
        async with self._postgres.acquire() as connection:
            slot_id = await slots.register(
                connection,
                supervisor_id=self._id,
                pool=plan.pool,
                number=plan.number,
                host=socket.gethostname(),
                pid=os.getpid(),
                cores=plan.cpus,
                kinds=[kind.name for kind in self._kinds.of_pool(plan.pool)],
                version=VERSION,
                supervisor=self._identity,
            )
        slot = await spawn(self._settings, plan, slot_id)
        self._slots[slot_id] = slot
        if self._stopping.is_set():
            slot.drain()
        log.info(
            "slot_started",
            slot_id=slot_id,
            pool=plan.pool,
            number=plan.number,
            pid=slot.process.pid,
        )
        return slot

    async def _attend(self, slot: SlotProcess) -> None:
        """Tell others when the slot is ready; return when it has ended, or is given up."""
        with slot.waiting:
            if await slot.wait_ready():
                self._not_ready.discard(slot.plan)
                if not self._not_ready:
                    self._notifier.ready()
            await slot.process.wait()

    async def _bury(self, slot: SlotProcess, helpers: TaskGroup) -> None:
        """Declare a slot dead and put its jobs back, however long Postgres takes to answer."""
        reason = slot.ended_for or slot.recycled_for or f"exit {slot.process.returncode}"
        started = slot.board.read()
        was_live = await self._until_answered(partial(self._declare_dead, slot, reason))
        rescued = await self._until_answered(
            partial(self._rescue, slot, started, was_live=was_live)
        )
        del self._slots[slot.slot_id]
        log.info("slot_ended", slot_id=slot.slot_id, reason=reason, rescued=rescued.total)
        metrics.JOBS_RESCUED.inc(rescued.total)
        if slot.recycled_for:
            metrics.SLOTS_RECYCLED.labels(slot.plan.pool, slot.recycled_for).inc()
        else:
            metrics.SLOT_DEATHS.labels(pool=slot.plan.pool).inc()
        if slot.is_abandoned:
            slot.order("end")
            helpers.start_soon(self._see_off, slot)
        else:
            slot.close()
        await dispatch.announce(self._redis, rescued.ready)

    async def _until_answered[T](self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except _POSTPONED as error:
                log.warning("rescue_waits", error=str(error))
                await anyio.sleep(self._settings.poll_s)

    async def _declare_dead(self, slot: SlotProcess, reason: str) -> bool:
        """Declare it; False when somebody else did before."""
        async with self._postgres.acquire() as connection:
            was_live = await slots.end(connection, slot.slot_id, reason)
            if slot.is_abandoned:
                # Stopped in the middle of a transaction, it would keep its jobs from their rescue.
                await slots.close_connections(connection, slot.slot_id)
        return was_live

    async def _rescue(
        self, slot: SlotProcess, started: Sequence[Started], *, was_live: bool
    ) -> Rescued:
        suspects = [job.job_id for job in started] if was_live and _died_by_itself(slot) else []
        return await slots.rescue(
            self._postgres,
            slot.slot_id,
            started=suspects,
            endings=_endings(slot, started),
            kinds=self._kinds,
            backoff=Backoff(self._settings.backoff_s, self._settings.backoff_max_s),
        )

    async def _see_off(self, slot: SlotProcess) -> None:
        """Wait for the end of an abandoned process: it ends itself when it goes on, or is killed
        after a while.
        """
        with anyio.move_on_after(ABANDONED_S):
            await slot.process.wait()
        if slot.process.returncode is None:
            slot.process.kill()
            await slot.process.wait()
        log.info("abandoned_slot_ended", slot_id=slot.slot_id, code=slot.process.returncode)
        slot.close()

    # -- watching

    async def _beat(self) -> None:
        """Vouch for all slots, and pass on what is to be cancelled; an outage of Postgres is
        nobody's death.
        """
        while True:
            states = {slot_id: slot.state for slot_id, slot in self._slots.items()}
            try:
                if states:
                    await self._beat_once(states)
            except _POSTPONED as error:
                log.warning("beat_failed", error=str(error))
            await anyio.sleep(self._settings.heartbeat_s)

    async def _beat_once(self, states: Mapping[SlotId, slots.SlotState]) -> None:
        async with self._postgres.acquire() as connection:
            live = await slots.beat(connection, states)
        for slot_id in states:
            if (slot := self._slots.get(slot_id)) is None:
                continue
            if slot_id in live:
                slot.cancel(live[slot_id], time.monotonic())
            elif not slot.is_abandoned:
                # This process stood still for so long that others declared its slots dead.
                slot.kill("declared dead by another supervisor")

    async def _watch(self) -> None:
        """Look at every slot, more often while one has a job in hand."""
        while True:
            now = time.monotonic()
            was_held_up = now - self._watched_at > HELD_UP_S
            self._watched_at = now
            for slot in list(self._slots.values()):
                if was_held_up:
                    slot.awake_since, slot.stopped_since = now, None
                self._look_at(slot, now)
            is_busy = any(slot.board.is_busy for slot in self._slots.values())
            await anyio.sleep(WATCH_BUSY_S if is_busy else WATCH_IDLE_S)

    def _look_at(self, slot: SlotProcess, now: float) -> None:
        if slot.is_abandoned or slot.process.returncode is not None:
            return
        slot.look(now)
        if is_lost(slot, now):
            slot.abandon("stopped, by SIGSTOP or a debugger")
        elif (kill := overdue(slot, now)) is not None:
            slot.kill(kill.reason, is_to_blame=kill.is_to_blame)
        elif self._may_recycle(slot) and (worn := worn_out(slot, self._settings, now)) is not None:
            slot.recycle(worn)

    def _may_recycle(self, slot: SlotProcess) -> bool:
        """One slot of a pool at a time: only while all of them are at work."""
        pool = [other for other in self._slots.values() if other.plan.pool == slot.plan.pool]
        return all(other.state is slots.SlotState.LIVE for other in pool)

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
                        slot.drain()

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


def _died_by_itself(slot: SlotProcess) -> bool:
    """Whether one of its jobs may have ended the slot, and not somebody from outside."""
    if slot.ended_for is not None:
        return slot.is_to_blame
    return not (slot.is_draining and slot.process.returncode in {EXIT_DONE, EXIT_ENDED})


def _endings(slot: SlotProcess, started: Sequence[Started]) -> Mapping[UUID, tuple[Token, Ending]]:
    """What the kill of this slot decided for single jobs; all others are rescued."""
    if slot.ended_for is None or slot.is_abandoned:
        return {}
    now_ns = time.monotonic_ns()
    problem = Problem("timeout", "did not stop at its timeout_s, so its slot was killed")
    return {
        job.job_id: (Token(job.token), Failed(problem))
        for job in started
        if job.deadline_ns <= now_ns
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
