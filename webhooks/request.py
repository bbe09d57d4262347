"""One delivery's request: its body, its signature, and what came of it. Knows no database.

Redirects are not followed, and a few kilobytes of the answer are read, undecoded: no receiver leads
a delivery elsewhere, fills the memory, or holds it longer than the time-out.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address

import anyio
import httpx
import orjson

from jobs.model import JsonObject
from runtime.egress import EgressDenied
from webhooks.model import Answer, Owed
from webhooks.sign import headers as signed_headers

TIMEOUT_S = 15.0
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


async def send(client: httpx.AsyncClient, owed: Owed, *, now: datetime) -> Answer:
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
    told = await _told(client, owed.url, headers, body, now=now)
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
    client: httpx.AsyncClient, url: str, headers: dict[str, str], body: bytes, *, now: datetime
) -> _Told:
    try:
        with anyio.fail_after(TIMEOUT_S):
            return await _exchange(client, url, headers, body, now=now)
    except EgressDenied as error:
        return _Told(error_type=BLOCKED, error_detail=str(error))
    except (TimeoutError, httpx.TimeoutException):
        return _Told(error_type="timeout", error_detail=f"no answer within {TIMEOUT_S:g} s")
    except httpx.ConnectError as error:
        return _Told(error_type="unreachable", error_detail=_clean(str(error)))
    except httpx.HTTPError as error:
        return _Told(error_type="protocol", error_detail=_clean(f"{type(error).__name__}: {error}"))
    except (httpx.InvalidURL, ValueError) as error:
        return _Told(error_type="bad_url", error_detail=_clean(str(error)))


async def _exchange(
    client: httpx.AsyncClient, url: str, headers: dict[str, str], body: bytes, *, now: datetime
) -> _Told:
    async with client.stream("POST", url, headers=headers, content=body) as response:
        # Before the body: a connection that has been closed knows its peer no more.
        address = _address(response)
        read = await _read(response)
    error_type, detail = _judge(response)
    return _Told(
        address=address,
        status=response.status_code,
        headers=_kept_headers(response),
        body=_clean(read[:BODY_KEPT_MAX].decode("utf-8", "replace")),
        error_type=error_type,
        error_detail=detail,
        retry_after_s=retry_after_s(response.headers.get("retry-after"), now),
    )


async def _read(response: httpx.Response) -> bytes:
    """The beginning of the body, as it came; what is left is dropped with the connection."""
    read = bytearray()
    async for part in response.aiter_raw():
        read += part[: BODY_READ_MAX - len(read)]
        if len(read) >= BODY_READ_MAX:
            break
    return bytes(read)


def _judge(response: httpx.Response) -> tuple[str | None, str | None]:
    status = response.status_code
    if response.is_success:
        return None, None
    if response.is_redirect:
        return "redirected", f"answered {status}; redirects are not followed: give the final URL"
    return "refused", f"answered {status}"


def _address(response: httpx.Response) -> str | None:
    """The address that was really connected to, after the guard had judged it."""
    stream = response.extensions.get("network_stream")
    address = stream.get_extra_info("server_addr") if stream is not None else None
    return None if address is None else f"{ip_address(address[0])}"


def _kept_headers(response: httpx.Response) -> dict[str, str]:
    items = list(response.headers.items())[:HEADERS_KEPT_MAX]
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
