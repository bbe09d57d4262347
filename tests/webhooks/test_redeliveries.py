"""Deliveries sent again by a filter: what matches, once each, durably."""

from datetime import UTC, datetime, timedelta

import anyio
import pytest

from jobs.model import DEFAULT_TENANT, TenantId
from runtime.postgres import Connection
from tests.webhooks.conftest import LOCAL, Post
from tests.webhooks.receiver import receiver
from webhooks import deliveries, endpoints, redeliveries
from webhooks.deliveries import DeliveryFilter
from webhooks.endpoints import EndpointSpec
from webhooks.errors import EndpointDisabled, EndpointNotFound, RedeliveryNotFound
from webhooks.model import DeliveryState, Endpoint
from webhooks.redeliveries import SLICE_ROWS, Redelivery, RedeliveryState

pytestmark = pytest.mark.anyio

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
STRANGER = TenantId(2)


async def finished(
    connection: Connection,
    endpoint: Endpoint | None,
    count: int = 1,
    *,
    state: str = "dead",
    type_: str = "job.failed",
    tenant_id: TenantId = DEFAULT_TENANT,
) -> None:
    """Deliveries that were finished at noon, of events a second apart."""
    await connection.execute(
        "INSERT INTO deliveries (id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt,"
        " failures, state, reason, finished_at)"
        " SELECT gen_random_uuid(), $1, $2, 'http://127.0.0.1:8080/x', $3,"
        " $4::timestamptz - n * interval '1 second', '{}', 10, 10, $5,"
        " CASE WHEN $5 = 'dead' THEN 'attempts_exhausted' END, $4"
        " FROM generate_series(1, $6::int) AS n",
        tenant_id, endpoint and endpoint.id, type_, NOON, state, count,
    )  # fmt: skip


async def work_off(connection: Connection) -> int:
    """Slice after slice; answers how many there were."""
    slices = 0
    while await redeliveries.work(connection, now=LATER) is not None:
        slices += 1
    return slices


async def accept(connection: Connection, wanted: DeliveryFilter) -> Redelivery:
    return await redeliveries.accept(connection, DEFAULT_TENANT, wanted, actor="ann", now=LATER)


async def owed(connection: Connection) -> int:
    count: int = await connection.fetchval("SELECT count(*) FROM outbox")
    return count


async def test_only_what_matches_is_owed_again_with_its_id_and_a_fresh_budget(post: Post) -> None:
    mine, _ = await post.endpoint("http://127.0.0.1:8080/mine")
    other, _ = await post.endpoint("http://127.0.0.1:8080/other")
    wanted = DeliveryFilter(mine.id, type="job.failed", occurred_after=NOON - timedelta(seconds=2))
    async with post.pool.acquire() as connection:
        await finished(connection, mine, 5)
        await finished(connection, mine, 1, type_="job.cancelled")
        await finished(connection, mine, 1, state="delivered")
        await finished(connection, other, 1)
        await finished(connection, None, 1, tenant_id=STRANGER)
        before = {row["id"] for row in await connection.fetch("SELECT id FROM deliveries")}
        assert await redeliveries.count(connection, DEFAULT_TENANT, wanted) == 2
        assert await owed(connection) == 0, "counting changes nothing"
        accepted = await accept(connection, wanted)
        assert (accepted.expected, accepted.state) == (2, RedeliveryState.RUNNING)
        await work_off(connection)
        done = await redeliveries.get(connection, DEFAULT_TENANT, accepted.id)
        assert (done.done, done.state) == (2, RedeliveryState.FINISHED)
        rows = await connection.fetch("SELECT id, attempt, failures, url FROM outbox")
        assert {(row["attempt"], row["failures"], row["url"]) for row in rows} == {
            (10, 0, mine.url)
        }
        assert len(rows) == 2
        assert {row["id"] for row in rows} < before
        with pytest.raises(RedeliveryNotFound):
            await redeliveries.get(connection, STRANGER, accepted.id)


async def test_it_goes_on_in_slices_and_a_rolled_back_one_is_done_again(post: Post) -> None:
    total = 2 * SLICE_ROWS + 10
    async with post.pool.acquire() as connection:
        await finished(connection, None, total)
        accepted = await accept(connection, DeliveryFilter())
        dying = connection.transaction()
        await dying.start()
        assert await redeliveries.work(connection, now=LATER) is not None
        await dying.rollback()
        assert await owed(connection) == 0
        assert await work_off(connection) == 3
        assert await owed(connection) == total
        done = await redeliveries.get(connection, DEFAULT_TENANT, accepted.id)
        assert (done.done, done.expected) == (total, total)


