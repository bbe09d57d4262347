"""Idempotency-Key: one request, one effect, the same answer again.

The key's row is written in the transaction of the jobs: a crash takes both or none, so no key is ever
left in flight. Whoever repeats a request waits on that row until the first has committed, then replays it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.model import TenantId
from runtime.postgres import Connection

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

    Raises IdempotencyMismatch for another request's key, and IdempotencyInFlight when the first request
    is still uncommitted after `wait_s`; the caller's transaction is then over.
    """
    raise NotImplementedError


async def finish(
    connection: Connection, tenant_id: TenantId, key: str, answer: StoredAnswer
) -> None:
    """Keep the answer, in the same transaction as `begin` and the jobs."""
    raise NotImplementedError
