"""Finds what nobody looks after: due jobs, jobs of dead slots, jobs queued but never announced.

No leader: every supervisor runs one, each row is taken with SKIP LOCKED, so any number may run at
once.
"""

import time
from dataclasses import dataclass, field

import anyio
from redis.asyncio import Redis

from jobs import batches, dispatch, ledger, limits, pools, slots
from jobs.kinds import KindRegistry
from jobs.model import SlotId
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Connection, Pool
from runtime.settings import Settings

PROMOTE_MAX = 5000
ROUND_MAX_S = 5.0

log = logger("sweeper")


@dataclass(slots=True)
class DeathWatch:
    """Tells dead slots from an unreachable database by counters read over an unbroken connection.

    A slot is dead when its counter did not move for `dead_after_s` of watching. A lost connection
    restarts the watch, so that an outage of Postgres, or a pause of this process, is nobody's
    death.
    """

    dead_after_s: float
    _seen: dict[SlotId, tuple[int, float]] = field(default_factory=dict)
    _last_look: float = 0.0

    def restart(self) -> None:
        """Forget everything: the connection broke."""
        self._seen.clear()

    def look(self, beats: dict[SlotId, int], now: float) -> list[SlotId]:
        """The slots found dead at `now`, in monotonic seconds."""
        if now - self._last_look > self.dead_after_s / 2:
            self.restart()
        self._last_look = now
        for slot_id in self._seen.keys() - beats.keys():
            del self._seen[slot_id]
        dead = []
        for slot_id, beat in beats.items():
            last_beat, since = self._seen.get(slot_id, (-1, now))
            if beat != last_beat:
                self._seen[slot_id] = (beat, now)
            elif now - since >= self.dead_after_s:
                dead.append(slot_id)
        return dead


class Sweeper:
    """Sweeps every `sweep_s`; an outage of Postgres is waited out."""

    def __init__(
        self, settings: Settings, postgres: Pool, redis: Redis, kinds: KindRegistry
    ) -> None:
        self._settings = settings
        self._postgres = postgres
        self._redis = redis
        self._kinds = kinds
        self._watch = DeathWatch(settings.dead_after_s)

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            # The last line of defence: one failed sweep must not end all later ones.
            try:
                # A drain that cuts a transaction in two leaves its end to the server's timeout.
                with anyio.move_on_after(ROUND_MAX_S, shield=True):
                    await self.sweep()
            except UNREACHABLE as error:
                self._watch.restart()
                log.warning("sweep_waits", error=str(error))
            except Exception:
                self._watch.restart()
                log.exception("sweep_failed")
            await anyio.sleep(self._settings.sweep_s)

    async def sweep(self) -> None:
        """One round over everything."""
        async with self._postgres.acquire() as connection:
            await self._promote(connection)
            await self._find_dead(connection)
            await batches.finish_due(connection)
            await dispatch.announce(self._redis, await limits.audit(connection))
            unannounced = await pools.unannounced(connection, older_than_s=self._settings.sweep_s)
        await dispatch.announce(self._redis, unannounced)

    async def _promote(self, connection: Connection) -> None:
        """Queue scheduled jobs whose time has come, cancel those whose time is over."""
        expired = await ledger.expire(connection, PROMOTE_MAX)
        await dispatch.announce(self._redis, expired.ready)
        ready = await ledger.promote_due(connection, PROMOTE_MAX)
        await dispatch.announce(self._redis, ready)

    async def _find_dead(self, connection: Connection) -> None:
        dead = self._watch.look(await slots.beats(connection), time.monotonic())
        for slot_id in dead:
            await slots.end(connection, slot_id, "no heartbeat")
            log.warning("slot_declared_dead", slot_id=slot_id, after_s=self._settings.dead_after_s)
        for slot_id in await slots.ended_holding(connection):
            rescued = await slots.rescue(self._postgres, slot_id, started=None, kinds=self._kinds)
            metrics.JOBS_RESCUED.inc(rescued.total)
            await dispatch.announce(self._redis, rescued.ready)
