"""One delivery's request: its body, its signature, and what came of it. Knows no database.

Redirects are not followed, and a few kilobytes of the answer are read, undecoded: no receiver leads
a delivery elsewhere, fills the memory, or holds it longer than the time-out. Once its head has come
the receiver has decided: a body that drips or never ends changes nothing.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ipaddress import ip_address
from itertools import islice

import anyio
import httpcore
import httpx
import orjson

from jobs.model import JsonObject
from runtime.egress import EgressDenied
from webhooks.model import Answer, Owed
from webhooks.sign import headers as signed_headers
from webhooks.wire import Wire, note_addresses

TIMEOUT_S = 15.0
BODY_WITHIN_S = 2.0
BODY_PARTS_MAX = 64
BODY_READ_MAX = 16 * 1024
BODY_KEPT_MAX = 4 * 1024
HEADERS_KEPT_MAX = 40
HEADER_KEPT_MAX = 500
RETRY_AFTER_MAX_S = 86_400.0
USER_AGENT = "xnai-webhooks/1"

BLOCKED = "blocked"
PATHS = {"job": "/v1/jobs/", "batch": "/v1/batches/", "document": "/v1/documents/"}


@dataclass(frozen=True, slots=True)
class _Told:
    """The receiver's part of an answer."""

    address: str | None = None
    status: int | None = None
    headers: Mapping[str, str] | None = None
    body: str | None = None
    error_type: str | None = None
    error_detail: str | None = None
    retry_after_s: float | None = None


def body_of(owed: Owed) -> bytes:
    """`{type, timestamp, data}`, the same bytes for every attempt of a delivery."""
    occurred_at = owed.occurred_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    data = {"links": _links(owed.type, owed.data), **owed.data}
    return orjson.dumps({"type": owed.type, "timestamp": occurred_at, "data": data})


def _links(type_: str, data: JsonObject) -> dict[str, str]:
    """Where the receiver reads the present state of what the body only names."""
    subject, _, verb = type_.partition(".")
    named = {
        name: data.get(f"{name}_id") or (data.get("id") if subject == name else None)
        for name in PATHS
        if not (name == subject and verb == "removed")
    }
    return {name: f"{PATHS[name]}{id_}" for name, id_ in named.items() if id_ is not None}


async def send(wire: Wire, owed: Owed, *, now: datetime) -> Answer:
    """Send one signed request and tell what came of it; raises nothing that a receiver can
    cause.
    """
    body = body_of(owed)
    headers = {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": USER_AGENT,
        **signed_headers(owed.secrets, str(owed.id), now, body),
    }
    started = time.perf_counter()
    told = await _told(wire, owed.url, headers, body, now=now)
    return Answer(
        started_at=now,
        duration_s=time.perf_counter() - started,
        request_headers=headers,
        request_body=body.decode(),
        address=told.address,
        status=told.status,
        response_headers=told.headers,
        response_body=told.body,
        error_type=told.error_type,
        error_detail=told.error_detail,
        retry_after_s=told.retry_after_s,
    )


async def _told(
    wire: Wire, url: str, headers: dict[str, str], body: bytes, *, now: datetime
) -> _Told:
    async with note_addresses() as addresses:
        try:
            with anyio.fail_after(TIMEOUT_S):
                return await _exchange(wire, url, headers, body, now=now)
        except EgressDenied as error:
            # Not where the name leads: that would make a resolver of the inner network.
            return _Told(error_type=BLOCKED, error_detail=str(error))
        except _FAILURES as error:
            error_type, detail = _explain(error)
            address = addresses[0] if addresses else _literal(url)
            return _Told(address=address, error_type=error_type, error_detail=_clean(detail))


_FAILURES = (
    TimeoutError,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    # TLS that breaks after the handshake comes as it is; a URL that is none as one of the two.
    OSError,
    httpx.InvalidURL,
    ValueError,
)


def _explain(error: Exception) -> tuple[str, str]:
    """The word for a failure in the log, and what it was."""
    match error:
        case TimeoutError() | httpcore.TimeoutException():
            return "timeout", f"no answer within {TIMEOUT_S:g} s"
        case httpcore.ConnectError():
            return "unreachable", str(error)
        case OSError() | httpcore.NetworkError() | httpcore.ProtocolError():
            return "protocol", f"{type(error).__name__}: {error}"
        case _:
            return "bad_url", str(error)


async def _exchange(
    wire: Wire, url: str, headers: dict[str, str], body: bytes, *, now: datetime
) -> _Told:
    async with wire.post(url, headers, body, timeout_s=TIMEOUT_S) as response:
        # Before the body: a connection that has been closed knows its peer no more.
        address = _address(response)
        read = await _read(response)
    told = dict(_texts(response))
    error_type, detail = _judge(response.status)
    return _Told(
        address=address,
        status=response.status,
        headers=_kept_headers(response),
        body=_clean(read[:BODY_KEPT_MAX].decode("utf-8", "replace")),
        error_type=error_type,
        error_detail=detail,
        retry_after_s=retry_after_s(told.get("retry-after"), now),
    )


async def _read(response: httpcore.Response) -> bytes:
    """The beginning of the body, as it came; what is left is dropped with the connection."""
    read = bytearray()
    with anyio.move_on_after(BODY_WITHIN_S):
        try:
            parts = 0
            async for part in response.aiter_stream():
                read += part[: BODY_READ_MAX - len(read)]
                parts += 1
                if len(read) >= BODY_READ_MAX or parts == BODY_PARTS_MAX:
                    break
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
            pass  # the head has come: its status stands
    return bytes(read)


def _judge(status: int) -> tuple[str | None, str | None]:
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return None, None
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return "redirected", f"answered {status}; redirects are not followed: give the final URL"
    return "refused", f"answered {status}"


def _address(response: httpcore.Response) -> str | None:
    """The address that was really connected to, after the guard had judged it."""
    stream = response.extensions.get("network_stream")
    address = stream.get_extra_info("server_addr") if stream is not None else None
    return None if address is None else f"{ip_address(address[0])}"


def _literal(url: str) -> str | None:
    """The address of a URL that is written with one."""
    try:
        return f"{ip_address(httpx.URL(url).host)}"
    except (httpx.InvalidURL, ValueError):
        return None


def _texts(response: httpcore.Response) -> Iterator[tuple[str, str]]:
    for name, value in response.headers:
        yield name.decode("latin-1").lower(), value.decode("latin-1")


def _kept_headers(response: httpcore.Response) -> dict[str, str]:
    items = islice(_texts(response), HEADERS_KEPT_MAX)
    return {_clean(name): _clean(value[:HEADER_KEPT_MAX]) for name, value in items}


def _clean(text: str) -> str:
    """Postgres keeps no U+0000, and UTF-8 knows no lone surrogate."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Read `Retry-After`, seconds or a date (RFC 9110 §10.2.3), at most a day; None when
    unreadable.
    """
    if value is None:
        return None
    try:
        if value.isascii() and value.isdigit():
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value).astimezone(UTC) - now).total_seconds()
    except (ValueError, OverflowError):
        return None
    return (
        min(max(0.0, seconds), RETRY_AFTER_MAX_S) if math.isfinite(seconds) else RETRY_AFTER_MAX_S
    )
