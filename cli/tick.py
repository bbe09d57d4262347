"""The tick role: fires schedules, works bulk operations off, delivers webhooks, forgets what is
old. Composes; decides nothing.

Any number run at once: each row is taken by whoever locks it, so there is no leader to lose.
"""

import signal
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import anyio
import asyncpg
from anyio.abc import TaskStatus

from api import audit
from corpus import purge, uploads
from jobs import dispatch, retention
from jobs.kinds import load_kinds
from jobs.live import LiveStream
from jobs.operation_ticker import OperationTicker
from runtime import redis as runtime_redis
from runtime.egress import EgressPolicy
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Pool, open_pool
from schedules.retention import prune as prune_fires
from schedules.ticker import Ticker
from webhooks import circuits, deliveries, outbox
from webhooks.deliver import Deliverer
from webhooks.wire import Wire

if TYPE_CHECKING:
    from runtime.readiness import Notifier
    from runtime.settings import Settings

POOL_SIZE = 4
# Connections of deliveries alone: receivers that hang never keep a schedule waiting for one.
DELIVERY_POOL_SIZE = 4
RETENTION_EVERY_S = 60.0
FAILING_KEPT = timedelta(days=30)

log = logger("tick")


async def run_tick(settings: "Settings", notifier: "Notifier") -> None:
    """Run until SIGTERM or SIGINT; what is being sent then may finish within `grace_s`."""
    kinds = load_kinds(settings.kinds)
    pool = await open_pool(settings, role="tick", size=POOL_SIZE)
    redis = runtime_redis.connect(settings)
    delivery_pool = await open_pool(settings, role="deliver", size=DELIVERY_POOL_SIZE)
    wire = Wire(EgressPolicy(settings.egress_allow))
    deliverer = Deliverer(delivery_pool, wire, settings.webhook_disable_days * 86_400.0)
    announce = partial(dispatch.announce, redis)
    ticker = Ticker(pool, kinds, announce, settings.ageing_s)
    operations = OperationTicker(pool, LiveStream(redis), announce, settings.ageing_s)
    try:
        async with anyio.create_task_group() as group, anyio.create_task_group() as ticking:
            stop = await ticking.start(_watch_signals)
            group.start_soon(partial(deliverer.run, poll_s=settings.tick_s))
            ticking.start_soon(_forget, pool, settings)
            ticking.start_soon(partial(operations.run, poll_s=settings.tick_s))
            await ticking.start(partial(ticker.run, poll_s=settings.tick_s))
            notifier.ready()
            await stop.wait()
            ticking.cancel_scope.cancel()
            deliverer.stop()
            group.cancel_scope.deadline = anyio.current_time() + settings.grace_s
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(settings.grace_s + 1.0):
            await wire.aclose()
            await redis.aclose()
            await pool.close()
            await delivery_pool.close()


async def _watch_signals(*, task_status: TaskStatus[anyio.Event]) -> None:
    stop = anyio.Event()
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started(stop)
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            stop.set()


async def _forget(pool: Pool, settings: "Settings") -> None:
    """Make the days to come their partitions, and drop what retention lets go."""
    while True:
        try:
            await _forget_once(pool, settings)
        except (*UNREACHABLE, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("retention_postponed", error=str(error))
        await anyio.sleep(RETENTION_EVERY_S)


async def _forget_once(pool: Pool, settings: "Settings") -> None:
    days = settings.retention_days
    async with pool.acquire() as connection:
        await retention.make_partitions(connection)
        while (await retention.prune(connection, days=days)).more:
            continue
        while (await purge.purge(connection)).more:
            continue
        await uploads.expire(connection)
        now = await outbox.database_now(connection)
        before = now - timedelta(days=days)
        while await deliveries.prune(connection, before=before):
            continue
        await circuits.prune(connection, before=now - FAILING_KEPT)
        while await prune_fires(connection, before=before):
            continue
        while await audit.prune(connection, days=settings.audit_days):
            continue
