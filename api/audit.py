"""The log of administrative acts: who changed what, when, and from where. Append-only.

An act is written by the transaction that does it: what is not in the log did not happen. Knows
nothing of HTTP.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from api.keys import QUERIES
from jobs.model import JsonObject, TenantId
from runtime.ids import uuid7
from runtime.postgres import Connection

PRUNED_AT_ONCE = 10_000

type Action = Literal[
    "key.created",
    "key.rotated",
    "key.revoked",
    "quotas.changed",
    "egress.allowed",
    "egress.removed",
    "pool.paused",
    "pool.resumed",
    "limit.set",
    "operation.started",
    "operation.cancelled",
    "webhook.created",
    "webhook.changed",
    "webhook.rotated",
    "webhook.deleted",
    "callback_secret.shown",
    "callback_secret.rotated",
    "document.deleted",
    "collection.deleted",
]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a key, and the request that brought it."""

    tenant_id: TenantId
    key_id: UUID
    key_name: str
    address: str | None
    request_id: str


@dataclass(frozen=True, slots=True)
class Act:
    """An act as it was written down."""

    id: UUID
    at: datetime
    key_id: UUID
    key_name: str
    action: str
    target: str
    details: JsonObject
    address: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class ActFilter:
    """Which acts: of one action, by one key; None is any."""

    action: str | None = None
    key_id: UUID | None = None


async def record(
    connection: Connection, actor: Actor, action: Action, target: object, /, **details: object
) -> None:
    """Write an act down. Call it in the transaction that does it, which it never commits."""
    await connection.execute(
        QUERIES["insert_act"],
        uuid7(),
        actor.tenant_id,
        actor.key_id,
        actor.key_name,
        action,
        str(target),
        details,
        actor.address,
        actor.request_id,
    )


async def list_acts(
    connection: Connection,
    tenant_id: TenantId,
    wanted: ActFilter,
    *,
    before: UUID | None,
    limit: int,
) -> list[Act]:
    """The tenant's acts, newest first."""
    rows = await connection.fetch(
        QUERIES["list_acts"], tenant_id, before, wanted.action, wanted.key_id, limit
    )
    return [Act(**dict(row)) for row in rows]


async def prune(connection: Connection, *, days: int) -> bool:
    """Forget acts older than `days`, some at a time; whether more remain. Commits by itself."""
    status = await connection.execute(QUERIES["prune_acts"], days, PRUNED_AT_ONCE)
    return int(status.rsplit(" ", 1)[1]) >= PRUNED_AT_ONCE
