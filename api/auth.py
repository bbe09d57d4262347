"""Who calls: a bearer key becomes a Principal, or the request ends with 401. Roles are checked per
route.

A key that was verified is trusted for at most TRUST_S without asking Postgres again: so long a
revoked key may still work in another API process, and so long its open streams go on. Stores no
secret, only hashes.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, cast
from uuid import UUID

import anyio
from fastapi import Depends, Request

from api import keys, quotas
from api.errors import Problem, ProblemType
from api.guesses import Guesses
from api.keys import Key, Role
from api.quotas import Quotas
from api.translations import POSTGRES_AWAY
from jobs.model import DEFAULT_TENANT, TenantId
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import Pool

# Asked again after the first, by one request while others go on; trusted no longer than the second.
FRESH_S = 1.5
TRUST_S = 3.0
# A key that was good lately is never held for a guess, whoever else guesses.
KNOWN_S = 3600.0
LAST_USES_S = 60.0
STREAMS_S = 2.0
ACQUIRE_TIMEOUT_S = 4.0
CACHE_ENTRIES_MAX = 10_000
_HEADER_BYTES_MAX = 512

type Work = Callable[[], Awaitable[None]]

log = logger("api")


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller: one key of one tenant. `rotation` tells which of the key's secrets was sent."""

    key_id: UUID
    tenant_id: TenantId
    tenant: str
    name: str
    role: Role
    rotation: int = 0
    quotas: Quotas = quotas.DEFAULTS

    @property
    def is_of_installation(self) -> bool:
        """Whether its tenant is the one that owns pools, workers and other tenants."""
        return self.tenant_id == DEFAULT_TENANT


@dataclass(slots=True)
class _Known:
    """A key that was verified; times are monotonic."""

    principal: Principal
    fresh_until: float
    trusted_until: float
    known_until: float
    is_asked: bool = False


