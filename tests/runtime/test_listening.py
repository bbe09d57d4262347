"""Listening sockets as sd_listen_fds(3) hands them on: to one child, at descriptor 3."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import PortInUseError, XnaiError
from runtime.listening import bind, handing_on, inherited

# Answers one connection, and says what it would leave to children of its own.
SERVE = """
import os
from runtime.listening import inherited
(listener,) = inherited()
assert listener.fileno() == 3 and not listener.get_inheritable()
assert not inherited() and not [name for name in os.environ if name.startswith("LISTEN_")]
listener.settimeout(20)
with listener.accept()[0] as client:
    client.sendall(b"served")
"""


def test_who_connects_before_the_child_starts_is_served_by_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "serve_one.py").write_text(SERVE)
    for host in ("127.0.0.1", "::1"):
        with bind(host, 0, listens=True) as listener:
            assert not listener.get_inheritable()
            with socket.create_connection(listener.getsockname()[:2], timeout=20) as client:
                command = [sys.executable, "-m", "runtime.child", str(os.getpid()), "serve_one"]
                path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[2])))
                subprocess.run(
                    command,
                    env={**os.environ, **handing_on(listener), "PYTHONPATH": path},
                    pass_fds=(listener.fileno(),),
                    check=True,
                )
                assert client.recv(64) == b"served"


def test_a_taken_port_is_one_line_with_the_fix() -> None:
    with bind("127.0.0.1", 0, listens=True) as taken:
        with pytest.raises(PortInUseError, match="XNAI_PORT"):
            bind("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(XnaiError, match="correct XNAI_HOST"):
            bind("192.0.2.1", 0)


def test_what_is_meant_for_another_process_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    assert inherited() == []
    assert "LISTEN_FDS" not in os.environ


def test_a_socket_that_does_not_listen_is_refused_with_the_fix() -> None:
    code = "from runtime.listening import receive, inherited; receive(); inherited()"
    # As a socket unit with Accept=yes would pass it.
    passed, other = socket.socketpair()
    with passed, other:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **handing_on(passed)},
            pass_fds=(passed.fileno(),),
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "XnaiError: descriptor 3" in done.stderr
    assert "ListenStream=" in done.stderr
