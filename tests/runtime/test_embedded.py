"""Embedded servers: private, adopted, cleared, restarted, and never two on one data directory."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import asyncpg
import pytest
from redis.asyncio import Redis

from runtime import embedded_state, server_process, unprivileged
from runtime.embedded import EmbeddedServers, embedded_servers
from runtime.errors import DiskFullError, EmbeddedServerError, PortInUseError, WrongMajorError
from runtime.processes import find_in_folders

pytestmark = [pytest.mark.anyio, pytest.mark.crash]
ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
async def home(data_dir: Path) -> AsyncIterator[Path]:
    """A data directory whose servers are gone after the test, however it ends."""
    yield data_dir
    if (data_dir / embedded_state.FILE_NAME).exists():
        await EmbeddedServers(data_dir).stop_left_over()


@pytest.fixture
def locked_parents() -> Iterator[Path]:
    """A folder that only root can enter, as a checkout in root's home is."""
    parent = Path(tempfile.mkdtemp(prefix="xnai-locked-"))
    try:
        (parent / "checkout").mkdir(mode=0o700)
        yield parent / "checkout"
    finally:
        shutil.rmtree(parent)


async def read_one(servers: EmbeddedServers, query: str) -> object:
    assert servers.database_url is not None
    connection = await asyncpg.connect(servers.database_url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def launch(data_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.launcher", str(data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def pids_of(launcher: subprocess.Popen[str]) -> dict[str, int]:
    assert launcher.stdout is not None
    pids: dict[str, int] = json.loads(launcher.stdout.readline())
    return pids


def end(launcher: subprocess.Popen[str]) -> None:
    launcher.kill()
    launcher.communicate()


async def until_restarted(servers: EmbeddedServers, name: str, old_pid: int) -> None:
    with anyio.fail_after(30):
        while True:
            if servers.pids.get(name, old_pid) != old_pid:
                return
            await anyio.sleep(0.01)


async def test_servers_are_set_up_as_designed(home: Path) -> None:
    async with embedded_servers(home) as servers:
        expected = {
            "data_checksums": "on",
            "fsync": "on",
            "jit": "off",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "password_encryption": "scram-sha-256",
            "listen_addresses": "127.0.0.1",
        }
        for name, value in expected.items():
            assert await read_one(servers, f"SELECT current_setting('{name}')") == value
        assert await read_one(servers, "SELECT current_user || '@' || current_database()") == (
            "xnai@xnai_foundation"
        )
        query = "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
        assert await read_one(servers, query) is False
        assert servers.redis_url is not None
        async with Redis.from_url(servers.redis_url) as redis:
            config = await redis.config_get("appendfsync", "appendonly", "maxmemory-policy")
        assert config == {
            "appendfsync": "everysec",
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
        }


async def test_passwords_are_private_and_asked_for(home: Path) -> None:
    async with embedded_servers(home) as servers:
        mode = stat.S_IMODE((home / embedded_state.FILE_NAME).stat().st_mode)
        assert mode == 0o600
        state = embedded_state.load_or_create(home)
        for password in ("", "wrong"):
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(
                    host="127.0.0.1", port=state.postgres_port, user="xnai", password=password,
                    database="xnai_foundation",
                )  # fmt: skip
        assert servers.postgres is not None
        over_socket = await asyncpg.connect(
            host=str(servers.postgres.socket_folder),
            port=state.postgres_port,
            user="xnai",
            password=state.postgres_password,
            database="xnai_foundation",
        )
        assert await over_socket.fetchval("SELECT inet_server_addr()") is None
        await over_socket.close()


async def test_killed_launcher_leaves_servers_that_the_next_start_adopts(home: Path) -> None:
    launcher = launch(home)
    old = pids_of(launcher)
    end(launcher)
    servers = EmbeddedServers(home)
    await servers.start()
    try:
        assert servers.pids == old
    finally:
        await servers.stop()
    assert find_in_folders([home / "postgres" / "data", home / "valkey"]) == []


async def test_two_launchers_at_once_share_one_pair_of_servers(home: Path) -> None:
    first, second = launch(home), launch(home)
    try:
        assert pids_of(first) == pids_of(second)
        found = find_in_folders([home / "postgres" / "data"])
        pids = {process.pid for process in found}
        assert len([process for process in found if process.parent_pid not in pids]) == 1
    finally:
        end(first)
        end(second)


@pytest.mark.parametrize("name", ["postgres", "valkey"])
async def test_killed_server_is_restarted_with_its_address_and_its_data(
    home: Path, name: str
) -> None:
    async with embedded_servers(home) as servers, anyio.create_task_group() as group:
        group.start_soon(servers.keep)
        urls = servers.database_url, servers.redis_url
        assert servers.redis_url is not None
        await read_one(servers, "CREATE TABLE kept AS SELECT 42 AS n")
        old_pid = servers.pids[name]
        os.kill(old_pid, signal.SIGKILL)
        await until_restarted(servers, name, old_pid)
        assert (servers.database_url, servers.redis_url) == urls
        assert await read_one(servers, "SELECT n FROM kept") == 42
        async with Redis.from_url(servers.redis_url) as redis:
            assert await redis.ping()
        group.cancel_scope.cancel()


async def test_stopped_server_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "STOPPED_LIMIT_S", 0.2)
    monkeypatch.setattr(server_process, "_WATCH_S", 0.1)
    async with embedded_servers(home) as servers, anyio.create_task_group() as group:
        group.start_soon(servers.keep)
        old_pid = servers.pids["postgres"]
        os.kill(old_pid, signal.SIGSTOP)
        await until_restarted(servers, "postgres", old_pid)
        assert await read_one(servers, "SELECT 1") == 1
        group.cancel_scope.cancel()


async def test_left_over_server_that_is_stopped_is_cleared(home: Path) -> None:
    launcher = launch(home)
    old = pids_of(launcher)
    end(launcher)
    os.kill(old["postgres"], signal.SIGSTOP)
    async with embedded_servers(home) as servers:
        assert servers.pids["postgres"] != old["postgres"]
        assert servers.pids["valkey"] == old["valkey"]
        assert await read_one(servers, "SELECT 1") == 1


async def test_stale_pid_files_that_name_a_living_stranger_are_ignored(home: Path) -> None:
    async with embedded_servers(home, ["postgres"]) as servers:
        assert servers.postgres is not None
        data, sockets = servers.postgres.folder, servers.postgres.socket_folder
        port = servers.postgres.port
    stranger = f"{os.getpid()}\n{data}\n1\n{port}\n"
    (data / "postmaster.pid").write_text(stranger)
    (sockets / f".s.PGSQL.{port}").touch()
    (sockets / f".s.PGSQL.{port}.lock").write_text(stranger)
    async with embedded_servers(home, ["postgres"]) as servers:
        assert await read_one(servers, "SELECT 1") == 1


async def test_first_start_that_was_interrupted_is_begun_again(home: Path) -> None:
    (home / "postgres" / "new").mkdir(parents=True)
    (home / "postgres" / "new" / "half").touch()
    async with embedded_servers(home, ["postgres"]) as servers:
        assert await read_one(servers, "SELECT 1") == 1


async def test_other_major_is_refused_with_the_fix(home: Path) -> None:
    async with embedded_servers(home, ["postgres"]) as servers:
        assert servers.postgres is not None
        version = servers.postgres.folder / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(WrongMajorError, match=r"PostgreSQL 17.*XNAI_DATA_DIR"):
        await EmbeddedServers(home, ["postgres"]).start()


async def test_port_that_was_taken_meanwhile_is_replaced_for_good(home: Path) -> None:
    async with embedded_servers(home) as servers:
        old = servers.database_url, servers.redis_url
    state = embedded_state.load_or_create(home)
    with (
        socket.create_server(("127.0.0.1", state.postgres_port)),
        socket.create_server(("127.0.0.1", state.valkey_port)),
    ):
        async with embedded_servers(home) as servers:
            new = servers.database_url, servers.redis_url
            assert set(new).isdisjoint(old)
            assert await read_one(servers, "SELECT 1") == 1
    async with embedded_servers(home) as servers:
        assert (servers.database_url, servers.redis_url) == new


async def test_port_taken_during_a_restart_is_waited_for_and_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "PORT_WAIT_S", 0.1)
    servers = EmbeddedServers(home, ["valkey"])
    assert servers.valkey is not None
    process = server_process.ServerProcess(servers.valkey, home)
    with socket.create_server(("127.0.0.1", servers.valkey.port)):
        lock = await process._clear()
        with pytest.raises(PortInUseError, match=f"{servers.valkey.port}.*restart xnai"):
            await process._wait_port(lock)


