"""Migrations: in order, once, by one at a time; altered and newer ones are refused."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import anyio
import asyncpg
import pytest

from runtime.errors import MigrationError
from runtime.migrate import Migration, load_migrations, migrate
from tests.support.session_servers import WorkerServers, with_path

pytestmark = pytest.mark.anyio
FIRST = Migration(1, "first", "CREATE TABLE first (n int); INSERT INTO first VALUES (1)")
SECOND = Migration(2, "second", "CREATE TABLE second (n int)")


@pytest.fixture
async def empty(worker_servers: WorkerServers) -> AsyncIterator[str]:
    """The address of a database without any table."""
    name = f"empty_{uuid4().hex}"
    admin = await asyncpg.connect(worker_servers.admin_url)
    try:
        await admin.execute(f"CREATE DATABASE {name} OWNER xnai")
        yield with_path(worker_servers.database_url, name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def rows(url: str, query: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_each_is_applied_once_and_recorded(empty: str) -> None:
    assert await migrate(empty, [FIRST]) == ["0001_first"]
    assert await migrate(empty, [FIRST, SECOND]) == ["0002_second"]
    assert await migrate(empty, [FIRST, SECOND]) == []
    assert await rows(empty, "SELECT version, name FROM schema_migrations ORDER BY 1") == [
        (1, "first"),
        (2, "second"),
    ]
    assert await rows(empty, "SELECT n FROM first") == [(1,)]


async def test_many_at_once_apply_each_once(empty: str) -> None:
    applied: list[str] = []

    async def apply() -> None:
        applied.extend(await migrate(empty, [FIRST, SECOND]))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(apply)
    assert applied == ["0001_first", "0002_second"]


async def test_altered_file_is_refused(empty: str) -> None:
    await migrate(empty, [FIRST])
    altered = replace(FIRST, sql=FIRST.sql + " ")
    with pytest.raises(MigrationError, match=r"0001_first\.sql was altered.*next number"):
        await migrate(empty, [altered, SECOND])
    assert await rows(empty, "SELECT to_regclass('second')::text") == [(None,)]


async def test_failing_one_is_rolled_back_and_its_predecessors_stay(empty: str) -> None:
    broken = Migration(2, "broken", "CREATE TABLE half (n int); SELECT 1 / 0")
    with pytest.raises(MigrationError, match=r"0002_broken failed.*division by zero"):
        await migrate(empty, [FIRST, broken])
    assert await rows(empty, "SELECT to_regclass('half')::text") == [(None,)]
    assert await rows(empty, "SELECT version FROM schema_migrations") == [(1,)]


async def test_newer_database_is_refused(empty: str) -> None:
    await migrate(empty, [FIRST, SECOND])
    with pytest.raises(MigrationError, match=r"has migration 0002.*knows up to 0001"):
        await migrate(empty, [FIRST])


async def test_number_below_the_applied_ones_is_refused(empty: str) -> None:
    await migrate(empty, [SECOND])
    with pytest.raises(MigrationError, match="0001_first comes before 0002"):
        await migrate(empty, [FIRST, SECOND])


async def test_shipped_migrations_build_the_schema_in_one_go(empty: str) -> None:
    shipped = load_migrations()
    assert await migrate(empty) == [str(item) for item in shipped]
    assert [item.version for item in shipped] == sorted({item.version for item in shipped})
