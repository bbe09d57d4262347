"""What a handler is given: the job, its payload, and the doors through which it may write.

A handler is `async def handle(run: Run[Payload]) -> Completed | JsonObject`. It ends in exactly one
of: return, `raise Retry`, `raise Cancel`, `raise Fail`, or any other exception (a failure; the
policy decides). Blocking or native code goes through `run.in_thread`, which hands over a
`should_stop` to poll.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.to_thread
from pydantic import BaseModel

from jobs import ledger
from jobs.errors import StaleToken
from jobs.kinds import KindRegistry
from jobs.live import LiveStream
from jobs.model import ClaimedJob, NewJob
from runtime import metrics
from runtime.postgres import Connection, Pool
from runtime.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """What a slot holds for all its jobs: connections, settings, engines loaded on first need."""

    settings: Settings
    kinds: KindRegistry
    postgres: Pool
    live: LiveStream
    cores: int
    engines: dict[str, object] = field(default_factory=dict)


class Stop:
    """Whether an attempt was told to stop; set by the event loop, polled by threads."""

    __slots__ = ("_is_set",)

    def __init__(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it is time to stop."""
        return self._is_set

    def set(self) -> None:
        """Tell whoever polls to stop."""
        self._is_set = True


@dataclass(slots=True, eq=False)
class Run[P: BaseModel]:
    """One attempt of one job. Not frozen: that takes half a microsecond a field."""

    job: ClaimedJob
    payload: P
    services: Services
    stop: Stop = field(default_factory=Stop)

    @asynccontextmanager
    async def fenced(self) -> AsyncIterator[Connection]:
        """A transaction in which this attempt still holds its job; raises StaleToken otherwise.

        The row of `held` stays locked until the commit, so that no rescue can slip in between.
        """
        async with self.services.postgres.acquire() as connection, connection.transaction():
            try:
                await ledger.assert_held(connection, self.job.id, self.job.token)
            except StaleToken:
                metrics.FENCED_WRITES.inc()
                raise
            yield connection

    async def spawn(self, connection: Connection, jobs: tuple[NewJob, ...]) -> None:
        """Enqueue follow-up jobs within a `fenced` transaction; they are announced after the job
        ends.
        """
        await ledger.enqueue_follow_ups(connection, self.job, jobs, kinds=self.services.kinds)

    async def progress(self, done: int, total: int | None, text: str = "") -> None:
        """Show progress to watchers. Best effort: it goes through Redis only."""
        await self.services.live.progress(self.job, done, total, text)

    async def token(self, text: str) -> None:
        """Show a piece of generated text to watchers. Best effort, in order."""
        await self.services.live.token(self.job, text)

    async def in_thread[T](self, work: Callable[[Callable[[], bool]], T]) -> T:
        """Run blocking code with a `should_stop` that turns true when the job is cancelled or timed
        out.
        """
        try:
            return await anyio.to_thread.run_sync(
                partial(work, self.stop.is_set), abandon_on_cancel=False
            )
        except anyio.get_cancelled_exc_class():
            self.stop.set()
            raise
