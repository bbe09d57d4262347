"""Events become rows of the outbox: each for each endpoint that wants it, exactly once."""

from datetime import timedelta

import anyio
import pytest

from jobs import events
from jobs.events import NewEvent
from jobs.model import DEFAULT_TENANT, TenantId
from runtime.ids import uuid7
from runtime.postgres import Connection
from tests.webhooks.conftest import LOCAL, Post
from webhooks import deliveries, endpoints, outbox
from webhooks.endpoints import EndpointSpec

pytestmark = pytest.mark.anyio

URL = "https://example.org/hook"


async def tell(connection: Connection, type_: str, **data: str) -> None:
    await events.add(connection, [NewEvent(DEFAULT_TENANT, type_, data)])


async def owed(connection: Connection) -> list[tuple[str, str]]:
    """(type, url) of what lies in the outbox, sorted."""
    rows = await connection.fetch("SELECT type, url FROM outbox ORDER BY type, url")
    return [(row["type"], row["url"]) for row in rows]


async def fan_out(connection: Connection) -> int:
    total = 0
    while (answer := await outbox.fan_out(connection))[0]:
        total += answer[1]
    return total


async def test_only_what_an_endpoint_wants_is_owed_to_it(post: Post) -> None:
    await post.endpoint(URL + "/all")
    await post.endpoint(URL + "/documents", "document.*")
    await post.endpoint(URL + "/failed", "job.failed", "document.created")
    async with post.pool.acquire() as connection:
        await tell(connection, "document.created", id="a")
        await tell(connection, "document.changed", id="a")
        await tell(connection, "job.failed")
        assert await fan_out(connection) == 7
        assert await owed(connection) == [
            ("document.changed", URL + "/all"),
            ("document.changed", URL + "/documents"),
            ("document.created", URL + "/all"),
            ("document.created", URL + "/documents"),
            ("document.created", URL + "/failed"),
            ("job.failed", URL + "/all"),
            ("job.failed", URL + "/failed"),
        ]
        assert await fan_out(connection) == 0


async def test_an_end_that_settled_its_job_is_two_events(post: Post) -> None:
    await post.endpoint(URL, "job.settled")
    await post.endpoint(URL + "/all")
    job_id = uuid7()
    async with post.pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO events (tenant_id, type, kind, job_id, settled)"
            " VALUES (1, 'job.succeeded', 'probe', $1, true)",
            job_id,
        )
        await fan_out(connection)
        assert await owed(connection) == [
            ("job.settled", URL), ("job.settled", URL + "/all"), ("job.succeeded", URL + "/all"),
        ]  # fmt: skip
        data = await connection.fetchval("SELECT data FROM outbox LIMIT 1")
    assert data == {"job_id": str(job_id), "kind": "probe"}


async def test_neither_past_events_nor_other_tenants_nor_disabled_endpoints(post: Post) -> None:
    async with post.pool.acquire() as connection:
        await tell(connection, "job.failed", when="before")
        await post.endpoint(URL)
        disabled, _ = await post.endpoint(URL + "/disabled")
        spec = EndpointSpec(disabled.url, ("*",), enabled=False)
        await endpoints.update(connection, DEFAULT_TENANT, disabled.id, spec, policy=LOCAL)
        await events.add(connection, [NewEvent(TenantId(2), "job.failed", {})])
        await tell(connection, "job.failed", when="after")
        assert await fan_out(connection) == 1
        assert await connection.fetchval("SELECT data ->> 'when' FROM outbox") == "after"


async def test_a_transaction_that_commits_late_is_not_skipped(post: Post) -> None:
    """Its events have smaller numbers than ones that were read before it committed."""
    await post.endpoint(URL)
    async with post.pool.acquire() as early, post.pool.acquire() as late:
        slow = late.transaction()
        await slow.start()
        await tell(late, "job.failed", order="first")
        await tell(early, "job.failed", order="second")
        assert await fan_out(early) == 0, "nothing beyond the oldest open transaction is read"
        await slow.commit()
        assert await fan_out(early) == 2


async def test_readers_at_once_owe_each_event_once(post: Post) -> None:
    await post.endpoint(URL)
    await post.endpoint(URL + "/2")
    async with post.pool.acquire() as connection:
        for number in range(60):
            await tell(connection, "job.failed", n=str(number))

    async def read() -> None:
        async with post.pool.acquire() as connection:
            for _ in range(30):
                await outbox.fan_out(connection, page=7)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(read)
    async with post.pool.acquire() as connection:
        await fan_out(connection)
        rows = await connection.fetch("SELECT url, data ->> 'n' AS n FROM outbox")
    assert len(rows) == len({(row["url"], row["n"]) for row in rows}) == 120


async def test_a_rolled_back_reading_is_read_again(post: Post) -> None:
    await post.endpoint(URL)
    async with post.pool.acquire() as connection:
        await tell(connection, "job.failed")
        dying = connection.transaction()
        await dying.start()
        assert await outbox.fan_out(connection) == (1, 1)
        await dying.rollback()
        assert await owed(connection) == []
        assert await fan_out(connection) == 1


async def test_a_cursor_from_another_cluster_goes_on_from_here(post: Post) -> None:
    """After a restore, the numbers of transactions start lower than those that were kept."""
    await post.endpoint(URL)
    async with post.pool.acquire() as connection:
        await tell(connection, "job.failed", when="before")
        assert await fan_out(connection) == 1
        await connection.execute("UPDATE webhook_cursor SET xid = '999999999999'")
        await tell(connection, "job.failed", when="after")
        assert await fan_out(connection) == 1
        told = await connection.fetch("SELECT data ->> 'when' AS at FROM outbox")
        assert sorted(row["at"] for row in told) == ["after", "before"]
        await tell(connection, "job.failed")
        assert await fan_out(connection) == 1


async def test_pruning_forgets_finished_deliveries_and_their_log(post: Post) -> None:
    async with post.pool.acquire() as connection:
        (now,) = [await outbox.database_now(connection)]
        for days in (0, 8):
            await connection.execute(
                "INSERT INTO deliveries (id, tenant_id, url, type, occurred_at, data, attempt,"
                " failures, state, finished_at)"
                " VALUES (gen_random_uuid(), 1, $1, 'x', $2, '{}', 1, 0, 'delivered', $2)",
                URL, now - timedelta(days=days),
            )  # fmt: skip
        assert await deliveries.prune(connection, before=now - timedelta(days=7)) == 1
        assert await deliveries.prune(connection, before=now - timedelta(days=7)) == 0
        assert len((await deliveries.find(connection, DEFAULT_TENANT)).deliveries) == 1