async def test_what_dies_again_meanwhile_is_not_sent_a_third_time(post: Post) -> None:
    async with post.pool.acquire() as connection:
        await finished(connection, None, 3)
        await accept(connection, DeliveryFilter())
        await connection.execute("UPDATE deliveries SET finished_at = $1", LATER + timedelta(1))
        await work_off(connection)
        assert await owed(connection) == 0


async def test_waiting_deliveries_are_hastened_with_a_fresh_budget(post: Post) -> None:
    async with post.pool.acquire() as connection:
        waiting = await post.owe("http://127.0.0.1:8080/x", now=NOON)
        await connection.execute(
            "UPDATE outbox SET due_at = $1, failures = 7", LATER + timedelta(days=1)
        )
        await accept(connection, DeliveryFilter(state=DeliveryState.PENDING))
        await work_off(connection)
        delivery, _ = await deliveries.get(connection, DEFAULT_TENANT, waiting)
    assert (delivery.due_at, delivery.failures) == (LATER, 0)


async def test_a_cancelled_one_does_no_more(post: Post) -> None:
    async with post.pool.acquire() as connection:
        await finished(connection, None, 3)
        accepted = await accept(connection, DeliveryFilter())
        cancelled = await redeliveries.cancel(connection, DEFAULT_TENANT, accepted.id, now=LATER)
        again = await redeliveries.cancel(connection, DEFAULT_TENANT, accepted.id)
        assert cancelled == again
        assert await work_off(connection) == 0
        assert await owed(connection) == 0


async def test_nothing_is_sent_again_to_who_is_disabled(post: Post) -> None:
    endpoint, _ = await post.endpoint("http://127.0.0.1:8080/x")
    async with post.pool.acquire() as connection:
        await finished(connection, endpoint, 1)
        spec = EndpointSpec(endpoint.url, ("*",), enabled=False)
        await endpoints.update(connection, DEFAULT_TENANT, endpoint.id, spec, policy=LOCAL)
        with pytest.raises(EndpointDisabled):
            await accept(connection, DeliveryFilter(endpoint.id))
        with pytest.raises(EndpointNotFound):
            await redeliveries.count(connection, STRANGER, DeliveryFilter(endpoint.id))
        (dead,) = (await deliveries.find(connection, DEFAULT_TENANT)).deliveries
        with pytest.raises(EndpointDisabled):
            await deliveries.redeliver(connection, DEFAULT_TENANT, dead.id)
        await accept(connection, DeliveryFilter())
        await work_off(connection)
        assert await owed(connection) == 0
        assert len((await deliveries.find(connection, DEFAULT_TENANT)).deliveries) == 1


async def test_a_page_reads_a_bounded_number_of_rows_and_the_next_goes_on(post: Post) -> None:
    async with post.pool.acquire() as connection:
        await finished(connection, None, 4100, state="delivered")
        await finished(connection, None, 1, type_="job.cancelled", state="delivered")
        await connection.execute(
            "UPDATE deliveries SET occurred_at = $1 WHERE type = 'job.cancelled'",
            NOON - timedelta(days=1),
        )
        wanted = DeliveryFilter(type="job.cancelled")
        pages = [await deliveries.find(connection, DEFAULT_TENANT, wanted)]
        while pages[-1].next is not None:
            pages.append(
                await deliveries.find(connection, DEFAULT_TENANT, wanted, before=pages[-1].next)
            )
    assert [len(page.deliveries) for page in pages] == [0, 0, 1]


async def test_the_deliverer_works_it_off_beside_what_it_sends(post: Post) -> None:
    async with receiver() as there, post.pool.acquire() as connection:
        await finished(connection, None, 3)
        await connection.execute("UPDATE deliveries SET url = $1, finished_at = now()", there.url)
        await redeliveries.accept(connection, DEFAULT_TENANT, DeliveryFilter(), actor="ann")
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: post.deliverer.run(poll_s=0.05))
            await there.until(3)
            post.deliverer.stop()
    assert len({got.headers["webhook-id"] for got in there.requests}) == 3