async def test_damaged_append_only_file_is_put_aside(home: Path) -> None:
    async with embedded_servers(home, ["valkey"]) as servers:
        assert servers.redis_url is not None
        async with Redis.from_url(servers.redis_url) as redis:
            await redis.set("a", "b")
    log = next((home / "valkey" / "appendonlydir").glob("*.incr.aof"))
    log.write_bytes(b"no append only file\r\n" * 10)
    async with embedded_servers(home, ["valkey"]) as servers:
        assert servers.redis_url is not None
        async with Redis.from_url(servers.redis_url) as redis:
            assert await redis.get("a") is None
    assert list((home / "valkey").glob("damaged-*"))


async def test_path_too_long_for_a_socket_gets_a_short_one(home: Path) -> None:
    deep = home / ("deep" * 20) / ("deeper" * 10)
    deep.mkdir(parents=True)
    async with embedded_servers(deep, ["postgres"]) as servers:
        assert servers.postgres is not None
        assert len(str(servers.postgres.socket_folder)) < 60
        socket_path = servers.postgres.socket_folder / f".s.PGSQL.{servers.postgres.port}"
        assert socket_path.is_socket()
        folder = servers.postgres.socket_folder
    shutil.rmtree(folder)


async def test_lost_passwords_are_named_not_guessed(home: Path) -> None:
    launcher = launch(home)
    pids_of(launcher)
    end(launcher)
    state = embedded_state.load_or_create(home)
    embedded_state.save(home, replace(state, postgres_admin_password="lost"))
    with pytest.raises(EmbeddedServerError, match=r"embedded\.json"):
        await EmbeddedServers(home).start()


