"""Deliveries over real connections: outcomes, retries, leases, hostile receivers."""

import gzip
import random
import socket
import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import anyio
import anyio.abc
import asyncpg
import pytest
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from jobs import ledger, slots
from jobs.kinds import load_kinds
from jobs.model import DEFAULT_TENANT, NewJob
from jobs.outcomes import Completed
from jobs.results import Ended
from runtime.egress import EgressPolicy
from tests.webhooks.conftest import LOCAL, Post, owe_event
from tests.webhooks.receiver import hang, receiver, reply
from webhooks import deliver, deliveries, endpoints, outbox, request
from webhooks.backoff import DELAYS_S
from webhooks.deliver import Deliverer
from webhooks.endpoints import EndpointSpec
from webhooks.lanes import Room
from webhooks.model import Answer, DeliveryState
from webhooks.outbox import LEASE_S
from webhooks.wire import Wire

pytestmark = pytest.mark.anyio

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
DELIVERED, DEAD, PENDING = DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.PENDING


async def test_the_callback_of_a_settled_job_arrives_signed(post: Post) -> None:
    kinds = load_kinds()
    async with receiver() as there, post.pool.acquire() as connection:
        job = NewJob("probe", {}, callback_url=there.url)
        (accepted,) = await ledger.enqueue(connection, DEFAULT_TENANT, [job], kinds=kinds)
        slot = await slots.register(
            connection, supervisor_id=uuid4(), pool="probe", number=0, host="here", pid=1,
            cores=[0], kinds=["probe"],
        )  # fmt: skip
        (claimed,) = await ledger.claim(connection, slot, "probe", ["probe"], 1)
        ended = [Ended(claimed, Completed({"echo": None}))]
        await ledger.record(connection, slot, ended, kinds=kinds, rng=random.Random(1))
        assert await post.deliverer.deliver_due() == 1
    (got,) = there.requests
    secret = await post.callback_secret()
    event = Webhook(secret.text).verify(got.body, got.headers)
    assert event["type"] == "job.settled"
    assert event["data"]["id"] == str(accepted.id)
    assert event["data"]["links"] == {"job": f"/v1/jobs/{accepted.id}"}
    assert set(event) == {"type", "timestamp", "data"}
    delivery, log = await post.get(UUID(got.headers["webhook-id"]))
    assert (delivery.state, delivery.attempt, delivery.failures) == (DELIVERED, 1, 0)
    (line,) = log
    assert (line.answer.status, line.answer.address) == (200, "127.0.0.1")
    assert line.answer.request_body == got.body.decode()
    assert await post.deliverer.deliver_due() == 0


async def test_a_failing_receiver_is_asked_ten_times_and_then_no_more(post: Post) -> None:
    now = NOON
    async with receiver(reply(500, b"no")) as there:
        delivery_id = await post.owe(there.url, now=now)
        for failures in range(len(DELAYS_S)):
            delivery, _ = await post.get(delivery_id)
            assert (delivery.state, delivery.failures) == (PENDING, failures)
            assert delivery.due_at is not None
            assert delivery.due_at - now >= timedelta(seconds=DELAYS_S[failures])
            early = delivery.due_at - timedelta(milliseconds=1)
            assert await post.deliverer.deliver_due(early) == 0
            now = delivery.due_at
            assert await post.deliverer.deliver_due(now) == 1
        assert await post.deliverer.deliver_due(now + timedelta(days=30)) == 0
    delivery, log = await post.get(delivery_id)
    assert (delivery.state, delivery.reason) == (DEAD, deliver.EXHAUSTED)
    assert [line.attempt for line in log] == list(range(1, 11))
    assert {(a.answer.status, a.answer.error_type, a.answer.response_body) for a in log} == {
        (500, "refused", "no")
    }
    assert len({got.body for got in there.requests}) == 1
    assert {got.headers["webhook-id"] for got in there.requests} == {str(delivery_id)}
    assert len({got.headers["webhook-timestamp"] for got in there.requests}) == 10


async def test_retry_after_is_respected(post: Post) -> None:
    async with receiver(reply(503, Retry_After="3600"), reply(204)) as there:
        delivery_id = await post.owe(there.url, now=NOON)
        await post.deliverer.deliver_due(NOON)
        delivery, _ = await post.get(delivery_id)
        assert delivery.due_at == NOON + timedelta(hours=1)
        await post.deliverer.deliver_due(NOON + timedelta(hours=1))
    delivery, log = await post.get(delivery_id)
    assert delivery.state is DELIVERED
    assert [line.answer.status for line in log] == [503, 204]


