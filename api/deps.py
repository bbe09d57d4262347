"""What a route may use: the services of this process, connections, and the parameters that many
share.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, cast
from uuid import UUID

from anyio.abc import TaskGroup
from fastapi import Depends, Header, Query, Request
from pydantic import StringConstraints
from redis.asyncio import Redis

from api import audit
from api.audit import Action, Actor
from api.auth import Authenticator, Principal
from api.availability import Availability
from api.backlog import BacklogGuard
from api.door import address_of
from api.places import Places
from api.quotas import QuotaGuard
from api.rates import Rates
from api.sights import Sights
from api.submissions import Submissions
from api.tenant_policies import TenantPolicies
from api.turns import Turns
from api.watch import Hub
from corpus.search_client import SearchClient
from jobs import batches
from jobs.announcer import Announcer
from jobs.kinds import KindRegistry
from jobs.live import LiveStream
from jobs.model import TenantId
from jobs.spool_room import SpoolRoom
from runtime.ids import uuid7
from runtime.postgres import Connection, Pool
from runtime.settings import Settings

ACQUIRE_TIMEOUT_S = 4.0
LIST_MAX = 1000
LIST_DEFAULT = 100
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Services:
    """What one API process holds for all its requests."""

    settings: Settings
    kinds: KindRegistry
    postgres: Pool
    redis: Redis
    live: LiveStream
    hub: Hub
    sights: Sights
    places: Places
    announcer: Announcer
    submissions: Submissions
    availability: Availability
    backlog: BacklogGuard
    spools: SpoolRoom
    turns: Turns
    authenticator: Authenticator
    quotas: QuotaGuard
    rates: Rates
    search: SearchClient
    egress: TenantPolicies
    owned: TaskGroup

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for reading; TimeoutError (a 503) when none is free in time."""
        async with self.postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction that commits at the end of the block."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def finish_batches(self, tenant_id: TenantId, batch_ids: tuple[UUID, ...]) -> None:
        """Finish those of the batches in which nothing is live, after the commit that may have
        ended them.
        """
        if not batch_ids:
            return
        async with self.transaction() as connection:
            finished = await batches.finish_due(connection, batch_ids)
        self.announcer.changed(tenant_id, (), finished)


def etags(header: str | None) -> set[str]:
    """The entity tags of If-None-Match; weak ones compare as strong (RFC 9110 §13.1.2)."""
    tags = (tag.strip().removeprefix("W/") for tag in (header or "").split(","))
    return {tag for tag in tags if tag}


async def services_of(request: Request) -> Services:
    """The services of the application that answers the request.

    Not a plain function: FastAPI would hand it to a thread, which costs as much as a submission.
    """
    return cast("Services", request.app.state.services)


WithServices = Annotated[Services, Depends(services_of)]


def request_id_of(request: Request) -> str:
    """What the client or its proxy calls the request, if that is fit to be kept; else a new id."""
    sent = request.headers.get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else str(uuid7())


@dataclass(frozen=True, slots=True)
class Audit:
    """Writes down what the caller of this request does."""

    actor: Actor

    async def record(
        self, connection: Connection, action: Action, target: object, /, **details: object
    ) -> None:
        """Write an act down, in the transaction that does it."""
        await audit.record(connection, self.actor, action, target, **details)


async def audit_of(request: Request) -> Audit:
    """The log, with who asks and from where."""
    principal = cast("Principal", request.scope["state"]["principal"])
    address, request_id = address_of(request.scope), request_id_of(request)
    return Audit(Actor(principal.tenant_id, principal.key_id, principal.name, address, request_id))


WithAudit = Annotated[Audit, Depends(audit_of)]

Cursor = Annotated[
    str | None,
    Query(
        max_length=512, pattern=r"^[\x21-\x7e]+$", description="`next_cursor` of the page before."
    ),
]
Limit = Annotated[int, Query(ge=1, le=LIST_MAX, description="Entries of one page.")]
IfNoneMatch = Annotated[
    str | None,
    Header(max_length=1024, description="An `ETag` that the client holds: 304 if unchanged."),
]
Prefer = Annotated[
    str | None,
    Header(
        max_length=256,
        description="`wait=N`: wait up to N seconds (RFC 7240).",
        examples=["wait=10"],
    ),
]
IdempotencyKey = Annotated[
    Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,255}$")] | None,
    Header(
        description="Repeating a request with the same key answers it as the first time.",
        examples=["order-4711"],
    ),
]


def wait_seconds(prefer: str | None, cap_s: float) -> float | None:
    """N of `wait=N`, at most the cap; None without it. What cannot be read is ignored, as RFC 7240
    says.
    """
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        text = value.strip().strip('"')
        if name.strip().lower() == "wait" and text.isascii() and text.isdecimal():
            return min(float(text[:9]), cap_s)
    return None
