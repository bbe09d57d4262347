"""The proxy carries bytes both ways, holds them while it is cut, and ends what its target ended."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from chaos.proxy import Proxy

pytestmark = pytest.mark.anyio
TIMEOUT_S = 10.0


@asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    """Answers every piece with itself, until it is told `end`."""

    async def answer(stream: SocketStream) -> None:
        async with stream:
            async for piece in stream:
                if piece == b"end":
                    return
                await stream.send(piece)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, answer)
        yield int(listener.extra(SocketAttribute.local_port))  # noqa: S610 - not Django
        group.cancel_scope.cancel()


@asynccontextmanager
async def proxied(port: int) -> AsyncIterator[Proxy]:
    async with anyio.create_task_group() as group:
        proxy = Proxy(lambda: ("127.0.0.1", port))
        await group.start(proxy.run)
        with anyio.fail_after(TIMEOUT_S):
            yield proxy
        group.cancel_scope.cancel()


async def test_bytes_go_both_ways() -> None:
    async with (
        echo_server() as port,
        proxied(port) as proxy,
        await anyio.connect_tcp("127.0.0.1", proxy.port) as client,
    ):
        await client.send(b"hello")
        assert await client.receive() == b"hello"


async def test_cut_line_holds_bytes_and_heals_without_loss() -> None:
    async with (
        echo_server() as port,
        proxied(port) as proxy,
        await anyio.connect_tcp("127.0.0.1", proxy.port) as client,
    ):
        await client.send(b"before")
        assert await client.receive() == b"before"
        proxy.line.cut()
        await client.send(b"meanwhile")
        with anyio.move_on_after(0.1) as silence:
            await client.receive()
        assert silence.cancelled_caught
        assert proxy.line.is_cut
        proxy.line.heal()
        assert await client.receive() == b"meanwhile"


async def test_connection_made_while_cut_is_served_when_healed() -> None:
    async with echo_server() as port, proxied(port) as proxy:
        proxy.line.cut()
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
            await client.send(b"late")
            proxy.line.heal()
            assert await client.receive() == b"late"


async def test_slow_line_takes_at_least_its_delay() -> None:
    async with (
        echo_server() as port,
        proxied(port) as proxy,
        await anyio.connect_tcp("127.0.0.1", proxy.port) as client,
    ):
        await client.send(b"fast")
        assert await client.receive() == b"fast"
        proxy.line.delay_s = 0.1
        began = anyio.current_time()
        await client.send(b"slow")
        assert await client.receive() == b"slow"
        assert anyio.current_time() - began >= 0.2


async def test_end_of_the_server_ends_the_client() -> None:
    async with (
        echo_server() as port,
        proxied(port) as proxy,
        await anyio.connect_tcp("127.0.0.1", proxy.port) as client,
    ):
        await client.send(b"end")
        with pytest.raises(anyio.EndOfStream):
            await client.receive()


async def test_dead_target_ends_the_client() -> None:
    async with (
        proxied(1) as proxy,
        await anyio.connect_tcp("127.0.0.1", proxy.port) as client,
    ):
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await client.receive()
