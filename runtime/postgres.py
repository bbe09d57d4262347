"""Opens connections to Postgres, all with the same guards; runs no query of anybody's.

The timeouts make the server end what a stopped (SIGSTOP, partitioned) process holds: without them
it could keep row locks for ever. A server that stops answering ends nothing at all: so every wait
of ours has its own end, too.
"""

import logging
import ssl
from typing import TYPE_CHECKING, override

import anyio
import asyncpg
import orjson
from asyncpg.pool import PoolAcquireContext

from runtime.errors import NotReachableError, PostgresAwayError, SettingsError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    from runtime.settings import Settings

    type Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    type Pool = asyncpg.Pool[asyncpg.Record]
else:
    # The classes are generic only in their stubs.
    Connection = asyncpg.Connection
    Pool = asyncpg.Pool

_log = logging.getLogger("asyncpg")
# The pool's own retries of its one idle connection tell a whole traceback each; our loops tell of
# the outage in a line.
logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)

CONNECT_TIMEOUT_S = 10.0
LOCK_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 30.0
IDLE_IN_TRANSACTION_TIMEOUT_S = 5.0
IDLE_CONNECTION_S = 10.0

# How long a pool waits for a free connection, and a release for its clean-up.
ACQUIRE_TIMEOUT_S = 10.0
# What the server's own statement_timeout has not ended by then, it will never answer.
SILENCE_S = 5.0

# Ends the connection, or refuses one: the server is down, starting, stopping or out of places.
_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
)
# What asyncpg says of its own state when the server's last word came before the end of the line.
_CONFUSED = (asyncpg.InternalClientError,)
# Nobody's fault but the server's: what it interrupted is done again, and counts as no failure.
OUTAGE = (
    PostgresAwayError,
    *_GONE,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
)
# The server does not do what it is asked to, or cannot be asked: passes without a restart of ours.
UNREACHABLE = (OSError, ssl.SSLError, *OUTAGE)
# And what one statement may meet at any time: loops that must not end do it again.
PASSING = (
    *UNREACHABLE,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.TransactionRollbackError,
)
_JSONB_VERSION = b"\x01"
_QUERIES_A_CONNECTION = 50_000
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


async def open_pool(
    settings: "Settings", *, role: str, size: int, generic_plans: bool = False
) -> Pool:
    """Open a pool of at most `size` connections, waiting for a server that is still starting.

    Raises NotReachableError after `connect_timeout_s`. Connections are named `xnai ROLE` on the
    server; jsonb columns are Python objects both ways. Every wait for the server ends, and whatever
    ends the connection itself arrives as PostgresAwayError.

    `generic_plans` has each statement planned once a connection: planning one that reads all days
    of history takes ten times as long as running it.
    """
    url = database_url(settings)
    pool: Pool = _BoundedPool(
        url,
        min_size=1,
        max_size=size,
        max_queries=_QUERIES_A_CONNECTION,
        loop=None,
        connection_class=asyncpg.Connection,
        record_class=asyncpg.Record,
        init=_set_codecs,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=_patience_s(settings.statement_timeout_s),
        reset=_keep_session,
        # A connection costs the server some 6 MB: after a burst, give them back soon.
        max_inactive_connection_lifetime=IDLE_CONNECTION_S,
        server_settings={
            **_server_settings(role, settings.statement_timeout_s, settings.lock_timeout_s),
            "plan_cache_mode": "force_generic_plan" if generic_plans else "auto",
        },
    )
    await wait_reachable(url, timeout_s=settings.connect_timeout_s)
    await pool
    return pool


class _BoundedPool(asyncpg.Pool):
    """A pool whose every wait has an end."""

    @override
    def acquire(self, *, timeout: float | None = None) -> "_Acquired":
        """A connection for a block; PostgresAwayError when there is none within `timeout`."""
        return _Acquired(self, ACQUIRE_TIMEOUT_S if timeout is None else timeout)


class _Acquired(PoolAcquireContext):
    """Tells the loss of the connection, in whatever words asyncpg tells it, as one error."""

    __slots__ = ()

    @override
    async def __aenter__(self) -> "PoolConnectionProxy[asyncpg.Record]":
        try:
            return await super().__aenter__()
        except TimeoutError as error:
            size, most = self.pool.get_size(), self.pool.get_max_size()
            message = (
                f"no connection to Postgres within {self.timeout:g} s ({size} of {most} are open): "
                "it does not answer, or all of them are in use"
            )
            raise PostgresAwayError(message) from error
        except (OSError, *_GONE) as error:
            raise _away(error) from error

    @override
    async def __aexit__(self, *exc: object) -> None:
        _, error, _ = exc
        is_lost = isinstance(error, (*_GONE, *_CONFUSED)) or _is_closed(error, self.connection)
        try:
            await super().__aexit__(*exc)
        except (TimeoutError, *_GONE, *_CONFUSED, asyncpg.InterfaceError) as failure:
            # What the block did is committed or not: only the clean-up of the connection failed,
            # and asyncpg has closed it for that.
            _log.info("connection closed at its release: %s", failure)
        if is_lost and isinstance(error, BaseException):
            raise _away(error) from error


def _is_closed(error: object, connection: "Connection | None") -> bool:
    """Whether an error of asyncpg's own says no more than that the connection is gone."""
    if not isinstance(error, asyncpg.InterfaceError):
        return False
    try:
        return connection is None or connection.is_closed()
    except asyncpg.InterfaceError:
        # Closed so thoroughly that the pool has taken it back already.
        return True


def _away(error: BaseException) -> PostgresAwayError:
    # An error of asyncpg's without a message cannot even be turned into text.
    said = str(error) if error.args else ""
    return PostgresAwayError(f"Postgres is away: {said or type(error).__name__}")


async def connect(
    url: str, *, role: str, statement_timeout_s: float = STATEMENT_TIMEOUT_S
) -> "asyncpg.Connection[asyncpg.Record]":
    """Open one connection with the same guards, outside any pool; the caller closes it."""
    try:
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            url,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=_patience_s(statement_timeout_s),
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


def _patience_s(statement_timeout_s: float) -> float | None:
    """How long to wait for an answer; for ever where the server sets no limit either."""
    return statement_timeout_s + SILENCE_S if statement_timeout_s else None


def _server_settings(
    role: str, statement_timeout_s: float, lock_timeout_s: float
) -> dict[str, str]:
    return {
        "application_name": f"xnai {role}",
        "timezone": "UTC",
        "jit": "off",
        # Tables that fill and empty within a minute have statistics of some other minute. Where an
        # index leads to the rows, take it: reading a table as a whole may then be slow, and locks
        # its rows in no order.
        "enable_seqscan": "off",
        # And follow its order, instead of gathering and sorting all that may match.
        "random_page_cost": "1.1",
        "statement_timeout": _milliseconds(statement_timeout_s),
        "lock_timeout": _milliseconds(lock_timeout_s),
        "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_TIMEOUT_S),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


async def _keep_session(connection: Connection) -> None:
    """Nothing of ours changes a session beyond its transaction, so there is nothing to reset: the
    default asks the server a question for every release.
    """
    del connection


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
