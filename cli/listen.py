"""`xnai webhooks listen`: a receiver on this machine that registers itself, verifies what it is
sent, prints it, passes it on if asked to, and removes itself in the end.
"""

import json
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Annotated, override

import httpx
import typer

from cli.client import Api, ApiError, ApiNotReachable, Document
from cli.options import settings_of
from cli.output import AsJson, console, errors
from runtime.errors import XnaiError
from webhooks.errors import BadSignature
from webhooks.sign import ID_HEADER, Secret, verify

BODY_MAX = 4 * 1024 * 1024
SOCKET_TIMEOUT_S = 20.0
SECRET_WITHIN_S = 10.0
FORWARD_TIMEOUT_S = 12.0
SEEN_MAX = 10_000
_PASSED_ON = ("content-type", "user-agent", ID_HEADER, "webhook-timestamp", "webhook-signature")


@dataclass(frozen=True, slots=True)
class Received:
    """A delivery: its event if the signature holds, else why it does not."""

    webhook_id: str
    event: Document | None
    refusal: str | None = None
    is_repeat: bool = False
    forwarded: int | None = None


@dataclass(slots=True)
class Desk:
    """What the threads of the receiver share."""

    forward: str | None
    received: SimpleQueue[Received | None] = field(default_factory=SimpleQueue)
    secret: Secret | None = None
    is_registered: threading.Event = field(default_factory=threading.Event)
    _seen: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, headers: dict[str, str], body: bytes) -> HTTPStatus | int:
        """Verify, pass on, note; the status to answer with."""
        webhook_id = headers.get(ID_HEADER, "")
        try:
            event = self._verified(headers, body)
        except (BadSignature, ValueError) as error:
            self.received.put(Received(webhook_id, None, refusal=str(error)))
            return HTTPStatus.BAD_REQUEST
        status = HTTPStatus.NO_CONTENT if self.forward is None else self._pass_on(headers, body)
        forwarded = None if self.forward is None else int(status)
        is_repeat = self._is_repeat(webhook_id)
        self.received.put(Received(webhook_id, event, None, is_repeat, forwarded))
        return status

    def _verified(self, headers: dict[str, str], body: bytes) -> Document:
        # The first delivery may be faster than the answer that brings the secret.
        if not self.is_registered.wait(SECRET_WITHIN_S) or self.secret is None:
            raise BadSignature("the secret is not known yet")
        verify([self.secret], headers, body, now=datetime.now(UTC))
        event: Document = json.loads(body)
        return event

    def _pass_on(self, headers: dict[str, str], body: bytes) -> int:
        kept = {name: headers[name] for name in _PASSED_ON if name in headers}
        try:
            answer = httpx.post(
                self.forward or "",
                content=body,
                headers=kept,
                timeout=FORWARD_TIMEOUT_S,
                trust_env=False,
            )
        except (httpx.HTTPError, httpx.InvalidURL):
            return HTTPStatus.BAD_GATEWAY
        return answer.status_code

    def _is_repeat(self, webhook_id: str) -> bool:
        with self._lock:
            is_repeat = webhook_id in self._seen
            self._seen[webhook_id] = None
            if len(self._seen) > SEEN_MAX:
                self._seen.popitem(last=False)
        return is_repeat


def listen(
    context: typer.Context,
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="To listen on; 0: a free one.")] = 0,
    events: Annotated[
        list[str] | None, typer.Option(help="Only these, e.g. job.failed or batch.*; several.")
    ] = None,
    forward: Annotated[
        str | None, typer.Option(metavar="URL", help="Pass each on, and answer as that does.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="By which the stack reaches this port, if not loopback.")
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="End after so many; 0: never.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Receive events on this machine: verify and print each, until Ctrl-C."""
    desk = Desk(forward)
    wanted = [name for given in events or ["*"] for name in given.split(",") if name]
    with (
        _ending_politely(desk),
        _serving(desk, port) as address,
        Api(settings_of(context)) as api,
        _registered(api, url or address, wanted) as endpoint,
    ):
        desk.secret = Secret.parse(endpoint["secret"])
        desk.is_registered.set()
        errors.print(f"listening on {url or address} for {', '.join(wanted)}; Ctrl-C ends it")
        _print_all(desk, count, as_json=as_json)


def _print_all(desk: Desk, count: int, *, as_json: bool) -> None:
    printed = 0
    while (received := desk.received.get()) is not None:
        if received.event is None:
            errors.print(f"refused {received.webhook_id or 'a request'}: {received.refusal}")
            continue
        _print(received, received.event, as_json=as_json)
        printed += 1
        if printed == count:
            return


def _print(received: Received, event: Document, *, as_json: bool) -> None:
    if as_json:
        line = {
            "webhook_id": received.webhook_id,
            "is_repeat": received.is_repeat,
            "forwarded": received.forwarded,
            **event,
        }
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    links = " ".join(event.get("data", {}).get("links", {}).values())
    notes = " again" if received.is_repeat else ""
    notes += "" if received.forwarded is None else f" → {received.forwarded}"
    console.print(f"{event['timestamp']}  {event['type']}  {links}{notes}", markup=False)


@contextmanager
def _serving(desk: Desk, port: int) -> Iterator[str]:
    """The address of a receiver that runs in threads of its own while the block does."""
    with ThreadingHTTPServer(("127.0.0.1", port), _handler(desk)) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _registered(api: Api, url: str, events: list[str]) -> Iterator[Document]:
    """A webhook that exists while the block runs."""
    body = {"url": url, "events": events, "description": "temporary: xnai webhooks listen"}
    try:
        endpoint = api.post("/v1/webhooks", body)
    except ApiError as error:
        raise _explained(error) from error
    try:
        yield endpoint
    finally:
        try:
            api.send("DELETE", f"/v1/webhooks/{endpoint['id']}")
        except (ApiError, ApiNotReachable) as error:
            fix = f"xnai webhooks delete {endpoint['id']}"
            errors.print(f"the webhook is still registered ({error}): remove it by `{fix}`")


def _explained(error: ApiError) -> XnaiError:
    """The guard's refusal with what to do about it here."""
    if "EGRESS_ALLOW" not in str(error):
        return error
    message = (
        f"{error}. The stack may not reach this machine: add the entry to XNAI_EGRESS_ALLOW "
        "(or egress_allow in xnai.toml) where `xnai up` runs and start it again, or let only your "
        "tenant by `xnai egress allow`; then listen again"
    )
    return XnaiError(message)


@contextmanager
def _ending_politely(desk: Desk) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the printing, so that the webhook is removed."""

    def end(*_: object) -> None:
        desk.received.put(None)

    old = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _handler(desk: Desk) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Takes one delivery a request."""

        protocol_version = "HTTP/1.1"
        timeout = SOCKET_TIMEOUT_S

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > BODY_MAX:
                self.close_connection = True
                self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return
            body = self.rfile.read(int(length))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._answer(desk.take(headers, body))

        def _answer(self, status: HTTPStatus | int) -> None:
            self.send_response(int(status))
            if status != HTTPStatus.NO_CONTENT:
                self.send_header("Content-Length", "0")
            self.end_headers()

        @override
        def log_message(self, format: str, *args: object) -> None:
            """What matters is printed as it is received."""

    return Handler
