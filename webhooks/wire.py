"""The connections of deliveries: behind the egress guard, and bounded in bytes.

A receiver may answer with anything. What is read of one answer is limited here, below HTTP, so that
no head without an end and no flood of interim answers keeps the parser busy.
"""

import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, override

import anyio
import anyio.lowlevel
import httpcore
import httpx

from runtime import metrics
from runtime.egress import EgressDenied, EgressPolicy, GuardedBackend, tls_context
from runtime.egress_policy import Resolver
from webhooks.lanes import TOTAL

# A head of an HTTP answer has some hundred bytes; four times the body that is read leaves room.
ANSWER_BYTES_MAX = 64 * 1024
# Little at a time: whatever it holds is parsed before anybody else has a turn.
_READ_BYTES = 4096
KEPT_ALIVE = 16
KEPT_ALIVE_S = 5.0

_resolved: ContextVar[list[str] | None] = ContextVar("resolved", default=None)


class Wire:
    """Sends requests to what the policy permits. Close it in the end."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = replace(policy, resolver=_noted(policy))
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls_context(),
            max_connections=TOTAL,
            max_keepalive_connections=KEPT_ALIVE,
            keepalive_expiry=KEPT_ALIVE_S,
            network_backend=_BoundedBackend(GuardedBackend(self._policy)),
        )

    @asynccontextmanager
    async def of(self, entries: Sequence[str]) -> AsyncIterator["Wire"]:
        """Itself, or one for a tenant that may reach more: a connection that is kept open would
        otherwise lead the next tenant where only this one may go.
        """
        if not entries:
            yield self
            return
        own = Wire(self._policy.plus(entries))
        try:
            yield own
        finally:
            with anyio.CancelScope(shield=True):
                await own.aclose()

    async def aclose(self) -> None:
        """Close what is still open."""
        await self._pool.aclose()

    @asynccontextmanager
    async def post(
        self, url: str, headers: dict[str, str], body: bytes, *, timeout_s: float
    ) -> AsyncIterator[httpcore.Response]:
        """Post, and answer with the head; the body is read in the block, or dropped.

        Raises EgressDenied, httpcore's errors, OSError of TLS, and ValueError for a bad URL.
        """
        try:
            self._policy.check_literal(url)
            limits = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
            async with self._pool.stream(
                "POST",
                _url(url),
                headers=list(headers.items()),
                content=body,
                extensions={"timeout": limits},
            ) as response:
                yield response
        except EgressDenied:
            metrics.EGRESS_REFUSALS.inc()
            raise


@asynccontextmanager
async def note_addresses() -> AsyncIterator[list[str]]:
    """The addresses to which names are resolved in the block, in the resolver's order."""
    found: list[str] = []
    token = _resolved.set(found)
    try:
        yield found
    finally:
        _resolved.reset(token)


def _noted(policy: EgressPolicy) -> Resolver:
    async def resolve(host: str, port: int) -> Sequence[str]:
        answers = await policy.resolver(host, port)
        if (found := _resolved.get()) is not None:
            found[:] = answers
        return answers

    return resolve


def _url(url: str) -> httpcore.URL:
    parsed = httpx.URL(url)
    return httpcore.URL(
        scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path
    )


class _BoundedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections as the guard does, and counts what they bring."""

    def __init__(self, inner: GuardedBackend) -> None:
        self._inner = inner

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _BoundedStream(stream)

    @override
    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return await self._inner.connect_unix_socket(path, timeout, socket_options)

    @override
    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class _BoundedStream(httpcore.AsyncNetworkStream):
    """Reads little at a time, and no more than a bound after each request."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._left = ANSWER_BYTES_MAX

    @override
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        # A receiver that sends faster than we read never makes us wait: let the others run.
        await anyio.lowlevel.checkpoint()
        if self._left <= 0:
            message = f"the answer is longer than {ANSWER_BYTES_MAX} bytes"
            raise httpcore.RemoteProtocolError(message)
        data = await self._inner.read(min(max_bytes, _READ_BYTES, self._left), timeout)
        self._left -= len(data)
        return data

    @override
    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._left = ANSWER_BYTES_MAX
        await self._inner.write(buffer, timeout)

    @override
    async def aclose(self) -> None:
        await self._inner.aclose()

    @override
    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        return _BoundedStream(stream)

    @override
    def get_extra_info(self, info: str) -> Any:  # httpcore's own signature
        return self._inner.get_extra_info(info)
