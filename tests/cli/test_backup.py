"""Backups are whole or refused, and what they hold comes back in another database."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from corpus import documents
from corpus.model import Page
from jobs import dispatch, events, slots
from jobs.events import EventScope
from jobs.model import DEFAULT_TENANT
from runtime.migrate import migrate
from runtime.postgres import Pool
from runtime.redis import Client
from tests.jobs.desk import Desk, audit, probe
from tests.support.session_servers import WorkerServers, with_path

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
# Higher than any id of the session's cluster, as ids of a long-lived cluster are.
FAR_XID = 10**12

EVERYTHING = EventScope(DEFAULT_TENANT)


class CommandLine:
    """`xnai VERB …` against one database."""

    def __init__(self, data_dir: Path, url: str, redis_url: str) -> None:
        self._environment = {
            **os.environ,
            "XNAI_DATA_DIR": str(data_dir),
            "XNAI_DATABASE_URL": url,
            "XNAI_REDIS_URL": redis_url,
        }

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def source(data_dir: Path, database_url: str, redis_url: str) -> CommandLine:
    return CommandLine(data_dir, database_url, redis_url)


@pytest.fixture
async def fresh_url(worker_servers: WorkerServers) -> AsyncIterator[str]:
    """A second database, migrated and otherwise empty."""
    name = urlsplit(worker_servers.database_url).path[1:] + "_restored"
    admin = await asyncpg.connect(worker_servers.admin_url)
    await admin.execute(f"CREATE DATABASE {name} OWNER xnai")
    try:
        url = with_path(worker_servers.database_url, name)
        await migrate(url)
        yield url
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture
def target(data_dir: Path, fresh_url: str, redis_url: str) -> CommandLine:
    return CommandLine(data_dir, fresh_url, redis_url)


@pytest.fixture
async def full(db: Pool) -> Desk:
    """A database with a finished, a running and a queued job, and a document."""
    desk = Desk(db)
    await desk.enqueue(probe(), probe())
    slot = await desk.slot()
    done, _ = await desk.claim(slot)
    await desk.end(slot, [done])
    await desk.enqueue(probe())
    async with db.acquire() as connection, connection.transaction():
        page = Page(key="a.md", url=None, title="A", text="Text of the page.")
        await documents.put_page(connection, DEFAULT_TENANT, "default", page)
    return desk


async def rows(url: str) -> dict[str, int]:
    connection = await asyncpg.connect(url)
    try:
        return {
            table: len(await connection.fetch(f"TABLE {table}"))
            for table in ("ready", "held", "jobs", "history", "events", "documents", "contents")
        }
    finally:
        await connection.close()


def assert_refused(done: subprocess.CompletedProcess[str], word: str, code: int = 1) -> None:
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert word in line


async def test_backup_comes_back_in_another_cluster(
    full: Desk,
    source: CommandLine,
    target: CommandLine,
    fresh_url: str,
    worker_servers: WorkerServers,
    tmp_path: Path,
) -> None:
    async with full.pool.acquire() as connection:
        for table in ("events", "history", "webhook_cursor"):
            await connection.execute(
                f"UPDATE {table} SET xid = (xid::text::bigint + {FAR_XID})::text::xid8"  # noqa: S608
            )
        # What any reader would see in a cluster whose transactions count from the start.
        assert await events.after(connection, EVERYTHING, None) == []
    expected = await rows(worker_servers.database_url)
    folder = tmp_path / "backup"
    done = source.run("backup", folder, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["size_bytes"] == (folder / "database.dump").stat().st_size
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["database.dump", "manifest.json"]
    done = target.run("restore", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert await rows(fresh_url) == expected
    assert expected == {
        "ready": 1,
        "held": 1,
        "jobs": 2,
        "history": 1,
        "events": expected["events"],
        "documents": 1,
        "contents": 1,
    }
    restored = await asyncpg.connect(fresh_url)
    try:
        await audit(restored)
        # The job that ran is taken back, since its slot counts as dead.
        assert len(await slots.ended_holding(restored)) == 1
        assert await slots.beats(restored) == {}
        told = [event.type for event in await events.after(restored, EVERYTHING, None)]
        assert "job.succeeded" in told
    finally:
        await restored.close()


async def test_dump_that_breaks_off_changes_nothing(
    full: Desk, source: CommandLine, target: CommandLine, fresh_url: str, tmp_path: Path
) -> None:
    """The checksum fits, the dump does not: what was already restored is rolled back."""
    folder = tmp_path / "backup"
    assert source.run("backup", folder).returncode == 0
    dump, manifest = folder / "database.dump", folder / "manifest.json"
    content = dump.read_bytes()[:-2000]
    dump.write_bytes(content)
    fitting = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | fitting))
    assert_refused(target.run("restore", folder), "pg_restore")
    assert set((await rows(fresh_url)).values()) == {0}
    assert await migrate(fresh_url) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_full_disk_is_one_line_and_leaves_nothing(
    full: Desk, source: CommandLine, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs mount namespaces")
    try:
        assert_refused(source.run("backup", small / "backup"), "no space left")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def test_database_with_rows_is_never_replaced(
    full: Desk, source: CommandLine, database_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    assert source.run("backup", folder).returncode == 0
    before = await rows(database_url)
    assert_refused(source.run("restore", folder), "new XNAI_DATA_DIR")
    assert await rows(database_url) == before


async def test_damaged_and_partial_backups_are_refused(
    full: Desk, source: CommandLine, target: CommandLine, fresh_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    assert source.run("backup", folder).returncode == 0
    assert_refused(source.run("backup", folder), "not an empty folder")
    dump = folder / "database.dump"
    content = dump.read_bytes()
    dump.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert_refused(target.run("restore", folder), "is damaged")
    dump.unlink()
    assert_refused(target.run("restore", folder), "is missing")
    (folder / "manifest.json").unlink()
    assert_refused(target.run("restore", folder), "no whole backup")
    assert set((await rows(fresh_url)).values()) == {0}


async def test_server_that_does_not_answer_is_exit_code_3(data_dir: Path, tmp_path: Path) -> None:
    nobody = CommandLine(
        data_dir, "postgresql://xnai:secret@127.0.0.1:1/xnai", "redis://127.0.0.1:1"
    )
    assert_refused(nobody.run("backup", tmp_path / "backup"), "does not answer", 3)
    assert_refused(nobody.run("rebuild", "dispatch"), "does not answer", 3)
    assert not any(tmp_path.glob("*backup*"))


async def test_queued_jobs_are_announced_again(
    full: Desk, source: CommandLine, redis: Client
) -> None:
    await redis.flushdb()
    done = source.run("rebuild", "dispatch", "--json")
    assert json.loads(done.stdout) == {"pools": 1, "announced": {"probe": 1}}
    assert await dispatch.waiting(redis, "probe") == 1
