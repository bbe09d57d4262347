"""Who calls: a bearer key becomes a Principal, or the request ends with 401. Roles are checked per
route.

A key that was verified is trusted for a few seconds without asking Postgres again: so long a
revoked key may still work in another API process. Stores no secret, only hashes.
"""

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, cast
from uuid import UUID

from fastapi import Depends, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api import keys
from api.errors import Problem, ProblemType
from api.keys import Role
from api.translations import POSTGRES_AWAY, postgres_away
from jobs.model import TenantId
from runtime.postgres import Pool

TRUST_S = 5.0
ACQUIRE_TIMEOUT_S = 4.0
CACHE_ENTRIES_MAX = 10_000
_HEADER_BYTES_MAX = 512


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller: one key of one tenant."""

    key_id: UUID
    tenant_id: TenantId
    tenant: str
    name: str
    role: Role


class Authenticator:
    """Verifies keys against Postgres, remembers them for a few seconds, and notes their last
    use.
    """

    def __init__(self, postgres: Pool) -> None:
        self._postgres = postgres
        self._trusted: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._used_at: dict[UUID, datetime] = {}

    async def authenticate(self, header: str | None) -> Principal:
        """The caller of a request with this Authorization header; raises Problem 401."""
        text = _bearer_token(header)
        # The cache is keyed by a hash of the whole key, so a lookup tells nothing about any part of
        # it.
        digest = hashlib.sha256(text.encode()).digest()
        principal = self._remembered(digest) or await self._verify(text, digest)
        self._used_at[principal.key_id] = datetime.now(UTC)
        return principal

    def forget(self, key_id: UUID) -> None:
        """Stop trusting a key that was revoked here."""
        for digest, (_, principal) in list(self._trusted.items()):
            if principal.key_id == key_id:
                del self._trusted[digest]

    async def write_last_uses(self) -> None:
        """Store when keys were last used, if any was."""
        used_at, self._used_at = self._used_at, {}
        if used_at:
            async with self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                await keys.touch(connection, used_at)

    def _remembered(self, digest: bytes) -> Principal | None:
        entry = self._trusted.get(digest)
        if entry is None or entry[0] < time.monotonic():
            return None
        return entry[1]

    async def _verify(self, text: str, digest: bytes) -> Principal:
        parts = keys.split_key(text)
        if parts is None:
            raise unauthorized("this is no API key: it reads xnai_PREFIX_SECRET")
        async with self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            key = await keys.find_by_prefix(connection, parts[0])
        if key is None or not key.matches(parts[1]):
            raise unauthorized("this API key is unknown")
        if not key.is_valid:
            raise unauthorized("this API key was revoked or has expired: ask an admin for another")
        principal = Principal(key.id, key.tenant_id, key.tenant, key.name, key.role)
        self._remember(digest, principal, key.expires_at)
        return principal

    def _remember(self, digest: bytes, principal: Principal, expires_at: datetime | None) -> None:
        left_s = TRUST_S
        if expires_at is not None:
            left_s = min(left_s, (expires_at - datetime.now(UTC)).total_seconds())
        self._trusted[digest] = (time.monotonic() + left_s, principal)
        self._trusted.move_to_end(digest)
        while len(self._trusted) > CACHE_ENTRIES_MAX:
            self._trusted.popitem(last=False)


class Authentication:
    """ASGI middleware: everything below /v1 needs a key, before its path, query or body is looked
    at.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put the principal into the request's state, or answer 401 or 503."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        authenticator = cast("Authenticator", scope["app"].state.services.authenticator)
        try:
            principal = await authenticator.authenticate(request.headers.get("authorization"))
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        except POSTGRES_AWAY as error:
            await postgres_away(error).response()(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)


def unauthorized(detail: str) -> Problem:
    """The 401 that says how to do it right."""
    return Problem(
        ProblemType.NO_KEY,
        f"{detail}; send `Authorization: Bearer KEY`",
        headers={"WWW-Authenticate": 'Bearer realm="xnai"'},
    )


def _bearer_token(header: str | None) -> str:
    scheme, _, token = (header or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > _HEADER_BYTES_MAX:
        raise unauthorized("no API key")
    return token


def _requires(role: Role) -> object:
    async def check(request: Request) -> Principal:
        principal = cast("Principal", request.scope["state"]["principal"])
        if principal.role < role:
            detail = (
                f"this needs the role {role.label}; key {principal.name!r} has the role "
                f"{principal.role.label}"
            )
            raise Problem(ProblemType.FORBIDDEN, detail)
        return principal

    return Depends(check)


Reader = Annotated[Principal, _requires(Role.READER)]
Submitter = Annotated[Principal, _requires(Role.SUBMITTER)]
Operator = Annotated[Principal, _requires(Role.OPERATOR)]
Admin = Annotated[Principal, _requires(Role.ADMIN)]
