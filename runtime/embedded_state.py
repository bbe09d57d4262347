"""What the embedded servers of a data directory keep for ever: their passwords and their ports.

One private file, written before the servers are; whoever can read it owns the servers.
"""

import json
import secrets
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from runtime.errors import EmbeddedServerError, PortInUseError
from runtime.files import create_private, explained, write_private

FILE_NAME = "embedded.json"
LOOPBACK = "127.0.0.1"

# Below the ephemeral range of Linux: an outgoing connection never takes the port of a server that
# is just being restarted.
_PORTS = range(20000, 32000)
_PORT_TRIES = 200


@dataclass(frozen=True, slots=True)
class EmbeddedState:
    """Ports and passwords; ports stay the same as long as they are free, so that addresses do."""

    postgres_port: int
    postgres_password: str
    postgres_admin_password: str
    valkey_port: int
    valkey_password: str


def load_or_create(data_dir: Path) -> EmbeddedState:
    """Return the state of this data directory; of two that create it at once, one wins."""
    while (state := load(data_dir)) is None:
        postgres_port, valkey_port = free_port(), free_port()
        state = EmbeddedState(
            postgres_port=postgres_port,
            postgres_password=_password(),
            postgres_admin_password=_password(),
            valkey_port=valkey_port,
            valkey_password=_password(),
        )
        create_private(data_dir / FILE_NAME, _encode(state))
    return state


def load(data_dir: Path) -> EmbeddedState | None:
    """Return the state, or None where no server was ever started."""
    path = data_dir / FILE_NAME
    try:
        with explained(path):
            content = path.read_bytes()
        return EmbeddedState(**json.loads(content))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        message = f"{path} is damaged ({error}): restore it from a backup of the data directory"
        raise EmbeddedServerError(message) from error


def save(data_dir: Path, state: EmbeddedState) -> None:
    """Replace the state on disk."""
    write_private(data_dir / FILE_NAME, _encode(state))


def change_port(data_dir: Path, name: str) -> EmbeddedState:
    """Give the server whose port somebody else has taken another one, for ever."""
    state = load_or_create(data_dir)
    port = free_port()
    changed = (
        replace(state, postgres_port=port)
        if name == "postgres_port"
        else replace(state, valkey_port=port)
    )
    save(data_dir, changed)
    return changed


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port() -> int:
    """Pick a free loopback port at random."""
    for _ in range(_PORT_TRIES):
        port = secrets.choice(_PORTS)
        if is_free(port):
            return port
    message = f"no free port in {_PORTS[0]}–{_PORTS[-1]} on {LOOPBACK}: stop what listens there"
    raise PortInUseError(message)


def _encode(state: EmbeddedState) -> bytes:
    return json.dumps(asdict(state), indent=1).encode() + b"\n"


def _password() -> str:
    return secrets.token_urlsafe(24)
