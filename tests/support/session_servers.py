"""The PostgreSQL and Valkey of each xdist worker of a test session.

One pair a worker, not one for all: readers of events and results wait for the oldest transaction of
the whole cluster, so that one worker's open transaction would be seen in another's tests. The
controller owns the folder and stops what is left; a killed session's servers are stopped by the
next session.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import anyio
import asyncpg

from runtime.embedded import EmbeddedServers
from runtime.migrate import migrate

TEMPLATE = "xnai_template"
_PREFIX = f"xnai-tests-{os.getuid()}-"
_OWNER_LOCK = "session.lock"

# Rows that migrations bring are part of the schema: kept aside once, put back before each test.
_KEEP_SEEDS = """
DO $$
DECLARE item regclass; filled boolean;
BEGIN
    CREATE SCHEMA seed;
    FOR item IN
        SELECT oid FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
          AND NOT relispartition AND relname <> 'schema_migrations'
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT 1 FROM %s)', item) INTO filled;
        IF filled THEN
            EXECUTE format('CREATE TABLE seed.%I AS TABLE %s', (parse_ident(item::text))[1], item);
        END IF;
    END LOOP;
END $$
"""
# DELETE is 50 times faster than TRUNCATE on small tables; replica mode leaves triggers out.
_RESET_SCRIPT = """
SELECT coalesce(string_agg(format('DELETE FROM %s;', oid::regclass), ' '), '')
    || coalesce(string_agg(
           format('INSERT INTO %s OVERRIDING SYSTEM VALUE TABLE seed.%I;', oid::regclass, relname),
           ' ') FILTER (WHERE to_regclass(format('seed.%I', relname)) IS NOT NULL), '')
FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
  AND NOT relispartition AND relname <> 'schema_migrations'
"""


class SessionFolder:
    """Held by the controller for the length of the session."""

    def __init__(self) -> None:
        _clear_dead_sessions()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = _lock(self.path / _OWNER_LOCK)

    def close(self) -> None:
        _stop_servers(self.path)
        if self._lock is not None:
            os.close(self._lock)
        shutil.rmtree(self.path, ignore_errors=True)


class WorkerServers:
    """The running servers of one worker, and its database."""

    def __init__(self, home: Path, worker: str) -> None:
        self.servers = EmbeddedServers(home / worker)
        self._database = f"xnai_{worker}"
        run_in_thread(self._start())
        assert self.servers.postgres is not None
        assert self.servers.valkey is not None
        self.admin_url = with_path(self.servers.postgres.admin_url, self._database)
        self.database_url = with_path(self.servers.postgres.url, self._database)
        self.redis_url = with_path(self.servers.valkey.url, "1")

    def reset(self) -> None:
        run_in_thread(self._reset())

    async def _start(self) -> None:
        await self.servers.start()
        assert self.servers.postgres is not None
        admin_url = self.servers.postgres.admin_url
        admin = await asyncpg.connect(admin_url)
        try:
            query = "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)"
            if not await admin.fetchval(query, TEMPLATE):
                await self._make_template(admin, admin_url)
            await admin.execute(f"CREATE DATABASE {self._database} TEMPLATE {TEMPLATE} OWNER xnai")
        finally:
            await admin.close()

    async def _make_template(
        self, admin: "asyncpg.Connection[asyncpg.Record]", admin_url: str
    ) -> None:
        """Migrate once, as the role that migrates in production, under another name until done."""
        assert self.servers.postgres is not None
        await admin.execute("DROP DATABASE IF EXISTS xnai_unfinished")
        await admin.execute("CREATE DATABASE xnai_unfinished OWNER xnai")
        await migrate(with_path(self.servers.postgres.url, "xnai_unfinished"))
        connection = await asyncpg.connect(with_path(admin_url, "xnai_unfinished"))
        await connection.execute(_KEEP_SEEDS)
        await connection.close()
        await admin.execute(f"ALTER DATABASE xnai_unfinished RENAME TO {TEMPLATE}")

    async def _reset(self) -> None:
        settings = {"session_replication_role": "replica", "lock_timeout": "10s"}
        connection = await asyncpg.connect(self.admin_url, server_settings=settings)
        try:
            await connection.execute(await connection.fetchval(_RESET_SCRIPT))
        finally:
            await connection.close()


def run_in_thread[T](work: Coroutine[Any, Any, T]) -> T:
    """Run to the end outside the test's event loop, from a fixture that is not async."""

    async def main() -> T:
        return await work

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(anyio.run, main).result()


def _stop_servers(home: Path) -> None:
    for state in home.glob("*/embedded.json"):
        run_in_thread(EmbeddedServers(state.parent).stop_left_over())


def _clear_dead_sessions() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if (lock := _lock(folder / _OWNER_LOCK)) is not None:
            _stop_servers(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return descriptor


def with_path(url: str, path: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))
