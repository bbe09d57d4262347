"""The real ledger for a machine that is not async: one event loop and one pool for all examples."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

from anyio.from_thread import BlockingPortal, start_blocking_portal

from jobs import slots
from jobs.kinds import load_kinds
from jobs.model import SlotId
from runtime.postgres import Connection, Pool, open_pool
from runtime.settings import Settings

KINDS = load_kinds()
POOL = KIND = "probe"
_RESET = """
DELETE FROM jobs; DELETE FROM ready; DELETE FROM parked; DELETE FROM held; DELETE FROM history;
DELETE FROM attempts; DELETE FROM events; DELETE FROM families; DELETE FROM dependencies;
DELETE FROM unique_keys; DELETE FROM limits; DELETE FROM returned_permits;
DELETE FROM idempotency_keys; DELETE FROM batch_counts;
DELETE FROM batch_parts; DELETE FROM batches; DELETE FROM outbox; DELETE FROM slots;
DELETE FROM pools
"""
_SEEN = """
SELECT id, (payload ->> 'echo')::int AS number, state, state_reason, attempt,
    cancel_requested_at IS NOT NULL AS is_asked FROM live_jobs
UNION ALL
SELECT id, (payload ->> 'echo')::int, state, NULL, attempt, false FROM finished_jobs
"""


@dataclass(frozen=True, slots=True)
class World:
    """A database and the loop on which it is spoken to."""

    portal: BlockingPortal
    pool: Pool

    def do[T](self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run the work on a connection of the pool."""

        async def on_a_connection() -> T:
            async with self.pool.acquire() as connection:
                return await work(connection)

        done: T = self.portal.call(on_a_connection)
        return done

    def in_transaction[T](self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run the work and commit."""

        async def committed(connection: Connection) -> T:
            async with connection.transaction():
                return await work(connection)

        return self.do(committed)

    def reset(self) -> None:
        """Delete every row of the ledger."""
        self.do(lambda connection: connection.execute(_RESET))

    def slot(self) -> SlotId:
        """A new slot."""
        return self.do(
            lambda connection: slots.register(
                connection,
                supervisor_id=uuid4(),
                pool=POOL,
                number=0,
                host="model",
                pid=1,
                cores=[0],
                kinds=[KIND],
            )
        )

    def seen(self) -> tuple[Mapping[UUID, tuple[object, ...]], Mapping[int, UUID]]:
        """What a reader sees of every job, and which job has which number."""
        rows = self.do(lambda connection: connection.fetch(_SEEN))
        states = {
            row["id"]: (row["state"], row["state_reason"], row["attempt"], row["is_asked"])
            for row in rows
        }
        return states, {row["number"]: row["id"] for row in rows}

    def batches(self) -> Mapping[UUID, tuple[str, int]]:
        """State and run of every batch."""
        query = "SELECT id, state, run FROM batches"
        rows = self.do(lambda connection: connection.fetch(query))
        return {row["id"]: (row["state"], row["run"]) for row in rows}


@contextmanager
def opened(settings: Settings) -> Iterator[World]:
    """A world on the test's database."""
    with start_blocking_portal() as portal:

        async def connect() -> Pool:
            return await open_pool(settings, role="model", size=3)

        pool = portal.call(connect)
        try:
            yield World(portal, pool)
        finally:
            portal.call(pool.close)
