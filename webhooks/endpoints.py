"""What users do with endpoints: make, read, change, rotate and test them. One function a verb.

A verb that writes is called inside the caller's transaction, which it never commits. Secrets leave
this module only as `Secret`, whose text the API shows once. At rest they are bytes in Postgres:
what protects the database protects them (docs/decisions/0008).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from jobs.model import TenantId
from runtime.egress import EgressDenied, EgressPolicy
from runtime.ids import uuid7
from runtime.postgres import Connection
from runtime.sql import load_queries
from webhooks import circuits, rows
from webhooks.errors import EndpointChanged, EndpointNotFound, WebhookRefused
from webhooks.model import EVENT_PATTERNS, TEST_TYPE, Endpoint
from webhooks.sign import Secret

QUERIES = load_queries("webhooks")
URL_LENGTH_MAX = 2048
DESCRIPTION_LENGTH_MAX = 500
ROTATION_OVERLAP_S = 86_400.0
ROTATION_OVERLAP_MAX_S = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What a user asks for."""

    url: str
    events: tuple[str, ...]
    description: str = ""
    enabled: bool = True


def check(spec: EndpointSpec, policy: EgressPolicy) -> None:
    """Raise WebhookRefused, naming the first invalid field; a literal private address is one."""
    if not 0 < len(spec.url) <= URL_LENGTH_MAX:
        raise WebhookRefused("/url", f"must have 1 to {URL_LENGTH_MAX} characters")
    try:
        policy.check_literal(spec.url)
    except EgressDenied as error:
        raise WebhookRefused("/url", str(error)) from None
    if not spec.events:
        raise WebhookRefused("/events", "names no event: use '*' for all")
    for position, name in enumerate(spec.events):
        if name not in EVENT_PATTERNS:
            detail = f"{name!r} is no event; there are {', '.join(EVENT_PATTERNS)}"
            raise WebhookRefused(f"/events/{position}", detail)
    if len(spec.description) > DESCRIPTION_LENGTH_MAX or "\x00" in spec.description:
        detail = f"must have at most {DESCRIPTION_LENGTH_MAX} characters and no U+0000"
        raise WebhookRefused("/description", detail)


async def create(
    connection: Connection,
    tenant_id: TenantId,
    spec: EndpointSpec,
    *,
    policy: EgressPolicy,
    now: datetime | None = None,
) -> tuple[Endpoint, Secret]:
    """Keep a new endpoint, which is told of what happens from now on; the secret is shown once."""
    check(spec, policy)
    secret = Secret.generate()
    row = await connection.fetchrow(
        QUERIES["create_endpoint"],
        uuid7(),
        tenant_id,
        spec.url,
        _distinct(spec.events),
        spec.description,
        secret.key,
        now,
    )
    endpoint = rows.endpoint(_present(row))
    if not spec.enabled:
        endpoint = await update(connection, tenant_id, endpoint.id, spec, policy=policy, now=now)
    return endpoint, secret


async def get(connection: Connection, tenant_id: TenantId, endpoint_id: UUID) -> Endpoint:
    """Read one endpoint. Raises EndpointNotFound."""
    row = await connection.fetchrow(QUERIES["get_endpoint"], tenant_id, endpoint_id)
    return rows.endpoint(_found(row, endpoint_id))


async def list_endpoints(
    connection: Connection, tenant_id: TenantId, *, after: UUID | None = None, limit: int = 100
) -> list[Endpoint]:
    """Read the tenant's endpoints in the order they were made, those after the id `after`."""
    found = await connection.fetch(QUERIES["list_endpoints"], tenant_id, after, limit)
    return [rows.endpoint(row) for row in found]


async def update(
    connection: Connection,
    tenant_id: TenantId,
    endpoint_id: UUID,
    spec: EndpointSpec,
    *,
    policy: EgressPolicy,
    version: int | None = None,
    now: datetime | None = None,
) -> Endpoint:
    """Replace what the user asked for; `enabled` wakes an endpoint that was disabled.

    What is owed already goes to the new URL; with `version`, only if the endpoint still has it.
    Raises EndpointNotFound, WebhookRefused or EndpointChanged.
    """
    check(spec, policy)
    row = await connection.fetchrow(QUERIES["lock_endpoint"], tenant_id, endpoint_id)
    present: int = _found(row, endpoint_id)["version"]
    if version is not None and version != present:
        raise EndpointChanged(present)
    row = await connection.fetchrow(
        QUERIES["update_endpoint"],
        tenant_id,
        endpoint_id,
        spec.url,
        _distinct(spec.events),
        spec.description,
        spec.enabled,
        now,
    )
    await connection.execute(QUERIES["redirect_owed"], endpoint_id, spec.url)
    # Another address, or somebody who says that it is mended: nothing is held against it.
    await circuits.close(connection, [circuits.lane_of(endpoint_id)])
    return rows.endpoint(_found(row, endpoint_id))


async def delete(connection: Connection, tenant_id: TenantId, endpoint_id: UUID) -> None:
    """Remove the endpoint and what is owed to it. Raises EndpointNotFound."""
    row = await connection.fetchrow(QUERIES["delete_endpoint"], tenant_id, endpoint_id)
    _found(row, endpoint_id)
    await connection.execute(QUERIES["drop_owed"], endpoint_id)
    await circuits.close(connection, [circuits.lane_of(endpoint_id)])


async def rotate(
    connection: Connection,
    tenant_id: TenantId,
    endpoint_id: UUID,
    *,
    overlap_s: float = ROTATION_OVERLAP_S,
    now: datetime | None = None,
) -> tuple[Endpoint, Secret]:
    """Make a new secret, shown once; the old one signs beside it for `overlap_s` seconds more."""
    secret = Secret.generate()
    row = await connection.fetchrow(
        QUERIES["rotate_secret"], tenant_id, endpoint_id, secret.key, overlap_s, now
    )
    return rows.endpoint(_found(row, endpoint_id)), secret


async def send_test(
    connection: Connection, tenant_id: TenantId, endpoint_id: UUID, *, now: datetime | None = None
) -> UUID:
    """Owe a `webhook.test` to the endpoint, disabled or not; answers the delivery's id."""
    endpoint = await get(connection, tenant_id, endpoint_id)
    delivery_id = uuid7()
    data = {"endpoint_id": str(endpoint_id), "links": {"webhook": f"/v1/webhooks/{endpoint_id}"}}
    await connection.execute(
        QUERIES["owe"], delivery_id, tenant_id, endpoint_id, endpoint.url, TEST_TYPE, data, now
    )
    return delivery_id


def _distinct(events: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(events))


def _present(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        detail = "an INSERT … RETURNING answered no row"
        raise RuntimeError(detail)
    return row


def _found(row: asyncpg.Record | None, endpoint_id: UUID) -> asyncpg.Record:
    if row is None:
        raise EndpointNotFound(endpoint_id)
    return row
