"""The verbs that users have, on a real database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import anyio
import pytest

from jobs.model import DEFAULT_TENANT, TenantId
from runtime.egress import EgressPolicy
from tests.webhooks.conftest import LOCAL, Post
from webhooks import deliveries, endpoints
from webhooks.deliveries import DeliveryFilter
from webhooks.endpoints import EndpointSpec, check
from webhooks.errors import DeliveryNotFound, EndpointChanged, EndpointNotFound, WebhookRefused
from webhooks.model import DeliveryState

pytestmark = pytest.mark.anyio

STRANGER = TenantId(2)
NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
SPEC = EndpointSpec("https://example.org/hook", ("job.failed", "document.*"), "ops")


async def test_what_was_asked_for_is_what_is_kept(post: Post) -> None:
    async with post.pool.acquire() as connection:
        made, secret = await endpoints.create(connection, DEFAULT_TENANT, SPEC, policy=LOCAL)
        read = await endpoints.get(connection, DEFAULT_TENANT, made.id)
    assert made == read
    assert (read.url, read.events, read.description) == (SPEC.url, SPEC.events, SPEC.description)
    assert secret.text.startswith("whsec_")
    assert read.disabled_at is None


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"url": ""}, "/url"),
        ({"url": "http://10.0.0.1/"}, "/url"),
        ({"url": "file:///etc/passwd"}, "/url"),
        ({"url": "https://user:pw@example.org/"}, "/url"),
        ({"url": "https://example.org/" + "x" * 2048}, "/url"),
        ({"events": ()}, "/events"),
        ({"events": ("*", "job.exploded")}, "/events/1"),
        ({"events": ("job.progress",)}, "/events/0"),
        ({"description": "a\x00"}, "/description"),
        ({"description": "x" * 501}, "/description"),
    ],
)
async def test_an_invalid_field_is_named(change: dict[str, object], pointer: str) -> None:
    with pytest.raises(WebhookRefused) as refused:
        check(replace(SPEC, **change), EgressPolicy())  # type: ignore[arg-type] # wrong on purpose
    assert refused.value.pointer == pointer


async def test_another_tenants_endpoint_does_not_exist(post: Post) -> None:
    endpoint, _ = await post.endpoint(SPEC.url)
    delivery_id = await post.owe(SPEC.url)
    async with post.pool.acquire() as connection:
        for verb in (
            endpoints.get(connection, STRANGER, endpoint.id),
            endpoints.delete(connection, STRANGER, endpoint.id),
            endpoints.rotate(connection, STRANGER, endpoint.id),
            endpoints.send_test(connection, STRANGER, endpoint.id),
            endpoints.update(connection, STRANGER, endpoint.id, SPEC, policy=LOCAL),
            endpoints.get(connection, DEFAULT_TENANT, uuid4()),
        ):
            with pytest.raises(EndpointNotFound):
                await verb
        for look in (
            deliveries.get(connection, STRANGER, delivery_id),
            deliveries.redeliver(connection, STRANGER, delivery_id),
            deliveries.redeliver(connection, DEFAULT_TENANT, uuid4()),
        ):
            with pytest.raises(DeliveryNotFound):
                await look
        assert (await deliveries.find(connection, STRANGER)).deliveries == []


async def test_disable_and_enable_keep_the_first_time_and_reason(post: Post) -> None:
    async with post.pool.acquire() as connection:
        made, _ = await endpoints.create(
            connection, DEFAULT_TENANT, replace(SPEC, enabled=False), policy=LOCAL, now=NOON
        )
        assert (made.disabled_at, made.disabled_reason) == (NOON, "by its owner")
        again = await endpoints.update(
            connection, DEFAULT_TENANT, made.id, replace(SPEC, enabled=False),
            policy=LOCAL, now=NOON + timedelta(hours=1),
        )  # fmt: skip
        assert again.disabled_at == NOON
        woken = await endpoints.update(
            connection, DEFAULT_TENANT, made.id, SPEC, policy=LOCAL, version=again.version
        )
        assert woken.disabled_at is None
        with pytest.raises(EndpointChanged):
            await endpoints.update(
                connection, DEFAULT_TENANT, made.id, SPEC, policy=LOCAL, version=again.version
            )


async def test_delete_takes_what_is_owed_along(post: Post) -> None:
    endpoint, _ = await post.endpoint(SPEC.url)
    async with post.pool.acquire() as connection:
        delivery_id = await endpoints.send_test(connection, DEFAULT_TENANT, endpoint.id)
        await endpoints.delete(connection, DEFAULT_TENANT, endpoint.id)
        assert await endpoints.list_endpoints(connection, DEFAULT_TENANT) == []
    with pytest.raises(DeliveryNotFound):
        await post.get(delivery_id)


async def test_pages_of_endpoints_and_deliveries_neither_repeat_nor_skip(post: Post) -> None:
    made = [(await post.endpoint(f"{SPEC.url}/{n}"))[0].id for n in range(5)]
    sent = [await post.owe(SPEC.url, now=NOON + timedelta(seconds=n // 2)) for n in range(6)]
    async with post.pool.acquire() as connection:
        first = await endpoints.list_endpoints(connection, DEFAULT_TENANT, limit=2)
        rest = await endpoints.list_endpoints(connection, DEFAULT_TENANT, after=first[-1].id)
        assert [endpoint.id for endpoint in first + rest] == made
        seen: list[UUID] = []
        page = await deliveries.find(connection, DEFAULT_TENANT, limit=4)
        while page.next is not None:
            seen += [delivery.id for delivery in page.deliveries]
            page = await deliveries.find(connection, DEFAULT_TENANT, before=page.next, limit=4)
        seen += [delivery.id for delivery in page.deliveries]
    assert sorted(seen) == sorted(sent)
    assert len(seen) == len(set(seen))


async def test_deliveries_are_found_by_endpoint_and_state(post: Post) -> None:
    endpoint, _ = await post.endpoint(SPEC.url)
    await post.owe(SPEC.url)
    async with post.pool.acquire() as connection:
        test_id = await endpoints.send_test(connection, DEFAULT_TENANT, endpoint.id)
        wanted = DeliveryFilter(endpoint_id=endpoint.id)
        of_endpoint = await deliveries.find(connection, DEFAULT_TENANT, wanted)
        assert [delivery.id for delivery in of_endpoint.deliveries] == [test_id]
        for wanted, count in (
            (DeliveryFilter(state=DeliveryState.PENDING), 2),
            (DeliveryFilter(state=DeliveryState.DEAD), 0),
            (DeliveryFilter(type="webhook.test"), 1),
            (DeliveryFilter(type="job.failed"), 0),
        ):
            page = await deliveries.find(connection, DEFAULT_TENANT, wanted)
            assert (len(page.deliveries), page.next) == (count, None)


async def test_everybody_who_asks_for_the_callback_secret_first_gets_the_same(post: Post) -> None:
    found: set[str] = set()

    async def ask() -> None:
        found.add((await post.callback_secret()).text)

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(ask)
    assert len(found) == 1
