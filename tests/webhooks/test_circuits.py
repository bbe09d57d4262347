"""A receiver that fails: its circuit, its outage of hours, its end after days."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from standardwebhooks import Webhook

from jobs.model import DEFAULT_TENANT
from runtime.postgres import Connection
from tests.webhooks.conftest import LOCAL, Post, owe_event
from tests.webhooks.receiver import Receiver, receiver, reply
from webhooks import circuits, deliveries, endpoints
from webhooks.backoff import OPEN_AFTER
from webhooks.circuits import Circuit
from webhooks.deliver import Deliverer
from webhooks.deliveries import DeliveryFilter
from webhooks.endpoints import EndpointSpec
from webhooks.model import DeliveryState, Endpoint

pytestmark = pytest.mark.anyio

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


async def circuit_of(connection: Connection, endpoint: Endpoint) -> Circuit | None:
    return (await circuits.of_endpoints(connection, [endpoint.id])).get(endpoint.id)


async def attempts_of(connection: Connection) -> list[int]:
    """How often each delivery that is owed was tried, most often first."""
    rows = await connection.fetch("SELECT attempt FROM outbox ORDER BY attempt DESC")
    return [row["attempt"] for row in rows]


async def deliver_until_open(post: Post, endpoint: Endpoint) -> Circuit:
    """One failure after the other at noon; answers the circuit that they opened."""
    for _ in range(OPEN_AFTER):
        assert await post.deliverer.deliver_due(NOON) == 1
    async with post.pool.acquire() as connection:
        found = await circuit_of(connection, endpoint)
    assert found is not None
    assert found.probe_at is not None
    return found


async def test_an_open_circuit_lets_one_probe_through_and_spends_no_attempt_of_the_others(
    post: Post,
) -> None:
    async with receiver(reply(500)) as there:
        endpoint, _ = await post.endpoint(there.url, now=NOON)
        async with post.pool.acquire() as connection:
            for _ in range(20):
                await owe_event(connection, endpoint, now=NOON)
            opened = await deliver_until_open(post, endpoint)
            assert await attempts_of(connection) == [1] * OPEN_AFTER + [0] * 15
            assert opened.probe_at is not None
            assert await post.deliverer.deliver_due(opened.probe_at - timedelta(seconds=0.1)) == 0
            # Two deliverers want the probe; one has it, until its lease ends.
            first, second = post.another(), post.another()
            assert len(await first._claim(opened.probe_at)) == 1
            assert len(await second._claim(opened.probe_at)) == 0
            assert len(there.requests) == OPEN_AFTER
            assert await post.deliverer.deliver_due(opened.probe_at + timedelta(minutes=1)) == 1
            again = await circuit_of(connection, endpoint)
    assert again is not None
    assert again.failures == OPEN_AFTER + 1


async def test_a_success_closes_the_circuit_and_all_that_waited_is_sent(post: Post) -> None:
    async with receiver(*[reply(500)] * OPEN_AFTER, reply(204)) as there:
        endpoint, _ = await post.endpoint(there.url, now=NOON)
        async with post.pool.acquire() as connection:
            for _ in range(20):
                await owe_event(connection, endpoint, now=NOON)
            opened = await deliver_until_open(post, endpoint)
            assert opened.probe_at is not None
            while await post.deliverer.deliver_due(opened.probe_at):
                continue
            assert await circuit_of(connection, endpoint) is None
            # Of those that failed some wait for their own second attempt; of the others none.
            assert 0 not in await attempts_of(connection)
            assert await connection.fetchval("SELECT count(*) FROM deliveries") >= 15


async def test_retry_after_holds_back_all_of_an_endpoint_but_only_one_callback(post: Post) -> None:
    async with receiver(reply(503, Retry_After="600"), reply(204)) as there:
        endpoint, _ = await post.endpoint(there.url, now=NOON)
        async with post.pool.acquire() as connection:
            for _ in range(2):
                await owe_event(connection, endpoint, now=NOON)
        assert await post.deliverer.deliver_due(NOON) == 1
        assert await post.deliverer.deliver_due(NOON + timedelta(seconds=599)) == 0
        assert await post.deliverer.deliver_due(NOON + timedelta(seconds=600)) == 1
    async with receiver(reply(503, Retry_After="600"), reply(204)) as there:
        for _ in range(2):
            await post.owe(there.url, now=NOON)
        assert await post.deliverer.deliver_due(NOON) == 1
        assert await post.deliverer.deliver_due(NOON) == 1
        assert len(there.requests) == 2


async def test_a_test_goes_through_an_open_circuit_and_its_success_closes_it(post: Post) -> None:
    async with receiver(*[reply(500)] * OPEN_AFTER, reply(204)) as there:
        endpoint, _ = await post.endpoint(there.url, now=NOON)
        async with post.pool.acquire() as connection:
            for _ in range(OPEN_AFTER):
                await owe_event(connection, endpoint, now=NOON)
            await deliver_until_open(post, endpoint)
            await endpoints.send_test(connection, DEFAULT_TENANT, endpoint.id, now=NOON)
            assert await post.deliverer.deliver_due(NOON) == 1
            assert there.requests[-1].type == "webhook.test"
            assert await circuit_of(connection, endpoint) is None


async def test_a_redelivery_by_hand_and_a_change_do_not_wait_for_the_probe(post: Post) -> None:
    async with receiver(reply(500)) as there:
        endpoint, _ = await post.endpoint(there.url, now=NOON)
        async with post.pool.acquire() as connection:
            for _ in range(OPEN_AFTER):
                await owe_event(connection, endpoint, now=NOON)
            waiting = await owe_event(connection, endpoint, now=NOON)
            await deliver_until_open(post, endpoint)
            await deliveries.redeliver(connection, DEFAULT_TENANT, waiting, now=NOON)
            assert await post.deliverer.deliver_due(NOON) == 1
            assert await post.deliverer.deliver_due(NOON) == 0
            spec = EndpointSpec(there.url, ("*",))
            await endpoints.update(connection, DEFAULT_TENANT, endpoint.id, spec, policy=LOCAL)
            assert await circuit_of(connection, endpoint) is None


async def test_a_receiver_that_was_down_for_hours_gets_every_event_and_none_is_forged(
    post: Post,
) -> None:
    """An event each five minutes for six hours, of which it is away for five; two deliverers take
    turns.
    """
    ids: set[UUID] = set()
    now, during = NOON, 0
    async with receiver(reply(503)) as there:
        endpoint, secret = await post.endpoint(there.url, now=NOON)
        turns = [post.deliverer, post.another()]
        async with post.pool.acquire() as connection:
            for minute in range(0, 6 * 60, 5):
                now = NOON + timedelta(minutes=minute)
                ids.add(await owe_event(connection, endpoint, now=now))
                if minute == 5 * 60:
                    during = len(there.requests)
                    there.answers = [reply(204)]
                await turns[minute // 5 % 2].deliver_due(now)
            while await connection.fetchval("SELECT count(*) FROM outbox"):
                now += timedelta(minutes=10)
                await _deliver_all(turns[0], now)
            assert now <= NOON + timedelta(days=2)
            states = await connection.fetch("SELECT DISTINCT state, reason FROM deliveries")
    assert [tuple(row) for row in states] == [("delivered", None)]
    assert during < 40, "an outage costs probes, not an attempt of each event"
    assert _arrived(there, secret.text) == ids


async def _deliver_all(deliverer: Deliverer, now: datetime) -> None:
    while await deliverer.deliver_due(now):
        continue


def _arrived(there: Receiver, secret: str) -> set[UUID]:
    """What the receiver was sent, each checked as a user would; their clock is the sender's."""
    verifier = Webhook(secret)
    for got in there.requests:
        headers = dict(got.headers)
        signed_at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        assert headers["webhook-signature"] == verifier.sign(
            headers["webhook-id"], signed_at, got.body.decode()
        )
    return {UUID(got.headers["webhook-id"]) for got in there.requests}


