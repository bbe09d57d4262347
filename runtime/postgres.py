"""Opens connections to Postgres, all with the same guards; runs no query of anybody's.

The timeouts make the server end what a stopped (SIGSTOP, partitioned) process holds: without them
it could keep row locks for ever.
"""

import ssl
from typing import TYPE_CHECKING

import anyio
import asyncpg
import orjson

from runtime.errors import NotReachableError, SettingsError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    from runtime.settings import Settings

    type Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    type Pool = asyncpg.Pool[asyncpg.Record]
else:
    # The classes are generic only in their stubs.
    Connection = asyncpg.Connection
    Pool = asyncpg.Pool

CONNECT_TIMEOUT_S = 10.0
LOCK_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 30.0
IDLE_IN_TRANSACTION_TIMEOUT_S = 5.0
IDLE_CONNECTION_S = 10.0

# What asyncpg raises while a server is down, starting, stopping, out of connections or of disk:
# all of it passes without a restart of ours.
UNREACHABLE = (
    OSError,
    ssl.SSLError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.PostgresConnectionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)
_JSONB_VERSION = b"\x01"
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


async def open_pool(settings: "Settings", *, role: str, size: int) -> Pool:
    """Open a pool of at most `size` connections, waiting for a server that is still starting.

    Raises NotReachableError after `connect_timeout_s`. Connections are named `xnai ROLE` on the
    server; jsonb columns are Python objects both ways.
    """
    url = database_url(settings)
    pool: Pool = asyncpg.create_pool(
        url,
        min_size=1,
        max_size=size,
        init=_set_codecs,
        timeout=CONNECT_TIMEOUT_S,
        # A connection costs the server some 6 MB: after a burst, give them back soon.
        max_inactive_connection_lifetime=IDLE_CONNECTION_S,
        server_settings=_server_settings(
            role, settings.statement_timeout_s, settings.lock_timeout_s
        ),
    )
    await wait_reachable(url, timeout_s=settings.connect_timeout_s)
    await pool
    return pool


async def connect(
    url: str, *, role: str, statement_timeout_s: float = STATEMENT_TIMEOUT_S
) -> "asyncpg.Connection[asyncpg.Record]":
    """Open one connection with the same guards, outside any pool; the caller closes it."""
    try:
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            url,
            timeout=CONNECT_TIMEOUT_S,
            server_settings=_server_settings(role, statement_timeout_s, LOCK_TIMEOUT_S),
        )
    except (*UNREACHABLE, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise _not_reachable(error) from error
    await _set_codecs(connection)
    return connection


async def wait_reachable(url: str, *, timeout_s: float) -> None:
    """Return once the server accepts a connection; raise NotReachableError after `timeout_s`."""
    pause_s = _FIRST_PAUSE_S
    last_error: Exception | None = None
    with anyio.move_on_after(timeout_s):
        while True:
            try:
                connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
            except UNREACHABLE as error:
                last_error = error
            except asyncpg.PostgresError as error:
                raise _not_reachable(error) from error
            else:
                await connection.close()
                return
            await anyio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
    raise _not_reachable(last_error) from last_error


def database_url(settings: "Settings") -> str:
    """Return the database's address, or say how to get one."""
    if settings.database_url is None:
        message = (
            f"no database: set XNAI_DATABASE_URL, or start `xnai up` on {settings.data_dir} first"
        )
        raise SettingsError(message)
    return settings.database_url


def _server_settings(
    role: str, statement_timeout_s: float, lock_timeout_s: float
) -> dict[str, str]:
    return {
        "application_name": f"xnai {role}",
        "timezone": "UTC",
        "jit": "off",
        "statement_timeout": _milliseconds(statement_timeout_s),
        "lock_timeout": _milliseconds(lock_timeout_s),
        "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_TIMEOUT_S),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


async def _set_codecs(connection: Connection) -> None:
    """Move jsonb in its binary form: a version byte and the text, without a copy through str."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=_encode_jsonb,
        decoder=_decode_jsonb,
        format="binary",
    )


def _encode_jsonb(value: object) -> bytes:
    return _JSONB_VERSION + orjson.dumps(value)


def _decode_jsonb(data: bytes) -> object:
    return orjson.loads(memoryview(data)[1:])


def _not_reachable(error: Exception | None) -> NotReachableError:
    message = (
        f"Postgres does not answer ({error or 'timed out'}): start it, or correct XNAI_DATABASE_URL"
    )
    return NotReachableError(message)
