"""The secrets that sign callbacks (`callback_url`): one a tenant, made on first demand.

They leave this module only as `Secret`; callers commit.
"""

from dataclasses import dataclass
from datetime import datetime

from asyncpg import Record

from jobs.model import TenantId
from runtime.postgres import Connection
from runtime.sql import load_queries
from webhooks.sign import Secret

QUERIES = load_queries("webhooks")


@dataclass(frozen=True, slots=True)
class CallbackSecret:
    """The secret, and until when the one before it signs along."""

    secret: Secret
    previous_until: datetime | None


async def get(connection: Connection, tenant_id: TenantId) -> CallbackSecret:
    """The tenant's secret, made when first asked for."""
    row = await connection.fetchrow(QUERIES["get_callback_secret"], tenant_id)
    if row is None:
        fresh = Secret.generate()
        await connection.execute(QUERIES["create_callback_secret"], tenant_id, fresh.key)
        row = await connection.fetchrow(QUERIES["get_callback_secret"], tenant_id)
    return _present(row)


async def rotate(
    connection: Connection, tenant_id: TenantId, *, overlap_s: float, now: datetime | None = None
) -> CallbackSecret:
    """Make a new secret; the old one signs beside it for `overlap_s` seconds more."""
    fresh = Secret.generate()
    row = await connection.fetchrow(
        QUERIES["rotate_callback_secret"], tenant_id, fresh.key, overlap_s, now
    )
    return _present(row)


def _present(row: Record | None) -> CallbackSecret:
    if row is None:
        detail = "a tenant's secret that was just made is not there"
        raise RuntimeError(detail)
    return CallbackSecret(Secret(row["secret"]), row["previous_secret_until"])
