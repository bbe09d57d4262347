"""Tells whoever started this process that it serves: the protocol of sd_notify(3).

One datagram `READY=1` to the socket that NOTIFY_SOCKET names; systemd understands it as well
(Type=notify). Nothing else of that protocol is spoken.
"""

import os
import socket
import struct
from contextlib import suppress

import anyio

SOCKET_VARIABLE = "NOTIFY_SOCKET"
_READY = b"READY=1"
_DATAGRAM_BYTES_MAX = 4096
_CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid


class Notifier:
    """A process's side: says once that it is ready, to nobody if nobody asked."""

    def __init__(self, address: str = "") -> None:
        self._address = address

    @classmethod
    def from_environment(cls) -> "Notifier":
        """Take the address out of the environment: children must not speak for their parent."""
        return cls(os.environ.pop(SOCKET_VARIABLE, ""))

    def ready(self) -> None:
        """Say it; whoever asked may be gone by now."""
        if self._address[:1] not in {"/", "@"}:
            return
        # A leading @ stands for the NUL of Linux's abstract addresses, which have no file.
        address = self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
        out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with out, suppress(OSError):
            out.sendto(_READY, address)
        self._address = ""


class ReadinessSocket:
    """The other side: where one child says that it is ready."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # The kernel picks a free abstract address (autobind in unix(7)).
        self._socket.bind("")
        self.address = self._socket.getsockname().replace(b"\0", b"@", 1).decode("ascii")

    async def wait(self, pid: int) -> None:
        """Return when this process has said that it is ready; anybody else may say what he
        likes.
        """
        while True:
            await anyio.wait_readable(self._socket)
            data, extra, _, _ = self._socket.recvmsg(
                _DATAGRAM_BYTES_MAX, socket.CMSG_SPACE(_CREDENTIALS.size)
            )
            senders = [_CREDENTIALS.unpack(content)[0] for _, _, content in extra]
            if senders == [pid] and _READY in data.split(b"\n"):
                return

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
