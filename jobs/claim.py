"""Puts queued jobs into a slot's hands, and checks that they still are."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from jobs.errors import SlotEnded, StaleToken
from jobs.model import ClaimedJob, SlotId, Token
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")


async def claim(  # noqa: PLR0917 - who, where, what, how many: read like a sentence
    connection: Connection,
    slot_id: SlotId,
    pool: str,
    kinds: Sequence[str],
    limit: int,
    *,
    alone_ok: bool = False,
) -> list[ClaimedJob]:
    """Take up to `limit` jobs of these kinds in ledger order; one statement, commits by itself.

    `alone_ok` says that the slot has nothing else in hand: it may then be given one suspect, and
    nothing beside it (`ClaimedJob.alone`). Empty while the pool is paused. Raises SlotEnded for a
    dead slot.
    """
    rows = await connection.fetch(QUERIES["claim"], slot_id, pool, kinds, limit, alone_ok)
    if not rows:
        message = f"slot {slot_id} was declared dead: it must stop and be started again"
        raise SlotEnded(message)
    if rows[0][0] is None:
        return []
    return [_claimed(row, pool, slot_id) for row in rows]


def _claimed(row: asyncpg.Record, pool: str, slot_id: SlotId) -> ClaimedJob:
    # By position, which is cheaper than by name: this is half of what a claim costs here.
    job_id, tenant_id, kind, payload, token, attempt, max_attempts, failures, losses, *rest = row
    timeout_s, claimed_at, batch_id, parent_id, lineage, alone, queued_s = rest
    return ClaimedJob(
        job_id,
        tenant_id,
        kind,
        pool,
        payload,
        token,
        attempt,
        max_attempts,
        failures,
        losses,
        timeout_s,
        claimed_at,
        batch_id,
        parent_id,
        tuple(lineage or ()),
        alone,
        slot_id,
        queued_s,
    )


async def assert_held(connection: Connection, job_id: UUID, token: Token) -> None:
    """Lock the attempt's hold until the caller's transaction ends; raise StaleToken when it is
    lost.
    """
    if await connection.fetchval(QUERIES["assert_held"], job_id, token) is None:
        message = f"job {job_id} is no longer held by token {token}: stop, another attempt has it"
        raise StaleToken(message)