class Authenticator:
    """Verifies keys against Postgres, remembers them for a few seconds, ends the streams of those
    that were revoked, and notes their last use.
    """

    def __init__(self, postgres: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        self._postgres = postgres
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._used_at: dict[UUID, datetime] = {}
        self._guesses = Guesses(clock)
        self._streams: dict[anyio.CancelScope, Principal] = {}

    async def authenticate(self, header: str | None, address: str) -> Principal:
        """The caller of a request with this Authorization header; raises Problem 401 or 429."""
        text = _bearer_token(header)
        # The cache is keyed by a hash of the whole key, so a lookup tells nothing about any part of
        # it.
        digest = hashlib.sha256(text.encode()).digest()
        known, now = self._known.get(digest), self._clock()
        if known is not None and (
            now < known.fresh_until or (known.is_asked and now < known.trusted_until)
        ):
            principal = known.principal
        else:
            principal = await self._ask(known, text, digest, address)
        self._used_at[principal.key_id] = datetime.now(UTC)
        return principal

    async def forget(self, key_id: UUID) -> None:
        """Stop trusting what was known of a key that was revoked or rotated here, and end its
        streams.
        """
        for digest, known in list(self._known.items()):
            if known.principal.key_id == key_id:
                del self._known[digest]
        await self.end_streams()

    @contextmanager
    def stream(self, principal: Principal) -> Iterator[anyio.CancelScope]:
        """A scope for an open stream, cancelled once its key has ended. Raises Problem 429 beyond
        the tenant's quota of streams, which is one of each API process.
        """
        limit = principal.quotas.streams
        tenant_id = principal.tenant_id
        if limit is not None:
            held = sum(1 for other in self._streams.values() if other.tenant_id == tenant_id)
            if held >= limit:
                raise quotas.exceeded("streams", limit)
        with anyio.CancelScope() as scope:
            self._streams[scope] = principal
            try:
                yield scope
            finally:
                del self._streams[scope]

    async def run(self) -> None:
        """End streams and write last uses for ever; owned by the application's task group."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._repeat, STREAMS_S, self.end_streams)
            group.start_soon(self._repeat, LAST_USES_S, self.write_last_uses)

    async def end_streams(self) -> None:
        """End the streams whose key was revoked, has expired, or was rotated away."""
        held = {(p.key_id, p.rotation) for p in self._streams.values()}
        if not held:
            return
        async with self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            valid = await keys.still_held(connection, held)
        for scope, principal in list(self._streams.items()):
            secret = (principal.key_id, principal.rotation)
            if secret in held and secret not in valid:
                scope.cancel()

    async def write_last_uses(self) -> None:
        """Store when keys were last used, if any was."""
        used_at, self._used_at = self._used_at, {}
        if used_at:
            async with self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                await keys.touch(connection, used_at)

    async def _repeat(self, every_s: float, work: Work) -> None:
        while True:
            await anyio.sleep(every_s)
            try:
                await work()
            except POSTGRES_AWAY as error:
                log.info("keys_postponed", error=str(error))

    async def _ask(self, known: _Known | None, text: str, digest: bytes, address: str) -> Principal:
        """Verify a key; those who bring the same one meanwhile trust what was known."""
        if known is None:
            return await self._verify(text, digest, address, is_known=False)
        known.is_asked = True
        try:
            is_known = self._clock() < known.known_until
            return await self._verify(text, digest, address, is_known=is_known)
        finally:
            known.is_asked = False

    async def _verify(self, text: str, digest: bytes, address: str, *, is_known: bool) -> Principal:
        parts = keys.split_key(text)
        if parts is None:
            raise unauthorized("this is no API key: it reads xnai_PREFIX_SECRET", "malformed")
        prefix, secret = parts
        sources = (f"address {address}", f"prefix {prefix}")
        if not is_known and (wait_s := self._guesses.wait_s(*sources)):
            raise _too_many(wait_s)
        async with self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            key = await keys.find_by_prefix(connection, prefix)
            granted = None if key is None else await quotas.find(connection, key.tenant)
        rotation = keys.rotation_of(key, secret)
        if key is None or granted is None or rotation is None:
            self._known.pop(digest, None)
            self._guesses.failed(*sources)
            raise unauthorized("this API key is unknown", "unknown")
        if not key.is_valid:
            self._known.pop(digest, None)
            detail = "this API key was revoked or has expired: ask an admin for another"
            raise unauthorized(detail, "ended")
        return self._remember(digest, key, rotation, granted.quotas)

    def _remember(self, digest: bytes, key: Key, rotation: int, granted: Quotas) -> Principal:
        principal = Principal(
            key.id, key.tenant_id, key.tenant, key.name, key.role, rotation, granted
        )
        now, left_s = self._clock(), KNOWN_S
        if (ends_at := key.ends_at(rotation)) is not None:
            left_s = min(left_s, (ends_at - datetime.now(UTC)).total_seconds())
        self._known[digest] = _Known(
            principal,
            fresh_until=now + min(FRESH_S, left_s),
            trusted_until=now + min(TRUST_S, left_s),
            known_until=now + left_s,
        )
        self._known.move_to_end(digest)
        while len(self._known) > CACHE_ENTRIES_MAX:
            self._known.popitem(last=False)
        return principal


def unauthorized(detail: str, reason: str) -> Problem:
    """The 401 that says how to do it right."""
    metrics.KEYS_REFUSED.labels(reason=reason).inc()
    return Problem(
        ProblemType.NO_KEY,
        f"{detail}; send `Authorization: Bearer KEY`",
        headers={"WWW-Authenticate": 'Bearer realm="xnai"'},
    )


def _too_many(wait_s: int) -> Problem:
    metrics.KEYS_REFUSED.labels(reason="too_many").inc()
    return Problem(
        ProblemType.TOO_MANY_GUESSES,
        "too many wrong API keys came from this address, or with this key's prefix",
        headers={"Retry-After": str(wait_s)},
    )


def _bearer_token(header: str | None) -> str:
    scheme, _, token = (header or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > _HEADER_BYTES_MAX:
        raise unauthorized("no API key", "missing")
    return token


class Requires:
    """The check of a route: at least this role, and for some the installation's own tenant. The
    OpenAPI document tells both.
    """

    def __init__(self, role: Role, *, of_installation: bool = False) -> None:
        self.role = role
        self.of_installation = of_installation

    async def __call__(self, request: Request) -> Principal:
        """The caller; raises Problem 403."""
        principal = cast("Principal", request.scope["state"]["principal"])
        if principal.role < self.role:
            detail = (
                f"this needs the role {self.role.label}; key {principal.name!r} has the role "
                f"{principal.role.label}"
            )
            raise Problem(ProblemType.FORBIDDEN, detail)
        if self.of_installation and not principal.is_of_installation:
            detail = "this is the installation's: it needs a key of the tenant 'default'"
            raise Problem(ProblemType.FORBIDDEN, detail)
        return principal


Reader = Annotated[Principal, Depends(Requires(Role.READER))]
Submitter = Annotated[Principal, Depends(Requires(Role.SUBMITTER))]
Operator = Annotated[Principal, Depends(Requires(Role.OPERATOR))]
Admin = Annotated[Principal, Depends(Requires(Role.ADMIN))]
InstallationOperator = Annotated[Principal, Depends(Requires(Role.OPERATOR, of_installation=True))]
InstallationAdmin = Annotated[Principal, Depends(Requires(Role.ADMIN, of_installation=True))]
