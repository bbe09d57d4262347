"""Puts queued jobs into a slot's hands, and checks that they still are."""

from collections.abc import Sequence
from uuid import UUID

from jobs.model import ClaimedJob, SlotId, Token
from runtime.postgres import Connection


async def claim(
    connection: Connection,
    slot_id: SlotId,
    pool: str,
    kinds: Sequence[str],
    limit: int,
    *,
    alone_ok: bool = False,
) -> list[ClaimedJob]:
    """Take up to `limit` jobs of these kinds in ledger order; one statement, commits by itself.

    `alone_ok` says that the slot has nothing else in hand: it may then be given one suspect, and nothing
    beside it (`ClaimedJob.alone`). Empty while the pool is paused. Raises SlotEnded for a dead slot.
    """
    raise NotImplementedError


async def assert_held(connection: Connection, job_id: UUID, token: Token) -> None:
    """Lock the attempt's hold until the caller's transaction ends; raise StaleToken when it is lost."""
    raise NotImplementedError
