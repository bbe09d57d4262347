"""What the event streams tell. Each looks whenever it is nudged or reminded, together with all
others.

A job's stream is told by the job itself: its position is (attempt, phase, token), so that a reader
resumes at any time, past every retention. A batch's sends snapshots of its counts. The ledger's
reads the events table. While Postgres is away, streams wait.
"""

from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self

import anyio
import orjson

from api.deps import Services
from api.event_stream import Chunk, beat_at, encode_event
from api.looks import Looks
from api.sights import EventsAfter, Place, SeenJob, Tokens, TokensAfter
from api.translations import POSTGRES_AWAY
from jobs.events import EventScope
from jobs.live import Signal

# Snapshots and pages of one stream follow each other no faster, however many nudges arrive.
PACE_S = 0.1
# Events that wait for an older transaction to end are looked for again so soon.
PENDING_S = 0.05
AWAY_S = 0.5
_TOKEN_MAX = 1 << 64
_NUMBER_MAX = 1 << 31


class Phase(IntEnum):
    """How much of an attempt's story was told."""

    WAITING = 0
    STARTED = 1
    ENDED = 2
    SETTLED = 3


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a reader of a job's stream stands."""

    attempt: int = -1
    phase: Phase = Phase.WAITING
    token: str = "0-0"  # noqa: S105 - a place in a stream, no secret

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a Last-Event-ID; raises ValueError."""
        attempt, phase, token = text.split(".")
        milliseconds, _, number = token.partition("-")
        place = int(milliseconds), int(number)
        if not (-1 <= int(attempt) < _NUMBER_MAX and all(0 <= n < _TOKEN_MAX for n in place)):
            raise ValueError(text)
        return cls(int(attempt), Phase(int(phase)), f"{place[0]}-{place[1]}")

    def __str__(self) -> str:
        return f"{self.attempt}.{int(self.phase)}.{self.token}"


async def job_events(services: Services, place: Place, position: Position) -> AsyncGenerator[Chunk]:
    """Start, tokens, progress, end and settling of a job; ends once it has settled."""
    teller = _Teller(position)
    with services.hub.watch(place.tenant_id, place.id) as watcher:
        while not services.hub.is_closing:
            is_nudged, signals = watcher.take()
            seen = None
            if is_nudged or any(teller.is_behind(signal) for signal in signals):
                seen = await _patiently(services, services.sights.jobs, place)
                if seen is None:
                    return
                teller.tell_start(seen)
            if (seen is not None and seen.job.started_at) or any(map(_is_token, signals)):
                # After the look: the tokens of a job that has ended are all there by then.
                key = TokensAfter(place.id, teller.position.token)
                teller.tell_tokens(await services.sights.tokens.see(key) or ())
            teller.tell_progress(signals)
            is_over = seen is not None and teller.tell_end(seen)
            # Neither what was seen nor what was told is kept while waiting: payloads may be large.
            del seen
            while teller.told:
                yield teller.told.popleft()
            if is_over:
                return
            await watcher.wait()


def _is_token(signal: Signal) -> bool:
    return signal.type == "job.token"


class _Teller:
    """Tells one reader the story of a job in the order of its life. `position` is where the reader
    stands once it has heard what is in `told`.
    """

    def __init__(self, position: Position) -> None:
        self.position = position
        self.told: deque[Chunk] = deque()

    def is_behind(self, signal: Signal) -> bool:
        """Whether a token is of an attempt of which the reader does not know that it has begun."""
        reached = self.position.attempt, self.position.phase
        return _is_token(signal) and (signal.data["attempt"], Phase.STARTED) > reached

    def tell_start(self, seen: SeenJob) -> None:
        """That the attempt has begun."""
        if seen.job.started_at is not None:
            self._reach(seen, Phase.STARTED, "job.started")

    def tell_tokens(self, found: Tokens) -> None:
        """The tokens of the attempts that the reader knows of."""
        for token, attempt, text in found:
            if attempt > self.position.attempt:
                return
            self.position = replace(self.position, token=token)
            data = orjson.dumps({"attempt": attempt, "text": text})
            self.told.append(encode_event("job.token", str(self.position), data))

    def tell_progress(self, signals: Iterable[Signal]) -> None:
        """How far it is: told once, by what was heard, and not again after a reconnect."""
        for signal in signals:
            if signal.type == "job.progress":
                self.told.append(encode_event("job.progress", None, orjson.dumps(signal.data)))

    def tell_end(self, seen: SeenJob) -> bool:
        """That it has ended, and settled; whether this is all there will be."""
        if seen.job.state.is_terminal:
            self._reach(seen, Phase.ENDED, f"job.{seen.job.state}")
            if seen.job.settled:
                self._reach(seen, Phase.SETTLED, "job.settled")
        return seen.job.settled

    def _reach(self, seen: SeenJob, phase: Phase, type_: str) -> None:
        attempt = seen.job.attempt
        if (attempt, phase) > (self.position.attempt, self.position.phase):
            self.position = Position(attempt, phase, self.position.token)
            self.told.append(encode_event(type_, str(self.position), seen.body))


async def batch_events(
    services: Services, place: Place, last_id: str | None
) -> AsyncGenerator[Chunk]:
    """The counts of a batch whenever they changed, and its end; ends with that."""
    digest = None if last_id is None else last_id.rpartition("-")[2]
    with services.hub.watch(place.tenant_id, place.id) as watcher:
        while not services.hub.is_closing:
            looked_at = anyio.current_time()
            watcher.take()
            seen = await _patiently(services, services.sights.batches, place)
            if seen is None:
                return
            if seen.digest != digest:
                digest = seen.digest
                yield seen.chunk
            if seen.is_final:
                return
            await watcher.wait()
            await anyio.sleep_until(looked_at + PACE_S)


async def ledger_events(
    services: Services, scope: EventScope, cursor: str | None
) -> AsyncGenerator[Chunk]:
    """The events of a tenant or of one of its batches after the cursor (None: the oldest kept);
    `reset` when some were dropped meanwhile.
    """
    with services.hub.watch(scope.tenant_id, scope.batch_id) as watcher:
        while not services.hub.is_closing:
            looked_at = anyio.current_time()
            watcher.take()
            key = EventsAfter(scope, cursor)
            seen = await _patiently(services, services.sights.events, key)
            if seen is None:
                return
            cursor = seen.cursor
            for chunk in seen.chunks:
                yield chunk
            yield Chunk(b"", 0, beat_at(cursor))
            if not seen.is_full:
                await watcher.wait(PENDING_S if seen.is_pending else None)
                pause_s = PENDING_S if seen.is_pending else PACE_S
                await anyio.sleep_until(looked_at + pause_s)


async def _patiently[K, V](services: Services, looks: Looks[K, V], key: K) -> V | None:
    """What a look finds, however long Postgres is away: nothing wrong is told meanwhile, and the
    reader hears heartbeats.
    """
    while True:
        try:
            return await looks.see(key)
        except POSTGRES_AWAY:
            if services.hub.is_closing:
                raise
        await anyio.sleep(AWAY_S)
