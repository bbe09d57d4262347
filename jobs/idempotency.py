"""Idempotency-Key: one request, one effect, the same answer again.

The key's row is written in the transaction of the jobs: a crash takes both or none, so no key is
ever left in flight. Whoever repeats a request waits on that row until the first has committed, then
replays it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from jobs.errors import IdempotencyInFlight, IdempotencyMismatch
from jobs.model import TenantId
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

WAIT_S = 3.0


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The first answer to a request: replay it byte for byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def begin(
    connection: Connection,
    tenant_id: TenantId,
    key: str,
    request_hash: bytes,
    *,
    wait_s: float = WAIT_S,
) -> StoredAnswer | None:
    """Take the key in the caller's transaction (None), or answer what it was answered with before.

    Raises IdempotencyMismatch for another request's key, and IdempotencyInFlight when the first
    request is still uncommitted after `wait_s`; the caller's transaction is then over.
    """
    before = await connection.fetchval(QUERIES["lock_wait"])
    await connection.execute(QUERIES["limit_wait"], f"{wait_s * 1000:.0f}ms")
    try:
        is_new = await connection.fetchval(QUERIES["begin_request"], tenant_id, key, request_hash)
    except asyncpg.LockNotAvailableError:
        message = "the first request with this Idempotency-Key is still being answered: try again"
        raise IdempotencyInFlight(message) from None
    await connection.execute(QUERIES["limit_wait"], before)
    if is_new is not None:
        return None
    found = await kept(connection, tenant_id, key, request_hash)
    if found is None:
        message = "the first request with this Idempotency-Key has left no answer: try again"
        raise IdempotencyInFlight(message)
    return found


async def kept(
    connection: Connection, tenant_id: TenantId, key: str, request_hash: bytes
) -> StoredAnswer | None:
    """The committed answer to the request, if there is one; waits for nobody. Raises
    IdempotencyMismatch.
    """
    row = await connection.fetchrow(QUERIES["known_request"], tenant_id, key)
    if row is None or row["status"] is None:
        return None
    if bytes(row["request_hash"]) != request_hash:
        message = "this Idempotency-Key was used with another request: give each request its own"
        raise IdempotencyMismatch(message)
    return StoredAnswer(row["status"], row["headers"] or {}, bytes(row["body"]))


async def finish(
    connection: Connection, tenant_id: TenantId, key: str, answer: StoredAnswer
) -> None:
    """Keep the answer, in the same transaction as `begin` and the jobs."""
    await connection.execute(
        QUERIES["finish_request"], tenant_id, key, answer.status, dict(answer.headers), answer.body
    )
