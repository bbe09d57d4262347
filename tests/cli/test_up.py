"""`xnai up` as a supervisor: it starts, restarts, drains, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from runtime.embedded import EmbeddedServers
from runtime.embedded_state import free_port
from runtime.stack import LocalStack, read_stack
from tests.support.stack import wait_until

pytestmark = [pytest.mark.crash]
ROOT = Path(__file__).parents[2]
DEADLINE_S = 40.0


class Stack:
    """An `xnai up` with small roles, in a process of its own."""

    def __init__(self, data_dir: Path, roles: tuple[str, ...], environment: dict[str, str]) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.run_up", *roles],
            cwd=ROOT,
            env={
                **os.environ,
                "XNAI_DATA_DIR": str(data_dir),
                "XNAI_PORT": str(self.port),
                "XNAI_GRACE_S": "0",
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> LocalStack:
        wait_until(
            lambda: self.process.poll() is not None or read_stack(self.data_dir) is not None,
            timeout_s=DEADLINE_S,
            what="the stack to be up or to end",
        )
        found = read_stack(self.data_dir)
        assert found is not None, self.end()
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.process.communicate(timeout=DEADLINE_S)[1]

    def role_pid(self, role: str) -> int:
        return int((self.data_dir / f"{role}.pid").read_text() or 0)


@contextmanager
def stack(data_dir: Path, *roles: str, **environment: str) -> Iterator[Stack]:
    running = Stack(data_dir, roles, environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()
        anyio.run(EmbeddedServers(data_dir).stop_left_over)


@pytest.fixture
def urls(database_url: str, redis_url: str) -> dict[str, str]:
    """Servers of the session, so that only the tests about embedded ones start their own."""
    return {"XNAI_DATABASE_URL": database_url, "XNAI_REDIS_URL": redis_url}


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_whole_life_on_embedded_servers(data_dir: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service_manager,
        stack(data_dir, "serve", "idle", NOTIFY_SOCKET=_listen(service_manager)) as running,
    ):
        found = running.ready()
        assert service_manager.recv(64) == b"READY=1"
        assert found.api_url == f"http://127.0.0.1:{running.port}"
        assert set(found.pids) == {"serve", "idle"}
        servers = EmbeddedServers(data_dir)
        assert found.database_url == servers.database_url
        said = running.end(signal.SIGINT)
        assert running.process.returncode == 0, said
        assert all(is_gone(pid) for pid in found.pids.values())
        assert read_stack(data_dir) is None
        assert "Traceback" not in said


def _listen(service_manager: socket.socket) -> str:
    service_manager.bind("")
    service_manager.settimeout(DEADLINE_S)
    return f"@{service_manager.getsockname()[1:].decode()}"


def test_dead_role_is_restarted(data_dir: Path, urls: dict[str, str]) -> None:
    with stack(data_dir, "serve", "idle", **urls) as running:
        old = running.ready().pids["idle"]
        wait_until((data_dir / "idle.pid").exists, timeout_s=DEADLINE_S, what="the idle role")
        (data_dir / "idle.pid").unlink()
        os.kill(old, signal.SIGKILL)
        wait_until((data_dir / "idle.pid").exists, timeout_s=DEADLINE_S, what="the idle role")
        wait_until(
            lambda: running.role_pid("idle") not in (0, old), timeout_s=DEADLINE_S, what="a restart"
        )
        running.end()
        assert running.process.returncode == 0


def test_killed_up_takes_its_roles_with_it(data_dir: Path, urls: dict[str, str]) -> None:
    with stack(data_dir, "serve", "idle", "stubborn", **urls) as running:
        pids = running.ready().pids
        running.process.kill()
        wait_until(
            lambda: all(is_gone(pid) for pid in pids.values()),
            timeout_s=DEADLINE_S,
            what="the end of all",
        )


def test_role_that_ignores_sigterm_is_killed_after_the_grace(
    data_dir: Path, urls: dict[str, str]
) -> None:
    with stack(data_dir, "serve", "stubborn", **urls) as running:
        pids = running.ready().pids
        said = running.end()
        assert running.process.returncode == 0
        assert "process_killed" in said
        assert all(is_gone(pid) for pid in pids.values())


def test_second_up_is_refused_in_one_line_that_names_the_first(
    data_dir: Path, urls: dict[str, str]
) -> None:
    with stack(data_dir, "serve", **urls) as first:
        first.ready()
        second = Stack(data_dir, ("serve",), urls)
        said = second.end(signal.SIGCONT)
        assert second.process.returncode == 1
        (line,) = said.splitlines()
        assert f"as pid {first.process.pid}" in line
        assert "XNAI_DATA_DIR" in line


def test_port_in_use_is_one_line_with_the_fix(data_dir: Path, urls: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with stack(data_dir, "serve", XNAI_PORT=port, **urls) as running:
            said = running.end(signal.SIGCONT)
            assert running.process.returncode == 1
            (line,) = said.splitlines()
            assert port in line
            assert "XNAI_PORT" in line


def test_role_that_cannot_start_ends_the_stack_with_one_line(
    data_dir: Path, urls: dict[str, str]
) -> None:
    with stack(data_dir, "serve", "broken", **{**urls, "XNAI_LOG_LEVEL": "error"}) as running:
        said = running.end(signal.SIGCONT)
        assert running.process.returncode == 1
        (line,) = said.splitlines()
        assert "broken ended before it was ready" in line
        assert is_gone(running.role_pid("serve"))