async def test_gone_disables_the_endpoint_and_what_is_owed_to_it_dies_unsent(post: Post) -> None:
    async with receiver(reply(410)) as there:
        endpoint, _ = await post.endpoint(there.url, now=NOON)
        async with post.pool.acquire() as connection:
            first = await endpoints.send_test(connection, DEFAULT_TENANT, endpoint.id, now=NOON)
            await post.deliverer.deliver_due(NOON)
            found = await endpoints.get(connection, DEFAULT_TENANT, endpoint.id)
            assert found.disabled_reason == outbox.GONE
            told = await connection.fetchval(
                "SELECT data FROM events WHERE type = 'webhook.disabled'"
            )
            assert told["endpoint_id"] == str(endpoint.id)
            second = await owe_event(connection, endpoint, now=NOON)
            await post.deliverer.deliver_due(NOON)
    assert len(there.requests) == 1
    assert (await post.get(first))[0].reason == outbox.GONE
    delivery, log = await post.get(second)
    assert (delivery.state, delivery.reason, log) == (DEAD, "endpoint_disabled", [])


async def test_a_redirect_is_not_followed(post: Post) -> None:
    async with receiver() as elsewhere, receiver(reply(307, Location=elsewhere.url)) as there:
        delivery_id = await post.owe(there.url)
        await post.deliverer.deliver_due()
    assert elsewhere.requests == []
    delivery, (line,) = await post.get(delivery_id)
    assert delivery.state is PENDING
    assert (line.answer.status, line.answer.error_type) == (307, "redirected")


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/hook",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:8080/",
        "http://2130706433/",
        "file:///etc/passwd",
    ],
)
async def test_the_network_inside_is_refused_with_its_reason_in_the_log(
    post: Post, url: str
) -> None:
    guarded = Deliverer(post.pool, Wire(EgressPolicy()))
    delivery_id = await post.owe(url)
    assert await guarded.deliver_due() == 1
    delivery, (line,) = await post.get(delivery_id)
    assert (delivery.state, delivery.reason) == (DEAD, "blocked")
    assert (line.answer.error_type, line.answer.status) == ("blocked", None)
    assert "rule" in (line.answer.error_detail or "")


@pytest.mark.parametrize("url", ["http://", "http://[", "http://127.0.0.1:99999/", "nonsense"])
async def test_an_address_that_is_none_dies_with_a_reason(post: Post, url: str) -> None:
    delivery_id = await post.owe(url)
    assert await post.deliverer.deliver_due() == 1
    _, (line,) = await post.get(delivery_id)
    assert line.answer.error_type in {"blocked", "bad_url", "protocol"}


async def test_nobody_listens(post: Post) -> None:
    async with receiver() as there:
        url = there.url
    delivery_id = await post.owe(url)
    await post.deliverer.deliver_due()
    delivery, (line,) = await post.get(delivery_id)
    assert (delivery.state, line.answer.error_type) == (PENDING, "unreachable")


