"""READY=1 as sd_notify(3) says it: heard from the right process, by files and abstract sockets."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from runtime.readiness import SOCKET_VARIABLE, Notifier, ReadinessSocket

pytestmark = pytest.mark.anyio

TELL = "from runtime.readiness import Notifier; Notifier.from_environment().ready()"


async def test_a_child_is_heard_and_a_stranger_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = ReadinessSocket()
    try:
        Notifier(heard.address).ready()
        with anyio.move_on_after(0.05) as waiting:
            await heard.wait(os.getpid() + 1)
        assert waiting.cancelled_caught
        monkeypatch.setenv(SOCKET_VARIABLE, heard.address)
        with subprocess.Popen([sys.executable, "-c", TELL]) as child, anyio.fail_after(20):
            await heard.wait(child.pid)
    finally:
        heard.close()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """AF_UNIX takes 107 bytes, and a test's own folder may have more."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, "notify")


def test_a_path_of_systemd_is_told_and_the_variable_is_gone(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKET_VARIABLE, str(short_path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(short_path))
        notifier = Notifier.from_environment()
        assert SOCKET_VARIABLE not in os.environ
        notifier.ready()
        notifier.ready()
        assert systemd.recv(64) == b"READY=1"
        with pytest.raises(BlockingIOError):
            systemd.recv(64, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/nobody/listens/here", "@xnai-nobody"])
def test_nobody_to_tell_is_no_error(address: str) -> None:
    Notifier(address).ready()
