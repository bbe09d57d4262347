"""Finds what nobody looks after: due jobs, jobs of dead slots, jobs queued but never announced.

No leader: every supervisor runs one, each row is taken with SKIP LOCKED, so any number may run at
once.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import anyio
import asyncpg

from jobs import batches, dispatch, ledger, limits, pools, slots
from jobs.kinds import KindRegistry
from jobs.model import SlotId
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import PASSING, Connection, Pool
from runtime.redis import Client
from runtime.settings import Settings

PROMOTE_MAX = 5000
ROUND_MAX_S = 5.0
# Who declares a slot dead rescues its jobs at once, knowing more than anybody else.
HANDOVER_S = 3.0

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

    def look(self, beats: Mapping[SlotId, slots.Beat], now: float) -> list[SlotId]:
        """The slots found dead at `now`, in monotonic seconds."""
        if now - self._last_look > self.dead_after_s / 2:
            self.restart()
        self._last_look = now
        for slot_id in self._seen.keys() - beats.keys():
            del self._seen[slot_id]
        dead = []
        for slot_id, beat in beats.items():
            last_beat, since = self._seen.get(slot_id, (-1, now))
            if beat.count != last_beat:
                self._seen[slot_id] = (beat.count, now)
            elif now - since >= self.dead_after_s:
                dead.append(slot_id)
        return dead


class Sweeper:
    """Sweeps every `sweep_s`; an outage of Postgres is waited out."""

    def __init__(
        self, settings: Settings, postgres: Pool, redis: Client, kinds: KindRegistry
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
            except PASSING as error:
                self._watch.restart()
                log.warning("sweep_waits", error=str(error))
            except Exception:
                self._watch.restart()
                log.exception("sweep_failed")
            await anyio.sleep(self._settings.sweep_s)

    async def sweep(self) -> None:
        """One round over everything there is to do."""
        async with self._postgres.acquire() as connection:
            found = await slots.to_sweep(connection)
            if found.expired or found.due:
                await self._promote(connection)
            if found.batches:
                await batches.finish_due(connection)
            if found.limits:
                await dispatch.announce(self._redis, await limits.count_returned(connection))
                await dispatch.announce(self._redis, await limits.audit(connection))
            dead = await self._find_dead(connection)
            unannounced: Mapping[str, Sequence[UUID]] = {}
            if found.ready:
                unannounced = await pools.unannounced(
                    connection, older_than_s=self._settings.sweep_s
                )
        await dispatch.announce(self._redis, unannounced)
        for slot_id in dead:
            rescued = await slots.rescue(self._postgres, slot_id, started=None, kinds=self._kinds)
            metrics.JOBS_RESCUED.inc(rescued.total)
            await dispatch.announce(self._redis, rescued.ready)

    async def _promote(self, connection: Connection) -> None:
        """Queue scheduled jobs whose time has come, cancel those whose time is over."""
        expired = await ledger.expire(connection, PROMOTE_MAX)
        await dispatch.announce(self._redis, expired.ready)
        ready = await ledger.promote_due(connection, PROMOTE_MAX)
        await dispatch.announce(self._redis, ready)

    async def _find_dead(self, connection: Connection) -> list[SlotId]:
        """Declare slots dead; answers them, and those that somebody else left holding jobs."""
        beats = await slots.beats(connection)
        gone = dict.fromkeys(self._watch.look(beats, time.monotonic()), "no heartbeat")
        # Where the supervisor would be seen, nobody needs to wait for the beats that it owes.
        ended = {one for one in {beat.supervisor for beat in beats.values()} if one.is_gone()}
        gone |= {
            slot_id: "its supervisor is gone"
            for slot_id, beat in beats.items()
            if beat.supervisor in ended
        }
        for slot_id, reason in gone.items():
            try:
                await slots.end(connection, slot_id, reason)
                log.warning("slot_declared_dead", slot_id=slot_id, reason=reason)
            except asyncpg.LockNotAvailableError as error:
                log.warning("slot_not_declared_dead", slot_id=slot_id, error=str(error))
        left = await slots.ended_holding(connection, since_s=HANDOVER_S)
        return list({*gone, *left})
