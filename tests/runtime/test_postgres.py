"""Connections carry their guards, and jsonb is Python objects both ways."""

import asyncpg
import pytest

from runtime.errors import NotReachableError, PostgresAwayError, SettingsError
from runtime.postgres import Pool, connect, open_pool
from runtime.settings import Settings

pytestmark = pytest.mark.anyio


async def test_every_connection_bounds_its_waits(db: Pool) -> None:
    assert await db.fetchval("SHOW idle_in_transaction_session_timeout") == "5s"
    assert await db.fetchval("SHOW lock_timeout") == "5s"
    assert await db.fetchval("SHOW statement_timeout") == "30s"
    assert await db.fetchval("SHOW timezone") == "UTC"
    assert await db.fetchval("SHOW application_name") == "xnai test"


@pytest.mark.parametrize(
    "value", [{"a": [1, None, "ä \U0001f600"]}, [], "text", 1.5, None, {"deep": {"er": True}}]
)
async def test_jsonb_round_trips_as_python_objects(db: Pool, value: object) -> None:
    assert await db.fetchval("SELECT coalesce($1::jsonb, 'null')", value) == value


async def test_jsonb_arrays_round_trip(db: Pool) -> None:
    assert await db.fetchval("SELECT $1::jsonb[]", [{"a": 1}, {"b": [2]}]) == [
        {"a": 1},
        {"b": [2]},
    ]


async def test_unset_url_names_the_setting_and_the_command(settings: Settings) -> None:
    unset = settings.model_copy(update={"database_url": None})
    with pytest.raises(SettingsError, match=r"XNAI_DATABASE_URL.*xnai up"):
        await open_pool(unset, role="test", size=1)


async def test_dead_server_is_one_typed_error() -> None:
    with pytest.raises(NotReachableError, match="XNAI_DATABASE_URL"):
        await connect("postgresql://xnai@127.0.0.1:1/none", role="test")


async def test_wrong_password_is_not_waited_for(settings: Settings) -> None:
    assert settings.database_url is not None
    wrong = settings.database_url.replace(":", ":wrong", 2).replace(
        "postgresql:wrong", "postgresql:"
    )
    changed = settings.model_copy(update={"database_url": wrong})
    with pytest.raises(NotReachableError, match="password"):
        await open_pool(changed, role="test", size=1)


async def test_connection_that_the_pool_took_back_is_an_outage(db: Pool) -> None:
    async def lose_it() -> None:
        async with db.acquire() as connection, connection.transaction():
            connection.terminate()
            await connection.fetchval("SELECT 1")

    with pytest.raises(PostgresAwayError):
        await lose_it()
    assert await db.fetchval("SELECT 1") == 1


async def test_connection_that_asyncpg_lost_track_of_is_an_outage(db: Pool) -> None:
    """The server said its last word to an idle connection, and the line has not ended yet."""
    with pytest.raises(PostgresAwayError):
        async with db.acquire():
            raise asyncpg.InternalClientError("cannot switch to state 15; another is in progress")
    assert await db.fetchval("SELECT 1") == 1


async def test_a_lost_connection_without_a_message_is_named(db: Pool) -> None:
    with pytest.raises(PostgresAwayError, match="ConnectionDoesNotExistError"):
        async with db.acquire():
            raise asyncpg.ConnectionDoesNotExistError
