"""API keys in Postgres: made, found, listed, rotated, revoked. Knows nothing of HTTP.

A key reads `xnai_PREFIX_SECRET`. The secret is 256 random bits, so a plain SHA-256 of it is enough:
argon2 and its like slow down guessing of what people choose, and nobody guesses 2^256, while every
request would pay for it.
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
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
ROTATION_OVERLAP_S = 86_400.0
# One lock for the whole database: any number that no other package locks.
_ACCESS_LOCK = 0x786E_6169_0005

_NO_HASH = bytes(hashlib.sha256().digest_size)

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
    rotations: int
    previous_hash: bytes | None
    previous_until: datetime | None
    role: Role
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    is_valid: bool

    def ends_at(self, rotation: int) -> datetime | None:
        """When that secret stops to hold by itself."""
        ends = [self.expires_at, self.previous_until if rotation < self.rotations else None]
        return min((moment for moment in ends if moment is not None), default=None)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to make."""

    name: str
    role: Role
    tenant_id: TenantId = DEFAULT_TENANT
    expires_at: datetime | None = None


def rotation_of(key: Key | None, secret: str) -> int | None:
    """Which of the key's secrets this is: `rotations` for the present one, one less for the one
    before while it holds; None when it is neither, or when there is no such key.

    Compares as much, and in a time that tells nothing of the hashes, whatever is the case.
    """
    present, previous = (key.secret_hash, key.previous_hash) if key else (None, None)
    secret_hash = _hash(secret)
    is_present = hmac.compare_digest(present or _NO_HASH, secret_hash)
    is_previous = hmac.compare_digest(previous or _NO_HASH, secret_hash)
    if key is None or not (is_present or is_previous):
        return None
    return key.rotations if is_present else key.rotations - 1


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
    await connection.execute(
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


async def rotate(
    connection: Connection, tenant: TenantId, key_id: UUID, *, overlap_s: float
) -> str | None:
    """Give a key a new secret and return its text, this once; the old one holds for `overlap_s`
    more, and the one before ends. None when there is no such key, or it has ended.
    """
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    prefix = await connection.fetchval(
        QUERIES["rotate_key"], tenant, key_id, _hash(secret), timedelta(seconds=overlap_s)
    )
    return None if prefix is None else f"{SCHEME}_{prefix}_{secret}"


async def tenant_of_name(connection: Connection, name: str) -> TenantId:
    """The tenant's id; the tenant is created if need be. Call it within a transaction."""
    await connection.execute(QUERIES["lock_access"], _ACCESS_LOCK)
    return TenantId(await connection.fetchval(QUERIES["tenant_of_name"], name))


async def find_tenant(connection: Connection, name: str) -> TenantId | None:
    """The tenant's id, if there is one of that name."""
    tenant_id: int | None = await connection.fetchval(QUERIES["find_tenant"], name)
    return None if tenant_id is None else TenantId(tenant_id)


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


async def revoke(connection: Connection, tenant: TenantId, key_id: UUID) -> bool:
    """End a key for good; whether it had not ended so before. Idempotent."""
    return await connection.fetchval(QUERIES["revoke_key"], tenant, key_id) is not None


async def still_held(
    connection: Connection, held: Collection[tuple[UUID, int]]
) -> frozenset[tuple[UUID, int]]:
    """Those of the keys' secrets, told by their rotation, that hold now."""
    ids, rotations = [key_id for key_id, _ in held], [rotation for _, rotation in held]
    rows = await connection.fetch(QUERIES["keys_held"], ids, rotations)
    return frozenset((row["id"], row["rotation"]) for row in rows)


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
    return key is not None and is_admin and rotation_of(key, parts[1]) is not None


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
