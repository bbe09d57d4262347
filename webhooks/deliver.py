"""Delivers what is owed: claim, send, finish. Any number of deliverers run at once.

The request happens between two transactions, never inside one. A deliverer that dies in between
leaves a lease that ends by itself, so a receiver may see a delivery twice, always with the same
`webhook-id`.
"""

import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from http import HTTPStatus
from uuid import UUID

import anyio
import asyncpg

from jobs import tenant_egress
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Connection, Pool
from webhooks import backoff, callback_secrets, circuits, outbox, redeliveries
from webhooks.circuits import Circuit
from webhooks.lanes import Lanes
from webhooks.model import TEST_TYPE, Answer, Owed
from webhooks.outbox import Outlook
from webhooks.request import BLOCKED, TIMEOUT_S, send
from webhooks.wire import Wire

EXHAUSTED = "attempts_exhausted"
# However long ago the first of them was: an endpoint with one event a week is not judged by it.
DISABLE_FAILURES_MIN = 10
DISABLE_AFTER_S = 5 * 86_400.0
_FINISH_WITHIN_S = outbox.LEASE_S - TIMEOUT_S - 5.0
_FINISH_AGAIN_S = 1.0
_TOGETHER_S = 0.01
# Where something was owed, more may follow soon; an idle machine is asked less often.
BUSY_S = 30.0
_POSTPONED = (*UNREACHABLE, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

log = logger("webhooks")


@dataclass(slots=True)
class Deliverer:
    """Sends from one process. `stop` lets what is under way finish and takes nothing new."""

    pool: Pool
    wire: Wire
    disable_after_s: float = DISABLE_AFTER_S
    rng: random.Random = field(default_factory=random.Random)
    lanes: Lanes = field(default_factory=Lanes)
    _claiming: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _freed: anyio.Event = field(default_factory=anyio.Event)
    _busy_until: float = 0.0

    async def run(self, *, poll_s: float) -> None:
        """Fan out and deliver until `stop`, then return when the last request has ended. Looks for
        work every `poll_s`, and four times as often while there was some lately.
        """
        async with anyio.create_task_group() as group:
            with self._claiming:
                while True:
                    self._freed = anyio.Event()
                    pause_s = await self._pass(group, poll_s)
                    with anyio.move_on_after(pause_s):
                        await self._freed.wait()
                        # Those that end together are followed by one claim, not by one each.
                        await anyio.sleep(_TOGETHER_S)

    def stop(self) -> None:
        """Take nothing new."""
        self._claiming.cancel()

    async def deliver_due(self, now: datetime | None = None) -> int:
        """Claim once, deliver all of it, wait for the last; answers how many there were."""
        async with self.pool.acquire() as connection:
            moment = await outbox.database_now(connection, now)
        async with anyio.create_task_group() as group:
            owed = await self._claim(moment)
            for item in owed:
                group.start_soon(self._deliver, item, now)
        return len(owed)

    async def _pass(self, group: anyio.abc.TaskGroup, poll_s: float) -> float:
        """Start what is due and has room; answers how long to wait for more."""
        poll_s /= 4 if anyio.current_time() < self._busy_until else 1
        try:
            ahead = await self._look()
            if ahead.has_events or ahead.due_in_s is not None:
                self._busy_until = anyio.current_time() + BUSY_S
            if ahead.due_in_s is not None and ahead.due_in_s <= 0:
                for item in await self._claim(ahead.now):
                    group.start_soon(self._deliver, item, None)
            # Last, so that nothing that is due waits for it.
            is_more = ahead.has_redeliveries and await self._redeliver()
        except _POSTPONED as error:
            log.warning("delivery_postponed", error=str(error))
            return poll_s
        if is_more or ahead.has_events:
            return 0.0
        # Something due that was not taken waits for room in its lane, whose end wakes us, or for
        # the probe of its circuit.
        if ahead.due_in_s is None or ahead.due_in_s <= 0:
            return poll_s
        return min(poll_s, ahead.due_in_s)

    async def _look(self) -> Outlook:
        """Owe a part of the new events, and look what there is to do then."""
        async with self.pool.acquire() as connection:
            ahead = await outbox.look(connection)
            # Events that another deliverer reads just now are not waited for.
            is_read = ahead.has_events and (await outbox.fan_out(connection))[0] > 0
            if is_read:
                ahead = await outbox.look(connection)
        metrics.WEBHOOK_CIRCUITS.labels(state="open").set(ahead.circuits_waiting)
        metrics.WEBHOOK_CIRCUITS.labels(state="half_open").set(ahead.circuits_due)
        return replace(ahead, has_events=is_read)

    async def _redeliver(self) -> bool:
        """Do a slice of what is to be sent again; False when others work on all there is."""
        async with self.pool.acquire() as connection:
            return await redeliveries.work(connection) is not None

    async def _claim(self, now: datetime) -> list[Owed]:
        """Lease what there is room for. Each has entered its lane and has its secrets."""
        room = self.lanes.room()
        if room.total <= 0:
            return []
        async with self.pool.acquire() as connection:
            claimed = await outbox.claim(connection, room, now=now)
            owed = [await self._with_secrets(connection, item) for item in claimed]
        for item in owed:
            self.lanes.enter(item.lane)
        return owed

    async def _with_secrets(self, connection: Connection, owed: Owed) -> Owed:
        """The first callback of a tenant makes its secret."""
        if owed.secrets or owed.endpoint_id is not None:
            return owed
        made = await callback_secrets.get(connection, owed.tenant_id)
        return replace(owed, secrets=(made.secret,))

    async def _deliver(self, owed: Owed, now: datetime | None) -> None:
        """Send, and finish; whatever happens, the lane is left."""
        is_accepted = False
        try:
            if owed.undeliverable is not None:
                await self._finish(owed, None, now)
                return
            async with self.pool.acquire() as connection:
                entries = await tenant_egress.entries_of(connection, owed.tenant_id)
            async with self.wire.of(entries) as wire:
                answer = await send(wire, owed, now=owed.claimed_at)
            is_accepted = answer.is_success
            await self._finish(owed, answer, now)
        except _POSTPONED as error:
            # The lease ends by itself: the delivery comes back.
            log.warning("delivery_postponed", delivery_id=str(owed.id), error=str(error))
        finally:
            self.lanes.leave(owed.lane, is_accepted=is_accepted)
            self._freed.set()

    async def _finish(self, owed: Owed, answer: Answer | None, now: datetime | None) -> None:
        """Keep the outcome, and say so."""
        with anyio.fail_after(_FINISH_WITHIN_S):
            outcome = await self._record_in_the_end(owed, answer, now)
        metrics.WEBHOOKS_DELIVERED.labels(outcome=outcome).inc()
        log.info(
            "webhook_attempted",
            delivery_id=str(owed.id),
            attempt=owed.attempt,
            outcome=outcome,
            status=answer and answer.status,
            error_type=answer and answer.error_type,
        )

    async def _record_in_the_end(
        self, owed: Owed, answer: Answer | None, now: datetime | None
    ) -> str:
        """As long as the lease lasts, through a restart of Postgres too."""
        while True:
            try:
                return await self._record(owed, answer, now)
            except (*UNREACHABLE, asyncpg.InterfaceError):
                await anyio.sleep(_FINISH_AGAIN_S)

    async def _record(self, owed: Owed, answer: Answer | None, now: datetime | None) -> str:
        """One transaction: the outcome, its line in the log, and what it means for the lane. Timed
        by the claim, whose clock is the database's.

        An endpoint is disabled in one of its own, after it: a change of the endpoint locks it
        before what is owed to it. Who dies in between leaves it to the next failure.
        """
        moment = now or owed.claimed_at + timedelta(seconds=answer.duration_s if answer else 0.0)
        async with self.pool.acquire() as connection:
            if answer is None:
                reason = owed.undeliverable or ""
                await outbox.discard(connection, owed, reason=reason, now=moment)
                return "discarded"
            if answer.is_success:
                lanes = _answering(owed)
                await outbox.deliver(connection, owed, answer, closing=lanes, now=moment)
                return "delivered"
            async with connection.transaction():
                reason, due_at = self._verdict(owed, answer, moment)
                if due_at is not None:
                    is_ours = await outbox.retry(connection, owed, answer, due_at=due_at)
                else:
                    is_ours = await outbox.bury(connection, owed, answer, reason=reason, now=moment)
                circuit = await self._fail_lane(connection, owed, answer, moment, is_ours=is_ours)
            if owed.endpoint_id is not None and (
                told := self._judge(owed, answer, circuit, moment)
            ):
                await _disable(connection, owed.endpoint_id, told, now=moment)
        return "dead" if due_at is None else "retried"

    async def _fail_lane(
        self,
        connection: Connection,
        owed: Owed,
        answer: Answer,
        now: datetime,
        *,
        is_ours: bool,
    ) -> Circuit | None:
        """Of an endpoint `Retry-After` holds back everything; a callback's speaks for itself."""
        if not is_ours:
            return None
        asked_s = answer.retry_after_s if owed.endpoint_id is not None else None
        return await circuits.fail(
            connection, owed.lane, now=now, rng=self.rng, retry_after_s=asked_s or 0.0
        )

    def _judge(
        self, owed: Owed, answer: Answer, circuit: Circuit | None, now: datetime
    ) -> "_Disabling | None":
        """Whether the endpoint says that it is gone, or nothing has reached it for days."""
        if answer.status == HTTPStatus.GONE:
            return _Disabling(outbox.GONE)
        if circuit is None or owed.type == TEST_TYPE:
            return None
        lasts_s = (now - circuit.failing_since).total_seconds()
        if circuit.failures < DISABLE_FAILURES_MIN or lasts_s < self.disable_after_s:
            return None
        return _Disabling(outbox.FAILING, circuit.failing_since)

    def _verdict(self, owed: Owed, answer: Answer, now: datetime) -> tuple[str, datetime | None]:
        """Why there is no further attempt, or when it is.

        A refusal by our own guard is final: what it blocks today it blocks tomorrow, and asking
        again would only probe the network inside.
        """
        if answer.status == HTTPStatus.GONE:
            return outbox.GONE, None
        if answer.error_type == BLOCKED:
            return BLOCKED, None
        delay_s = backoff.delay_s(owed.failures + 1, self.rng, answer.retry_after_s)
        return EXHAUSTED, None if delay_s is None else now + timedelta(seconds=delay_s)


@dataclass(frozen=True, slots=True)
class _Disabling:
    """Why an endpoint is disabled, and since when it has failed if that is why."""

    reason: str
    failing_since: datetime | None = None


async def _disable(
    connection: Connection, endpoint_id: UUID, why: _Disabling, *, now: datetime
) -> None:
    async with connection.transaction():
        told = await outbox.disable(
            connection,
            endpoint_id,
            reason=why.reason,
            now=now,
            failing_since=why.failing_since,
        )
        await circuits.close(connection, [circuits.lane_of(endpoint_id)])
    if told is not None:
        metrics.WEBHOOKS_DISABLED.labels(reason=why.reason).inc()
        log.warning("webhook_disabled", webhook_id=str(endpoint_id), reason=why.reason)


def _answering(owed: Owed) -> list[str]:
    """The lanes that a success speaks for: a test's for those of its endpoint's events, too."""
    if owed.type != TEST_TYPE or owed.endpoint_id is None:
        return [owed.lane]
    return [owed.lane, circuits.lane_of(owed.endpoint_id)]
