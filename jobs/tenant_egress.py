"""What one tenant may reach beside XNAI_EGRESS_ALLOW. One function a verb; judges no URL.

Set by admins of the installation only: a tenant that could allow itself the network inside would
need no guard.
"""

from dataclasses import dataclass
from datetime import datetime

from jobs.model import TenantId
from runtime.egress import EgressPolicy
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs", "egress")
ENTRIES_MAX = 100


class EntryRefused(ValueError):
    """The entry cannot be read, or is one too many."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A network, host, *.domain or host:port, and why it is there."""

    entry: str
    note: str
    created_at: datetime


async def find_tenant(connection: Connection, name: str) -> TenantId | None:
    """The id of the tenant of that name."""
    found = await connection.fetchval(QUERIES["find_tenant"], name)
    return None if found is None else TenantId(found)


async def entries_of(connection: Connection, tenant_id: TenantId) -> list[str]:
    """What is to be added to the installation's policy for what the tenant fetches now."""
    rows = await connection.fetch(QUERIES["entries_of"], tenant_id)
    return [row["entry"] for row in rows]


async def entries_of_all(connection: Connection) -> dict[TenantId, tuple[str, ...]]:
    """The entries of every tenant that has some."""
    rows = await connection.fetch(QUERIES["entries_of_all"])
    return {TenantId(row["tenant_id"]): tuple(row["entries"]) for row in rows}


async def list_entries(connection: Connection, tenant_id: TenantId) -> list[Entry]:
    """The tenant's entries in their order."""
    rows = await connection.fetch(QUERIES["list_entries"], tenant_id)
    return [Entry(**dict(row)) for row in rows]


async def allow(connection: Connection, tenant_id: TenantId, entry: str, note: str = "") -> Entry:
    """Permit what the entry names; idempotent. Raises EntryRefused."""
    try:
        EgressPolicy((entry,))
    except ValueError as error:
        raise EntryRefused(str(error)) from None
    if await connection.fetchval(QUERIES["count_others"], tenant_id, entry) >= ENTRIES_MAX:
        message = f"the tenant has {ENTRIES_MAX} entries: write a network or *.domain instead"
        raise EntryRefused(message)
    row = await connection.fetchrow(QUERIES["allow_entry"], tenant_id, entry, note)
    return Entry(**dict(row or {}))


async def remove(connection: Connection, tenant_id: TenantId, entry: str) -> bool:
    """Take the entry away; whether it was there."""
    return await connection.fetchval(QUERIES["remove_entry"], tenant_id, entry) is not None
