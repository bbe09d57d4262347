"""The one guard of everything that leaves this machine: crawls and webhooks reach out through it.

A literal is judged when a job is submitted, a name when it is fetched: resolved once, every address
judged, and exactly those addresses connected to, so that DNS cannot answer twice (rebinding).
"""

import ssl
from collections.abc import AsyncIterator, Iterable
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import override

import anyio
import httpcore
import httpx

from runtime import metrics
from runtime.addresses import Address
from runtime.egress_policy import EgressPolicy
from runtime.egress_target import EgressDenied, Target, parse_target

__all__ = [
    "EgressDenied",
    "EgressPolicy",
    "GuardedTransport",
    "Target",
    "guarded_client",
    "parse_target",
    "tls_context",
]

# A name with a hundred dead addresses must not hold a connection slot for a hundred timeouts.
_ADDRESSES_TRIED = 4
# Of a caller who sets no limit himself: a name whose servers hang must not hold him for ever.
_CONNECT_WITHIN_S = 30.0


def guarded_client(
    policy: EgressPolicy,
    *,
    timeout: httpx.Timeout,
    limits: httpx.Limits | None = None,
    headers: dict[str, str] | None = None,
    verify: ssl.SSLContext | None = None,
) -> httpx.AsyncClient:
    """Open a client that reaches nothing but what the policy permits, on every hop.

    It takes no proxy from the environment, keeps no cookies and follows no redirect by itself.
    """
    transport = GuardedTransport(policy, limits or httpx.Limits(), verify)
    return httpx.AsyncClient(
        transport=transport,
        timeout=timeout,
        headers=headers,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        trust_env=False,
    )


@cache
def tls_context() -> ssl.SSLContext:
    """What every guarded connection verifies servers by.

    One for all: reading the authorities takes as long as a hundred small requests.
    """
    return httpx.create_ssl_context(trust_env=False)


class GuardedTransport(httpx.AsyncBaseTransport):
    """An httpx transport on httpcore's pool, whose every connection goes through the guard."""

    def __init__(
        self, policy: EgressPolicy, limits: httpx.Limits, verify: ssl.SSLContext | None = None
    ) -> None:
        self._policy = policy
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=verify or tls_context(),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=GuardedBackend(policy),
        )

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._handle(request)
        except EgressDenied:
            metrics.EGRESS_REFUSALS.inc()
            raise

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        self._policy.check_literal(str(request.url))
        url = request.url
        inner = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            response = await self._pool.handle_async_request(inner)
        except _CORE_ERRORS as error:
            raise _as_httpx(error, request) from error
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_GuardedStream(response, request),
            extensions=response.extensions,
        )

    @override
    async def aclose(self) -> None:
        await self._pool.aclose()


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to an address that the policy just judged; TLS and Host keep the name."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy
        self._inner = httpcore.AnyIOBackend()

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        timeout = _CONNECT_WITHIN_S if timeout is None else timeout
        try:
            with anyio.fail_after(timeout):
                addresses = await self._policy.resolve(host, port)
                return await self._connect_first(addresses, port, timeout, socket_options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"no connection to {host}:{port}") from error
        except OSError as error:
            raise httpcore.ConnectError(f"{host} does not resolve: {error}") from error

    async def _connect_first(
        self,
        addresses: list[Address],
        port: int,
        timeout_s: float,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        """Try the addresses in the resolver's order; the last one's error is the answer."""
        tried = addresses[:_ADDRESSES_TRIED]
        share_s = timeout_s / len(tried)
        options = list(socket_options or ())
        for address in tried[:-1]:
            try:
                return await self._inner.connect_tcp(
                    str(address), port, share_s, socket_options=options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(str(tried[-1]), port, share_s, socket_options=options)

    @override
    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise EgressDenied("scheme", f"{path} is a socket of this machine")

    @override
    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _GuardedStream(httpx.AsyncByteStream):
    """The body of a response, with httpcore's errors told as httpx's."""

    def __init__(self, response: httpcore.Response, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._response.aiter_stream():
                yield part
        except _CORE_ERRORS as error:
            raise _as_httpx(error, self._request) from error

    @override
    async def aclose(self) -> None:
        await self._response.aclose()


_CORE_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


def _as_httpx(error: Exception, request: httpx.Request) -> httpx.TransportError:
    """Translate by name: httpx declares every one of these errors under httpcore's name."""
    kind: type[httpx.TransportError] = getattr(httpx, type(error).__name__, httpx.TransportError)
    return kind(str(error) or type(error).__name__, request=request)
