"""Delivers what is owed: claim, send, finish. Any number of deliverers run at once.

The request happens between two transactions, never inside one. A deliverer that dies in between
leaves a lease that ends by itself, so a receiver may see a delivery twice, always with the same
`webhook-id`.
"""

import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from http import HTTPStatus

import anyio
import asyncpg
import httpx

from runtime import metrics
from runtime.egress import EgressPolicy, guarded_client
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Connection, Pool
from webhooks import backoff, endpoints, outbox
from webhooks.lanes import TOTAL, Lanes
from webhooks.model import TEST_TYPE, Answer, Owed
from webhooks.request import BLOCKED, TIMEOUT_S, send

# As many as there are places: a name that does not resolve costs its own place and no other.
DISABLED = "endpoint_disabled"
EXHAUSTED = "attempts_exhausted"
_FINISH_WITHIN_S = outbox.LEASE_S - TIMEOUT_S - 5.0
_FINISH_AGAIN_S = 1.0
_POSTPONED = (*UNREACHABLE, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

log = logger("webhooks")


def open_client(policy: EgressPolicy) -> httpx.AsyncClient:
    """The client of deliveries: behind the guard, bounded in time and connections."""
    limits = httpx.Limits(max_connections=TOTAL, max_keepalive_connections=16, keepalive_expiry=5.0)
    return guarded_client(policy, timeout=httpx.Timeout(TIMEOUT_S), limits=limits)


@dataclass(slots=True)
class Deliverer:
    """Sends from one process. `stop` lets what is under way finish and takes nothing new."""

    pool: Pool
    client: httpx.AsyncClient
    rng: random.Random = field(default_factory=random.Random)
    lanes: Lanes = field(default_factory=Lanes)
    _claiming: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _freed: anyio.Event = field(default_factory=anyio.Event)

    async def run(self, *, poll_s: float) -> None:
        """Fan out and deliver until `stop`, then return when the last request has ended."""
        async with anyio.create_task_group() as group:
            with self._claiming:
                while True:
                    self._freed = anyio.Event()
                    pause_s = await self._pass(group, poll_s)
                    with anyio.move_on_after(pause_s):
                        await self._freed.wait()

    def stop(self) -> None:
        """Take nothing new."""
        self._claiming.cancel()

    async def deliver_due(self, now: datetime | None = None) -> int:
        """Claim once, deliver all of it, wait for the last; answers how many there were."""
        async with anyio.create_task_group() as group:
            owed = await self._claim(now)
            for item in owed:
                group.start_soon(self._deliver, item, now)
        return len(owed)

    async def _pass(self, group: anyio.abc.TaskGroup, poll_s: float) -> float:
        """Start what is due and has room; answers how long to wait for more."""
        try:
            async with self.pool.acquire() as connection:
                while (await outbox.fan_out(connection))[0] == outbox.FAN_OUT_PAGE:
                    continue
            for item in await self._claim(None):
                group.start_soon(self._deliver, item, None)
            async with self.pool.acquire() as connection:
                due_in_s = await outbox.next_owed_in_s(connection)
        except _POSTPONED as error:
            log.warning("delivery_postponed", error=str(error))
            return poll_s
        # Something due that was not taken waits for room in its lane: one that ends wakes us.
        return poll_s if due_in_s is None or due_in_s <= 0 else min(poll_s, due_in_s)

    async def _claim(self, now: datetime | None) -> list[Owed]:
        """Lease what there is room for. Each has entered its lane and has its secrets."""
        room = self.lanes.room()
        if room.total <= 0:
            return []
        async with self.pool.acquire() as connection, connection.transaction():
            moment = await outbox.database_now(connection, now)
            claimed = await outbox.claim(connection, room, now=moment)
            owed = [await self._with_secrets(connection, item) for item in claimed]
        for item in owed:
            self.lanes.enter(item.host)
        return owed

    async def _with_secrets(self, connection: Connection, owed: Owed) -> Owed:
        """The first callback of a tenant makes its secret."""
        if owed.secrets or owed.endpoint_id is not None:
            return owed
        return replace(owed, secrets=(await endpoints.callback_secret(connection, owed.tenant_id),))

    async def _deliver(self, owed: Owed, now: datetime | None) -> None:
        """Send, and finish; whatever happens, the lane is left."""
        timed_out = False
        try:
            if owed.endpoint_disabled and owed.type != TEST_TYPE:
                await self._finish(owed, None, now)
                return
            async with self.pool.acquire() as connection:
                moment = await outbox.database_now(connection, now)
            answer = await send(self.client, owed, now=moment)
            timed_out = answer.error_type == "timeout"
            await self._finish(owed, answer, now)
        except _POSTPONED as error:
            # The lease ends by itself: the delivery comes back.
            log.warning("delivery_postponed", delivery_id=str(owed.id), error=str(error))
        finally:
            self.lanes.leave(owed.host, timed_out=timed_out)
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
        """One transaction: the outcome, its line in the log, and an endpoint that is gone."""
        async with self.pool.acquire() as connection, connection.transaction():
            moment = await outbox.database_now(connection, now)
            if answer is None:
                await outbox.discard(connection, owed, reason=DISABLED, now=moment)
                return "discarded"
            if answer.is_success:
                await outbox.deliver(connection, owed, answer, now=moment)
                return "delivered"
            reason, due_at = self._verdict(owed, answer, moment)
            if due_at is not None:
                await outbox.retry(connection, owed, answer, due_at=due_at)
                return "retried"
            await outbox.bury(connection, owed, answer, reason=reason, now=moment)
            if reason == outbox.GONE and owed.endpoint_id is not None:
                await outbox.disable(connection, owed.endpoint_id, now=moment)
            return "dead"

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
