"""API keys in Postgres: made, found, listed, revoked. Knows nothing of HTTP.

A key reads `xnai_PREFIX_SECRET`. The secret is 256 random bits, so a plain SHA-256 of it is enough:
argon2 and its like slow down guessing of what people choose, and nobody guesses 2^256, while every
request would pay for it.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from uuid import UUID

import asyncpg

from jobs.model import DEFAULT_TENANT, TenantId
from runtime.files import explained, private_folder, write_private
from runtime.ids import uuid7
from runtime.postgres import Connection
from runtime.settings import Settings
from runtime.sql import load_queries

SCHEME = "xnai"
ADMIN_KEY_FILE = "admin.key"
_SECRET_BYTES = 32
_PREFIX_BYTES = 6
# One lock for the whole database: any number that no other package locks.
_ACCESS_LOCK = 0x786E_6169_0005

QUERIES = load_queries("api")


class Role(IntEnum):
    """What a key may do; each role may do all that the ones below it may."""

    READER = 1
    SUBMITTER = 2
    OPERATOR = 3
    ADMIN = 4

    @property
    def label(self) -> str:
        """The role as users write it."""
        return self.name.lower()

    @classmethod
    def parse(cls, label: str) -> "Role":
        """The role of that name."""
        return cls[label.upper()]


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret."""

    id: UUID
    tenant_id: TenantId
    tenant: str
    name: str
    prefix: str
    secret_hash: bytes
    role: Role
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    is_valid: bool

    def matches(self, secret: str) -> bool:
        """Whether this is the key's secret, in a time that does not depend on how much of it is
        right.
        """
        return hmac.compare_digest(self.secret_hash, _hash(secret))


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to make."""

    name: str
    role: Role
    tenant_id: TenantId = DEFAULT_TENANT
    expires_at: datetime | None = None


def split_key(text: str) -> tuple[str, str] | None:
    """Prefix and secret of a key as it was shown, None when it is not one of ours."""
    scheme, _, rest = text.partition("_")
    prefix, _, secret = rest.partition("_")
    if scheme != SCHEME or not prefix or not secret or not text.isascii():
        return None
    return prefix, secret


async def create_key(connection: Connection, new: NewKey) -> tuple[UUID, str]:
    """Store a key; return its id and, this once, its text. Does not commit by itself."""
    key_id, prefix = uuid7(), secrets.token_hex(_PREFIX_BYTES)
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    await connection.fetchval(
        QUERIES["insert_key"],
        key_id,
        new.tenant_id,
        new.name,
        prefix,
        _hash(secret),
        new.role.label,
        new.expires_at,
    )
    return key_id, f"{SCHEME}_{prefix}_{secret}"


async def tenant_of_name(connection: Connection, name: str) -> TenantId:
    """The tenant's id; the tenant is created if need be. Call it within a transaction."""
    await connection.execute(QUERIES["lock_access"], _ACCESS_LOCK)
    return TenantId(await connection.fetchval(QUERIES["tenant_of_name"], name))


async def find_by_prefix(connection: Connection, prefix: str) -> Key | None:
    """The key with that prefix, valid or not."""
    return _maybe_key(await connection.fetchrow(QUERIES["key_by_prefix"], prefix))


async def find_by_id(connection: Connection, tenant: TenantId, key_id: UUID) -> Key | None:
    """A key of the tenant."""
    return _maybe_key(await connection.fetchrow(QUERIES["key_by_id"], tenant, key_id))


async def list_keys(
    connection: Connection, tenant: TenantId, after: UUID | None, limit: int
) -> list[Key]:
    """The tenant's keys after a cursor, oldest first."""
    rows = await connection.fetch(QUERIES["list_keys"], tenant, after, limit)
    return [_key(row) for row in rows]


async def revoke(connection: Connection, tenant: TenantId, key_id: UUID) -> str | None:
    """End a key for good; return its prefix, None when there is no such key. Idempotent."""
    prefix: str | None = await connection.fetchval(QUERIES["revoke_key"], tenant, key_id)
    return prefix


async def touch(connection: Connection, used_at: Mapping[UUID, datetime]) -> None:
    """Write the last uses of keys."""
    await connection.execute(QUERIES["touch_keys"], list(used_at), list(used_at.values()))


async def ensure_admin_key(connection: Connection, settings: Settings) -> Path:
    """Make sure that DATA_DIR/admin.key holds a working admin key; return its path. Idempotent.

    The key is written to disk before its row is committed, so that a crash between the two leaves a
    file that the next start replaces, never a key that nobody has.
    """
    path = settings.data_dir / ADMIN_KEY_FILE
    async with connection.transaction():
        await connection.execute(QUERIES["lock_access"], _ACCESS_LOCK)
        if not await _is_admin_key(connection, path):
            _, text = await create_key(connection, NewKey("admin.key", Role.ADMIN))
            private_folder(settings.data_dir)
            write_private(path, f"{text}\n".encode())
    return path


async def _is_admin_key(connection: Connection, path: Path) -> bool:
    parts = _read_key(path)
    if parts is None:
        return False
    key = await find_by_prefix(connection, parts[0])
    is_admin = key is not None and key.is_valid and key.role is Role.ADMIN
    return key is not None and is_admin and key.matches(parts[1])


def _read_key(path: Path) -> tuple[str, str] | None:
    try:
        with explained(path):
            return split_key(path.read_text("ascii").strip())
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _maybe_key(row: asyncpg.Record | None) -> Key | None:
    return None if row is None else _key(row)


def _key(row: asyncpg.Record) -> Key:
    fields = dict(row)
    return Key(**{**fields, "role": Role.parse(fields["role"])})
