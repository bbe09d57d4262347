"""Follow-up jobs and settling."""

import pytest

from jobs import events, ledger
from jobs.errors import Cancel
from jobs.events import EventScope
from jobs.model import DEFAULT_TENANT, NewJob, Unique
from jobs.outcomes import Completed
from tests.jobs.desk import DONE, HOPELESS, Desk, probe

pytestmark = pytest.mark.anyio

CALLBACK = "https://example.org/hook"


async def test_a_crawl_is_settled_when_its_embed_and_index_are(desk: Desk) -> None:
    (crawl,) = await desk.enqueue(
        NewJob("crawl", {"url": "https://example.org/"}, callback_url=CALLBACK)
    )
    crawler, embedder, indexer = [await desk.slot(pool) for pool in ("crawl", "embed", "index")]
    (job,) = await desk.claim(crawler, pool="crawl")
    async with desk.pool.acquire() as connection, connection.transaction():
        await ledger.assert_held(connection, job.id, job.token)
        (embed,) = await ledger.enqueue_follow_ups(
            connection, job, [NewJob("embed", {"document_ids": []})], kinds=desk.kinds
        )
    recorded = await desk.end(crawler, [job], Completed({"pages": {}}))
    assert not recorded.settled
    found = await desk.get(crawl.id)
    assert (found.state, found.settled, found.follow_ups.queued) == ("succeeded", False, 1)

    embeds = await desk.claim(embedder, pool="embed")
    assert [(job.id, job.lineage) for job in embeds] == [(embed.id, (crawl.id,))]
    recorded = await desk.end(
        embedder, embeds, Completed(None, (NewJob("index", {"rebuild": True}),))
    )
    assert not recorded.settled
    indexes = await desk.claim(indexer, pool="index")
    assert indexes[0].lineage == (crawl.id, embed.id)
    assert (await desk.get(crawl.id)).follow_ups.running == 1
    recorded = await desk.end(indexer, indexes)
    assert set(recorded.settled) == {crawl.id, embed.id, indexes[0].id}

    final = await desk.get(crawl.id)
    assert final.settled
    assert (final.follow_ups.total, final.follow_ups.succeeded) == (2, 2)
    async with desk.pool.acquire() as connection:
        owed = await connection.fetch("SELECT url, type, data FROM outbox")
        told = await events.after(connection, EventScope(DEFAULT_TENANT, job_id=crawl.id), None)
    assert [(row["url"], row["type"], row["data"]["id"]) for row in owed] == [
        (CALLBACK, "job.settled", str(crawl.id))
    ]
    assert [event.type for event in told] == ["job.succeeded", "job.settled"]


async def test_a_job_whose_follow_ups_were_all_there_already_is_settled(desk: Desk) -> None:
    (held,) = await desk.enqueue(probe(unique=Unique("same")))
    (parent,) = await desk.enqueue(probe(priority=9, callback_url=CALLBACK))
    slot = await desk.slot()
    jobs = await desk.claim(slot, 1)
    assert [job.id for job in jobs] == [parent.id]
    recorded = await desk.end(slot, jobs, Completed(1, (probe(unique=Unique("same")),)))
    assert recorded.settled == (parent.id,)
    found = await desk.get(parent.id)
    assert (found.settled, found.follow_ups.total) == (True, 0)
    async with desk.pool.acquire() as connection:
        assert await connection.fetchval("SELECT count(*) FROM outbox") == 1
        told = await events.after(connection, EventScope(DEFAULT_TENANT, job_id=parent.id), None)
    assert [event.type for event in told] == ["job.succeeded", "job.settled"]
    assert (await desk.get(held.id)).state == "queued"


async def test_a_job_without_follow_ups_is_settled_at_once_and_called_back(desk: Desk) -> None:
    await desk.enqueue(probe(callback_url=CALLBACK), probe())
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), HOPELESS)
    async with desk.pool.acquire() as connection:
        owed = await connection.fetch("SELECT data FROM outbox")
    assert [row["data"]["state"] for row in owed] == ["failed"]


async def test_follow_ups_of_a_lost_attempt_are_not_written(desk: Desk) -> None:
    await desk.enqueue(probe())
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    await desk.end(slot, jobs, DONE)
    await desk.end(slot, jobs, Completed(1, (probe(),)))
    assert await desk.claim(slot) == []


async def test_a_job_asked_to_cancel_creates_no_more(desk: Desk) -> None:
    await desk.enqueue(probe())
    (job,) = await desk.claim(await desk.slot())
    async with desk.pool.acquire() as connection:
        await ledger.cancel(connection, DEFAULT_TENANT, [job.id])
        transaction = connection.transaction()
        await transaction.start()
        await ledger.assert_held(connection, job.id, job.token)
        with pytest.raises(Cancel):
            await ledger.enqueue_follow_ups(connection, job, [probe()], kinds=desk.kinds)
        await transaction.rollback()


async def test_follow_ups_may_be_held_back_like_any_job(desk: Desk) -> None:
    await desk.enqueue(probe())
    slot = await desk.slot()
    children = (
        probe(custom_id="a"),
        probe(depends_on=("a",)),
        probe(delay_s=60),
        probe(concurrency_key="k"),
        probe(concurrency_key="k"),
    )
    (root,) = await desk.claim(slot)
    await desk.end(slot, [root], Completed(1, children))
    counts = (await desk.get(root.id)).follow_ups
    assert (counts.total, counts.queued, counts.scheduled) == (5, 2, 3)
