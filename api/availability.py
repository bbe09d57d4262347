"""Answers 503 in time when Postgres has fallen silent: a partition or a stopped server refuses
nothing, it only never answers.

Who waits longer than usual makes us ask over a connection of our own. Idle, or fast, it costs
nothing. Knows nothing of what the requests are.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.translations import POSTGRES_AWAY, postgres_away
from runtime.errors import PostgresAwayError
from runtime.logs import logger
from runtime.postgres import Pool

if TYPE_CHECKING:
    import asyncpg

    type OwnConnection = asyncpg.Connection[asyncpg.Record]

# A request that is not answered by then makes us ask; while any such one waits, this often.
USUAL_S = 1.0
# An answer that has not come within so many turns of our own loop is none: counted in turns, so
# that a loop too busy to read does not take itself for a silent server.
TURNS = 8
TURN_S = 0.25

log = logger("availability")


class Silent(PostgresAwayError):
    """Postgres neither answers nor refuses."""

    def __init__(self) -> None:
        super().__init__(f"Postgres has said nothing for {TURNS * TURN_S:g} s")


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request whose answer has not begun."""

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    since: float = field(default_factory=anyio.current_time)


class Availability:
    """Whether Postgres answers, as far as the requests of this process need to know."""

    def __init__(self, connect: Callable[[], Awaitable["OwnConnection"]], pool: Pool) -> None:
        self._connect = connect
        self._pool = pool
        self._waiting: set[_Waiting] = set()
        self._arrived = anyio.Event()
        self._connection: OwnConnection | None = None
        self._asking = anyio.Lock()
        self.is_silent = False

    async def run(self) -> None:
        """Watch over the requests that wait, for ever; owned by the application's task group."""
        while True:
            if not self._waiting:
                self._arrived = anyio.Event()
                await self._arrived.wait()
            await anyio.sleep(USUAL_S / 2)
            asked_at = anyio.current_time()
            if any(asked_at - waiting.since >= USUAL_S for waiting in self._waiting):
                await self._watch(asked_at)

    async def _watch(self, asked_at: float) -> None:
        if await self.answers():
            return
        for waiting in self._waiting:
            if waiting.since <= asked_at:
                waiting.scope.cancel()

    async def answers(self) -> bool:
        """Ask Postgres now; those who ask at the same time share the asking."""
        was_asking = self._asking.locked()
        async with self._asking:
            if not (was_asking and self.is_silent):
                await self._ask()
        return not self.is_silent

    async def _ask(self) -> None:
        was_silent, self.is_silent = self.is_silent, not await self._has_answer()
        if self.is_silent and not was_silent:
            log.warning("postgres_silent", waited_s=TURNS * TURN_S)
        if was_silent and not self.is_silent:
            # Of the connections from before, nobody knows which the server still has.
            await self._pool.expire_connections()
            log.info("postgres_answers")

    async def _has_answer(self) -> bool:
        done = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(self._ping, done)
            for _ in range(TURNS):
                with anyio.move_on_after(TURN_S):
                    await done.wait()
                    return True
            group.cancel_scope.cancel()
        self._drop()
        return False

    async def _ping(self, done: anyio.Event) -> None:
        """Set `done` when the server says anything at all: a refusal is its own answer."""
        with suppress(*POSTGRES_AWAY):
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            # A cancelled request may leave it in the middle of something.
            await self._connection.reset()
        done.set()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def close(self) -> None:
        """Let go of the connection."""
        self._drop()

    @contextmanager
    def bounded(self) -> Iterator[_Waiting]:
        """A block that waits for Postgres: raises Silent when that has fallen silent meanwhile."""
        waiting = _Waiting()
        self._waiting.add(waiting)
        self._arrived.set()
        try:
            with waiting.scope:
                yield waiting
        finally:
            self._waiting.discard(waiting)
        if waiting.scope.cancelled_caught:
            raise Silent

    def has_begun(self, waiting: _Waiting) -> None:
        """The answer is on its way: from here on it ends itself."""
        self._waiting.discard(waiting)


class Bounded:
    """ASGI middleware: a request below /v1 ends with 503 once Postgres has fallen silent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        availability = cast("Availability", scope["app"].state.services.availability)
        try:
            if availability.is_silent and not await availability.answers():
                raise Silent
            with availability.bounded() as waiting:

                async def send_noted(message: Message) -> None:
                    availability.has_begun(waiting)
                    await send(message)

                await self._app(scope, receive, send_noted)
        except Silent as error:
            await postgres_away(error).response()(scope, receive, send)