async def _endless(stream: anyio.abc.SocketStream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await stream.send(b"10000\r\n" + b"x" * 65_536 + b"\r\n")


async def test_an_endless_answer_is_cut_and_counts_by_its_status(post: Post) -> None:
    async with receiver(_endless) as there:
        delivery_id = await post.owe(there.url)
        with anyio.fail_after(10):
            await post.deliverer.deliver_due()
    delivery, (line,) = await post.get(delivery_id)
    assert delivery.state is DELIVERED
    assert line.answer.response_body == "x" * request.BODY_KEPT_MAX


async def test_odd_bytes_of_an_answer_can_be_kept(post: Post) -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    odd = "a\x00b\udc80".encode("utf-8", "surrogatepass")
    async with receiver(
        reply(500, odd, X_Odd="\xff"), reply(200, bomb, Content_Encoding="gzip")
    ) as there:
        delivery_id = await post.owe(there.url, now=NOON)
        await post.deliverer.deliver_due(NOON)
        await post.deliverer.deliver_due(NOON + timedelta(seconds=6))
    delivery, log = await post.get(delivery_id)
    assert delivery.state is DELIVERED
    assert (log[0].answer.response_body or "").startswith("a\N{REPLACEMENT CHARACTER}b")
    assert len(log[1].answer.response_body or "") <= request.BODY_KEPT_MAX


async def _garbage(stream: anyio.abc.SocketStream) -> None:
    await stream.send(b"220 smtp.example.org ESMTP\r\n")


async def test_another_protocols_answer_is_a_failure(post: Post) -> None:
    async with receiver(_garbage) as there:
        delivery_id = await post.owe(there.url)
        await post.deliverer.deliver_due()
    _, (line,) = await post.get(delivery_id)
    assert line.answer.error_type == "protocol"


async def test_a_hanging_receiver_slows_nobody_else(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backlog is the oldest and the longest, and it is the same server: another endpoint is
    served in the same claim, and what hangs takes one place.
    """
    monkeypatch.setattr(request, "TIMEOUT_S", 0.3)
    async with receiver(paths={"/hang": hang}) as there:
        slow, _ = await post.endpoint(there.url + "/hang", now=NOON)
        quick, _ = await post.endpoint(there.url + "/quick", now=NOON)
        async with post.pool.acquire() as connection:
            for _ in range(20):
                await owe_event(connection, slow, now=NOON)
            for _ in range(3):
                await owe_event(connection, quick, now=NOON + timedelta(seconds=1))
        later = NOON + timedelta(seconds=2)
        assert await post.deliverer.deliver_due(later) == 2
        # One that has answered has earned a second place.
        assert await post.deliverer.deliver_due(later) == 3
        assert sorted(got.path for got in there.requests) == [
            *["/hook/hang"] * 2,
            *["/hook/quick"] * 3,
        ]


async def test_names_that_do_not_resolve_slow_nobody_else(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the event loop has threads; their servers take the question and are
    silent.
    """
    monkeypatch.setattr(request, "TIMEOUT_S", 1.0)
    answered, real = threading.Event(), socket.getaddrinfo

    def resolve(host: str, *arguments: object, **options: object) -> object:
        if str(host).startswith("silent"):
            answered.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        host = "127.0.0.1" if host == "quick.example" else host
        return real(host, *arguments, **options)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    try:
        async with receiver() as there:
            for number in range(16):
                await post.owe(f"http://silent-{number}.example/", now=NOON)
            port = there.url.rpartition(":")[2]
            delivery_id = await post.owe(f"http://quick.example:{port}/", now=NOON)
            with anyio.fail_after(20):
                assert await post.deliverer.deliver_due(NOON) == 17
    finally:
        answered.set()
    assert (await post.get(delivery_id))[0].state is DELIVERED


async def test_two_deliverers_send_each_delivery_once(post: Post) -> None:
    async with receiver() as there:
        ids = {await post.owe(there.url) for _ in range(12)}

        async def deliver_all() -> None:
            deliverer = post.another()
            while await deliverer.deliver_due():
                continue

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(deliver_all)
    assert {UUID(got.headers["webhook-id"]) for got in there.requests} == ids
    assert len(there.requests) == 12


async def test_a_dead_deliverers_delivery_comes_back_under_the_same_id(post: Post) -> None:
    """It died after the claim; its lease ends, another sends, and the zombie changes nothing."""
    room = Room(10, 10)
    async with receiver() as there, post.pool.acquire() as connection:
        delivery_id = await post.owe(there.url, now=NOON)
        (zombie,) = await outbox.claim(connection, room, now=NOON)
        assert await post.deliverer.deliver_due(NOON + timedelta(seconds=LEASE_S - 1)) == 0
        assert await post.deliverer.deliver_due(NOON + timedelta(seconds=LEASE_S)) == 1
        late = Answer(NOON, 59.0, {}, "", status=500, error_type="refused")
        assert not await outbox.retry(connection, zombie, late, due_at=NOON)
        assert not await outbox.bury(connection, zombie, late, reason="late", now=NOON)
        assert not await outbox.deliver(connection, zombie, late, closing=[], now=NOON)
    delivery, log = await post.get(delivery_id)
    assert (delivery.state, delivery.attempt) == (DELIVERED, 2)
    assert [line.attempt for line in log] == [1, 2]


async def test_the_outcome_survives_a_restart_of_postgres(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is out; the database is away just then; the receiver is not asked again."""
    monkeypatch.setattr(deliver, "_FINISH_AGAIN_S", 0.0)
    real, failures = outbox.deliver, 2

    async def away_at_first(*args: object, **kwargs: object) -> bool:
        nonlocal failures
        if failures:
            failures -= 1
            raise asyncpg.ConnectionDoesNotExistError
        return await real(*args, **kwargs)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr(outbox, "deliver", away_at_first)
    async with receiver() as there:
        delivery_id = await post.owe(there.url)
        await post.deliverer.deliver_due()
    assert failures == 0
    assert len(there.requests) == 1
    assert (await post.get(delivery_id))[0].state is DELIVERED


async def test_both_secrets_sign_while_a_rotation_lasts(post: Post) -> None:
    async with receiver() as there:
        endpoint, old = await post.endpoint(there.url)
        async with post.pool.acquire() as connection:
            _, new = await endpoints.rotate(connection, DEFAULT_TENANT, endpoint.id, overlap_s=60)
            await endpoints.send_test(connection, DEFAULT_TENANT, endpoint.id)
            await post.deliverer.deliver_due()
            _, newest = await endpoints.rotate(connection, DEFAULT_TENANT, endpoint.id, overlap_s=0)
            await endpoints.send_test(connection, DEFAULT_TENANT, endpoint.id)
            await post.deliverer.deliver_due()
    during, after = there.requests
    for secret in (old, new):
        assert Webhook(secret.text).verify(during.body, during.headers)["type"] == "webhook.test"
    assert Webhook(newest.text).verify(after.body, after.headers)
    assert len(after.headers["webhook-signature"].split()) == 1


async def test_redeliver_keeps_the_id_and_gives_a_fresh_budget(post: Post) -> None:
    async with receiver(reply(410), reply(200)) as there, post.pool.acquire() as connection:
        delivery_id = await post.owe(there.url, now=NOON)
        await post.deliverer.deliver_due(NOON)
        assert (await post.get(delivery_id))[0].state is DEAD
        again = await deliveries.redeliver(connection, DEFAULT_TENANT, delivery_id, now=NOON)
        assert (again.state, again.attempt, again.failures) == (PENDING, 1, 0)
        await post.deliverer.deliver_due(NOON)
    delivery, log = await post.get(delivery_id)
    assert (delivery.state, delivery.attempt) == (DELIVERED, 2)
    assert [line.answer.status for line in log] == [410, 200]
    assert {got.headers["webhook-id"] for got in there.requests} == {str(delivery_id)}


async def test_redeliver_hastens_what_waits_and_leaves_alone_what_is_under_way(post: Post) -> None:
    async with receiver(reply(500), reply(200)) as there, post.pool.acquire() as connection:
        delivery_id = await post.owe(there.url, now=NOON)
        (leased,) = await outbox.claim(connection, Room(1, 1), now=NOON)
        held = await deliveries.redeliver(connection, DEFAULT_TENANT, delivery_id, now=NOON)
        assert held.due_at == NOON + timedelta(seconds=LEASE_S)
        answer = Answer(NOON, 0.1, {}, "", status=500, error_type="refused")
        await outbox.retry(connection, leased, answer, due_at=NOON + timedelta(hours=24))
        await deliveries.redeliver(connection, DEFAULT_TENANT, delivery_id, now=NOON)
        assert await post.deliverer.deliver_due(NOON) == 1


async def test_no_secret_is_logged_or_kept_in_the_log_of_deliveries(post: Post) -> None:
    async with receiver(reply(500)) as there:
        endpoint, secret = await post.endpoint(there.url)
        with capture_logs() as lines:
            async with post.pool.acquire() as connection:
                delivery_id = await endpoints.send_test(connection, DEFAULT_TENANT, endpoint.id)
            await post.deliverer.deliver_due()
        _, log = await post.get(delivery_id)
    assert lines
    for text in (repr(lines), repr(log), repr(endpoint), repr(secret)):
        assert secret.text.removeprefix("whsec_") not in text
        assert repr(secret.key) not in text


async def test_run_delivers_what_comes_and_stop_lets_the_last_one_finish(post: Post) -> None:
    answered = anyio.Event()

    async def slowly(stream: anyio.abc.SocketStream) -> None:
        await answered.wait()
        await stream.send(reply(200))

    async with receiver(reply(200), slowly) as there:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: post.deliverer.run(poll_s=0.05))
                await post.owe(there.url)
                await there.until(1)
                last = await post.owe(there.url)
                await there.until(2)
                post.deliverer.stop()
                unsent = await post.owe(there.url)
                answered.set()
    assert (await post.get(last))[0].state is DELIVERED
    assert (await post.get(unsent))[0].attempt == 0
    assert len(there.requests) == 2


async def test_a_new_url_takes_what_is_owed_along(post: Post) -> None:
    async with receiver(host="127.0.0.3") as moved, receiver(reply(500)) as there:
        endpoint, _ = await post.endpoint(there.url, now=NOON)
        async with post.pool.acquire() as connection:
            await endpoints.send_test(connection, DEFAULT_TENANT, endpoint.id, now=NOON)
            await post.deliverer.deliver_due(NOON)
            spec = EndpointSpec(moved.url, ("*",))
            await endpoints.update(
                connection, DEFAULT_TENANT, endpoint.id, spec, policy=LOCAL, now=NOON
            )
        await post.deliverer.deliver_due(NOON + timedelta(minutes=1))
    assert (len(there.requests), len(moved.requests)) == (1, 1)