async def test_days_of_failure_disable_an_endpoint_and_tell_the_others(post: Post) -> None:
    patience = timedelta(days=2)
    async with receiver(reply(500)) as there, receiver(host="127.0.0.2") as other:
        endpoint, _ = await post.endpoint(there.url, now=NOON)
        witness, _ = await post.endpoint(other.url, "webhook.disabled", now=NOON)
        post.deliverer.disable_after_s = patience.total_seconds()
        now = NOON
        async with post.pool.acquire() as connection:
            while (
                await endpoints.get(connection, DEFAULT_TENANT, endpoint.id)
            ).disabled_at is None:
                await owe_event(connection, endpoint, now=now)
                await post.deliverer.deliver_due(now)
                assert now < NOON + patience + HOUR
                now += HOUR
            found = await endpoints.get(connection, DEFAULT_TENANT, endpoint.id)
            assert found.disabled_reason == "failing"
            assert found.disabled_at is not None
            assert found.disabled_at >= NOON + patience
            (told,) = await connection.fetch(
                "SELECT data FROM events WHERE type = 'webhook.disabled'"
            )
            assert told["data"]["reason"] == "failing"
            assert datetime.fromisoformat(told["data"]["failing_since"]) == NOON
            # All that it is owed dies unsent, however much there is.
            requests = len(there.requests)
            await _deliver_all(post.deliverer, now + timedelta(days=1))
            assert len(there.requests) == requests
            page = await deliveries.find(
                connection, DEFAULT_TENANT, DeliveryFilter(endpoint.id, DeliveryState.PENDING)
            )
            assert page.deliveries == []
            assert witness.disabled_at is None


async def test_a_single_failure_long_after_another_disables_nothing(post: Post) -> None:
    async with receiver(reply(500)) as there:
        endpoint, _ = await post.endpoint(there.url, now=NOON)
        async with post.pool.acquire() as connection:
            for days in (0, 9):
                await owe_event(connection, endpoint, now=NOON + timedelta(days=days))
                await post.deliverer.deliver_due(NOON + timedelta(days=days))
            found = await endpoints.get(connection, DEFAULT_TENANT, endpoint.id)
    assert found.disabled_at is None


async def test_what_is_owed_to_a_deleted_endpoint_is_not_sent_unsigned(post: Post) -> None:
    """A fan-out that raced with the deletion leaves such a row."""
    async with receiver() as there:
        endpoint, _ = await post.endpoint(there.url, now=NOON)
        async with post.pool.acquire() as connection:
            await endpoints.delete(connection, DEFAULT_TENANT, endpoint.id)
            orphan = await owe_event(connection, endpoint, now=NOON)
        assert await post.deliverer.deliver_due(NOON) == 1
    assert there.requests == []
    delivery, log = await post.get(orphan)
    assert (delivery.reason, log) == ("endpoint_deleted", [])
