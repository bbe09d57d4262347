"""Fixtures of the whole suite: real servers, one PostgreSQL and one Valkey a worker.

Rows are deleted before each test, never rolled back: SKIP LOCKED and crashes need commits.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from redis import Redis as SyncRedis

from runtime import redis as runtime_redis
from runtime.postgres import Pool, open_pool
from runtime.redis import Client
from runtime.settings import ENV_PREFIX, Settings, load_settings
from tests.support import skips
from tests.support.session_servers import SessionFolder, WorkerServers

_FOLDER = pytest.StashKey[SessionFolder]()
_WORKER_INPUT = "xnai_servers"
_POOL_SIZE = 8


def pytest_configure(config: pytest.Config) -> None:
    """Keep the developer's own XNAI_ settings out of the tests; the controller owns the servers."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        del os.environ[name]
    if not hasattr(config, "workerinput"):
        config.stash[_FOLDER] = SessionFolder()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: "object") -> None:
    """Tell each xdist worker where the session's servers are."""
    folder = node.config.stash[_FOLDER]  # type: ignore[attr-defined] # xdist ships no types
    node.workerinput[_WORKER_INPUT] = str(folder.path)  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    if (folder := config.stash.get(_FOLDER, None)) is not None:
        folder.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with what was skipped, and why."""
    found = skips.skipped(terminalreporter)
    terminalreporter.section(f"skipped: {len(found)}")
    for test, reason in found:
        terminalreporter.write_line(f"{test}: {reason}")
    if skips.is_ci():
        for test, _ in skips.not_allowed(found):
            terminalreporter.write_line(f"NOT ALLOWED in CI: {test} (tests/allowed_skips.txt)")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_controller = not hasattr(session.config, "workerinput")
    if is_controller and reporter and skips.is_ci() and skips.not_allowed(skips.skipped(reporter)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def worker_servers(request: pytest.FixtureRequest) -> Iterator[WorkerServers]:
    """Start or adopt the session's servers; `.admin_url` is the superuser on our own database."""
    config = request.config
    if hasattr(config, "workerinput"):
        home, worker = Path(config.workerinput[_WORKER_INPUT]), config.workerinput["workerid"]
    else:
        home, worker = config.stash[_FOLDER].path, "main"
    found = WorkerServers(home, worker)
    yield found
    found.servers.leave()


@pytest.fixture
def database_url(worker_servers: WorkerServers) -> str:
    """A migrated database of this worker alone, holding the migrations' own rows and no others."""
    worker_servers.reset()
    return worker_servers.database_url


@pytest.fixture
async def db(database_url: str, settings: Settings) -> AsyncIterator[Pool]:
    """A pool on `database_url`, opened as every process opens its own."""
    del database_url
    pool = await open_pool(settings, role="test", size=_POOL_SIZE)
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture
def redis_url(worker_servers: WorkerServers) -> str:
    """An empty logical database of this worker alone."""
    with SyncRedis.from_url(worker_servers.redis_url) as client:
        client.flushdb()
    return worker_servers.redis_url


@pytest.fixture
async def redis(redis_url: str, settings: Settings) -> AsyncIterator[Client]:
    del redis_url
    client = runtime_redis.connect(settings)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data directory."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def settings(database_url: str, redis_url: str, data_dir: Path) -> Settings:
    """Settings for this worker's servers, everything else at its default."""
    return load_settings(data_dir=data_dir, database_url=database_url, redis_url=redis_url)


@pytest.fixture
async def connection(database_url: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """One bare connection, for a look from outside."""
    found = await asyncpg.connect(database_url)
    try:
        yield found
    finally:
        await found.close()
