"""The receiver of a run's webhooks: a loopback HTTP server that notes what it is told, by whom."""

from collections.abc import Iterable
from datetime import UTC, datetime
from uuid import UUID

import anyio
import orjson
from anyio.abc import SocketAttribute, SocketStream, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from chaos.history import ReceivedWebhook
from webhooks.errors import BadSignature
from webhooks.sign import ID_HEADER, Secret, verify

HEAD_BYTES_MAX = 16_384
BODY_BYTES_MAX = 4 * 1024 * 1024
IDLE_S = 30.0
_END = b"\r\n\r\n"
# Every so often it is out of order, so that deliveries are tried again.
REFUSES_EACH = 40
_OK = b"HTTP/1.1 204 No Content\r\n\r\n"
_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
_GONE = (
    anyio.EndOfStream,
    anyio.IncompleteRead,
    anyio.DelimiterNotFound,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    OSError,
)


class Receiver:
    """Serves while `run` runs; `received` grows."""

    def __init__(self) -> None:
        self.url = ""
        self.secrets: tuple[Secret, ...] = ()
        self.received: list[ReceivedWebhook] = []
        self._requests = 0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `url` is known once it is started."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - not Django
        self.url = f"http://127.0.0.1:{port}"
        async with listener:
            task_status.started()
            await listener.serve(self._serve)

    async def _serve(self, client: SocketStream) -> None:
        async with client:
            requests = BufferedByteReceiveStream(client)
            try:
                with anyio.move_on_after(IDLE_S) as idle:
                    while True:
                        answer = await self._answer(requests)
                        await client.send(answer)
                        idle.deadline = anyio.current_time() + IDLE_S
            except _GONE:
                return

    async def _answer(self, requests: BufferedByteReceiveStream) -> bytes:
        head = (await requests.receive_until(_END, HEAD_BYTES_MAX)).decode("latin-1").split("\r\n")
        headers = dict(_fields(head[1:]))
        length = min(int(headers.get("content-length", "0")), BODY_BYTES_MAX)
        body = await requests.receive_exactly(length) if length else b""
        self._requests += 1
        if self._requests % REFUSES_EACH == 0:
            return _UNAVAILABLE
        self._note(headers, body)
        return _OK

    def _note(self, headers: dict[str, str], body: bytes) -> None:
        told = orjson.loads(body)
        data = told["data"]
        subject = data.get("id") or data.get("job_id") or data.get("batch_id")
        self.received.append(
            ReceivedWebhook(
                webhook_id=UUID(headers[ID_HEADER]),
                type=told["type"],
                subject=UUID(subject) if subject else None,
                is_signed=self._is_signed(headers, body),
            )
        )

    def _is_signed(self, headers: dict[str, str], body: bytes) -> bool:
        try:
            verify(self.secrets, headers, body, now=datetime.now(UTC))
        except BadSignature:
            return False
        return True


def _fields(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        yield name.strip().lower(), value.strip()
