"""Receivers that harm: each costs its own deliveries and nobody else's; and a killed deliverer."""

import gzip
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from runtime.settings import Settings
from tests.webhooks.conftest import Post, owe_event
from tests.webhooks.receiver import hang, receiver, reply
from webhooks import outbox, request
from webhooks.model import DeliveryState
from webhooks.outbox import LEASE_S

pytestmark = pytest.mark.anyio

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
ROOT = Path(__file__).parents[2]
BOMB = gzip.compress(b"\0" * 10_000_000)
DELIVERED, PENDING = DeliveryState.DELIVERED, DeliveryState.PENDING


def endlessly(start: bytes, part: bytes) -> Callable[[anyio.abc.SocketStream], Awaitable[None]]:
    async def send(stream: anyio.abc.SocketStream) -> None:
        await stream.send(start)
        while True:
            await stream.send(part)

    return send


def dripping(start: bytes) -> Callable[[anyio.abc.SocketStream], Awaitable[None]]:
    async def send(stream: anyio.abc.SocketStream) -> None:
        await stream.send(start)
        while True:
            await stream.send(b"x")
            await anyio.sleep(0.05)

    return send


async def reset(stream: anyio.abc.SocketStream) -> None:
    """Close with RST instead of FIN."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - not Django
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


CHUNKED = b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "state", "error_type"),
    [
        (hang, PENDING, "timeout"),
        (dripping(b"HTTP/1.1 200 OK\r\nX-Drip: "), PENDING, "timeout"),
        # Its head has come: it has accepted, and then some.
        (dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"), DELIVERED, None),
        (endlessly(b"HTTP/1.1 500 X\r\nContent-Length: 10000000000\r\n\r\n", b"x" * 65_536),
         PENDING, "refused"),
        (endlessly(CHUNKED, b"1\r\nx\r\n" * 1000), PENDING, "refused"),
        (endlessly(b"HTTP/1.1 200 OK\r\n", b"X-More: of it\r\n" * 1000), PENDING, "protocol"),
        (endlessly(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000), PENDING, "protocol"),
        (reply(500, BOMB, Content_Encoding="gzip"), PENDING, "refused"),
        (reset, PENDING, "protocol"),
        (reply(302, Location="http://169.254.169.254/"), PENDING, "redirected"),
        (bytes(range(256)) * 100, PENDING, "protocol"),
    ],
    ids=["hang", "drip-head", "drip-body", "10-GB", "chunks", "headers", "1xx", "bomb", "reset",
         "redirect", "garbage"],
)  # fmt: skip
async def test_a_hostile_answer_is_bounded_and_logged(
    post: Post,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes | Callable[[anyio.abc.SocketStream], Awaitable[None]],
    state: DeliveryState,
    error_type: str | None,
) -> None:
    monkeypatch.setattr(request, "TIMEOUT_S", 0.4)
    monkeypatch.setattr(request, "BODY_WITHIN_S", 0.1)
    async with receiver(answer) as there:
        delivery_id = await post.owe(there.url, now=NOON)
        with anyio.fail_after(20):
            assert await post.deliverer.deliver_due(NOON) == 1
    delivery, (line,) = await post.get(delivery_id)
    assert (delivery.state, line.answer.error_type) == (state, error_type)
    assert line.answer.address == "127.0.0.1"
    assert len(line.answer.response_body or "") <= request.BODY_KEPT_MAX


async def test_what_is_no_tls_is_unreachable_and_not_asked_for_ever(post: Post) -> None:
    async def rubbish(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"\x16\x03\x01\xff\xff" + b"x" * 64)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, rubbish)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django
        delivery_id = await post.owe(f"https://127.0.0.1:{port}/", now=NOON)
        assert await post.deliverer.deliver_due(NOON) == 1
        group.cancel_scope.cancel()
    delivery, (line,) = await post.get(delivery_id)
    assert (delivery.failures, line.answer.error_type) == (1, "unreachable")
    assert "SSL" in (line.answer.error_detail or "")


async def test_receivers_that_hang_leave_places_to_those_that_answer(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than there are places for the unproven, each with a backlog that is older."""
    monkeypatch.setattr(request, "TIMEOUT_S", 1.0)
    deliverer = post.another(total=8)
    async with receiver(paths={"/hang": hang}) as there:
        good, _ = await post.endpoint(there.url + "/good", now=NOON)
        async with post.pool.acquire() as connection:
            await owe_event(connection, good, now=NOON)
            assert await deliverer.deliver_due(NOON) == 1
            for number in range(12):
                bad, _ = await post.endpoint(f"{there.url}/{number}/hang", now=NOON)
                for _ in range(3):
                    await owe_event(connection, bad, now=NOON)
            for _ in range(2):
                await owe_event(connection, good, now=NOON + timedelta(seconds=1))
            now = NOON + timedelta(seconds=2)
            claimed = await outbox.claim(connection, deliverer.lanes.room(), now=now)
    assert len(claimed) == 4 + 2
    assert [item.endpoint_id for item in claimed].count(good.id) == 2


async def test_a_deliverer_killed_in_the_middle_of_a_delivery_loses_nothing(
    post: Post, settings: Settings
) -> None:
    """The receiver has the request when SIGKILL comes; the next try bears the same id."""
    async with receiver(hang, reply(204)) as there:
        delivery_id = await post.owe(there.url)
        values = {
            "XNAI_DATA_DIR": str(settings.data_dir),
            "XNAI_DATABASE_URL": str(settings.database_url),
            "XNAI_REDIS_URL": str(settings.redis_url),
            "XNAI_EGRESS_ALLOW": "127.0.0.0/8",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.roles", "tick"], cwd=ROOT, env=values
        )
        try:
            await there.until(1)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            await anyio.to_thread.run_sync(process.wait)
        async with post.pool.acquire() as connection:
            now = await outbox.database_now(connection)
        assert await post.deliverer.deliver_due(now) == 0, "its lease holds"
        assert await post.deliverer.deliver_due(now + timedelta(seconds=LEASE_S)) == 1
    assert (await post.get(delivery_id))[0].state is DELIVERED
    assert [UUID(got.headers["webhook-id"]) for got in there.requests] == [delivery_id] * 2
    assert there.requests[0].body == there.requests[1].body