async def test_program_that_cannot_start_is_explained_by_its_log(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.embedded_valkey.DATABASES", -1)
    with pytest.raises(EmbeddedServerError, match=r"valkey did not start.*valkey\.log"):
        await EmbeddedServers(home, ["valkey"]).start()


@needs_root
async def test_root_drops_to_a_user_without_any_capability(home: Path) -> None:
    async with embedded_servers(home) as servers:
        for pid in servers.pids.values():
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if ":\t" in line
            )
            assert set(status["Uid"].split()) == {str(unprivileged.SERVER_UID)}
            assert set(status["Gid"].split()) == {str(unprivileged.SERVER_UID)}
            assert status["Groups"].split() == []
            assert int(status["CapEff"], 16) == int(status["CapAmb"], 16) == 0


@needs_root
async def test_data_below_a_folder_only_root_can_enter(locked_parents: Path) -> None:
    data_dir = locked_parents / "data"
    async with embedded_servers(data_dir) as servers:
        await read_one(servers, "CREATE TABLE kept AS SELECT 42 AS n")
    async with embedded_servers(data_dir) as servers:
        assert await read_one(servers, "SELECT n FROM kept") == 42
    assert stat.S_IMODE(locked_parents.stat().st_mode) == 0o700
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700


@needs_root
def test_binaries_below_a_folder_only_root_can_enter_are_copied(
    locked_parents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (locked_parents / "wheel").mkdir()
    program = locked_parents / "wheel" / "true"
    shutil.copy("/bin/true", program)
    shared = locked_parents.parent
    shared.chmod(0o755)
    monkeypatch.setattr(unprivileged, "_shared_folders", lambda: iter([shared]))
    identity = unprivileged.Identity(unprivileged.SERVER_UID, unprivileged.SERVER_UID)
    tree = unprivileged.readable_tree(locked_parents, ("wheel",), "wheel/true", identity)
    assert tree.parent == shared
    done = subprocess.run([tree / "wheel" / "true"], check=False, **identity.popen())
    assert done.returncode == 0
    unprivileged.readable_tree.cache_clear()
    assert unprivileged.readable_tree(locked_parents, ("wheel",), "wheel/true", identity) == tree


@needs_root
@pytest.mark.parametrize("size", ["1m", "20m"])
async def test_full_disk_is_one_typed_error(home: Path, size: str) -> None:
    small = home / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs mount namespaces")
    try:
        with pytest.raises(DiskFullError, match="free some"):
            await EmbeddedServers(small / "data").start()
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def test_file_in_place_of_the_data_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match="XNAI_DATA_DIR"):
        EmbeddedServers(tmp_path / "file" / "data")
