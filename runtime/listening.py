"""Listening sockets that outlive who serves them, handed on by the protocol of sd_listen_fds(3).

`xnai up` or a socket unit of systemd holds the socket: whoever connects while the API is restarted
waits in the kernel's queue instead of being refused.
"""

import errno
import os
import socket
from collections.abc import Mapping

from runtime.errors import PortInUseError, XnaiError

# The kernel cuts it to net.core.somaxconn, 4096 by default; beyond it a client's SYN is dropped and
# sent again, not refused.
BACKLOG = 2048
_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_COUNT, _PID, _NAMES = "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"
_HANDED_ON = "HANDED_ON_LISTENER"


def bind(host: str, port: int, *, listens: bool = False) -> socket.socket:
    """Bind a TCP socket, 0 to a free port. Raises PortInUseError or XnaiError in one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        if listens:
            bound.listen(BACKLOG)
        bound.settimeout(0)
    except OSError as error:
        bound.close()
        raise _explained(error, f"{host}:{port}") from error
    return bound


def _explained(error: OSError, place: str) -> XnaiError:
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"the API cannot listen on {place} ({error.strerror}): stop what listens there "
            "(ss -ltnp shows it), or set XNAI_PORT to another port (0 takes a free one)"
        )
    return XnaiError(f"cannot listen on {place} ({error.strerror}): correct XNAI_HOST or XNAI_PORT")


def handing_on(listener: socket.socket) -> Mapping[str, str]:
    """The environment of a child started by `runtime.child` that inherits this descriptor."""
    return {_HANDED_ON: str(listener.fileno())}


def receive() -> None:
    """In the child: put the descriptor where sd_listen_fds(3) wants it, and say for whom it is.

    Only the child can do either: it alone knows its pid, and has nothing else open yet.
    """
    if handed_on := os.environ.pop(_HANDED_ON, ""):
        os.dup2(int(handed_on), _FIRST_DESCRIPTOR)
        if int(handed_on) != _FIRST_DESCRIPTOR:
            os.close(int(handed_on))
        os.environ.update({_COUNT: "1", _PID: str(os.getpid())})


def inherited() -> list[socket.socket]:
    """Take over what the environment hands to this process, and to none that it starts.

    Raises XnaiError for a descriptor that is no listening TCP socket.
    """
    pid, count = os.environ.pop(_PID, ""), os.environ.pop(_COUNT, "")
    os.environ.pop(_NAMES, None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [_adopt(_FIRST_DESCRIPTOR + n) for n in range(int(count))]


def _adopt(descriptor: int) -> socket.socket:
    refusal = XnaiError(
        f"descriptor {descriptor} of LISTEN_FDS is no listening TCP socket: give the socket unit "
        "a port as ListenStream=, and Accept=no"
    )
    try:
        found = socket.socket(fileno=descriptor)
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        raise refusal from None
    if not listens or found.family not in (socket.AF_INET, socket.AF_INET6):
        raise refusal
    found.set_inheritable(False)
    found.settimeout(0)
    return found
