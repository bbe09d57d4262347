"""`depends_on` and what becomes of children."""

import time
from collections.abc import Awaitable, Callable
from uuid import UUID

import anyio
import pytest

from jobs import dependencies, ledger
from jobs.model import DEFAULT_TENANT
from jobs.outcomes import Ending
from jobs.results import Ended
from jobs.states import OnParentFailure, ScheduledReason
from runtime.postgres import Connection
from tests.jobs.desk import DONE, HOPELESS, Desk, probe

pytestmark = pytest.mark.anyio


async def test_a_child_waits_for_all_its_parents(desk: Desk) -> None:
    a, b, child = await desk.enqueue(
        probe(custom_id="a"), probe(custom_id="b"), probe(depends_on=("a", "b"))
    )
    assert (await desk.get(child.id)).state_reason is ScheduledReason.DEPENDENCY
    slot = await desk.slot()
    one, other = await desk.claim(slot)
    assert [one.id, other.id] == [a.id, b.id]
    assert not (await desk.end(slot, [one])).ready
    assert (await desk.end(slot, [other])).ready == {"probe": (child.id,)}


async def test_ids_of_earlier_jobs_are_parents_too(desk: Desk) -> None:
    (done,) = await desk.enqueue(probe())
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot))
    (live,) = await desk.enqueue(probe())
    (child,) = await desk.enqueue(probe(depends_on=(str(done.id), str(live.id))))
    assert child.state == "scheduled"
    recorded = await desk.end(slot, await desk.claim(slot))
    assert recorded.ready == {"probe": (child.id,)}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (OnParentFailure.RUN, ["queued", "scheduled"]),
        (OnParentFailure.CANCEL, ["cancelled", "cancelled"]),
        (OnParentFailure.FAIL, ["failed", "failed"]),
    ],
)
async def test_a_failed_parent_decides_for_the_whole_chain(
    desk: Desk, policy: OnParentFailure, expected: list[str]
) -> None:
    _, child, grandchild = await desk.enqueue(
        probe(custom_id="a"),
        probe(custom_id="b", depends_on=("a",), on_parent_failure=policy),
        probe(custom_id="c", depends_on=("b",), on_parent_failure=policy),
    )
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), HOPELESS)
    assert await desk.states(child.id, grandchild.id) == expected


async def test_a_child_in_the_future_waits_for_its_time_after_its_parents(desk: Desk) -> None:
    _, child = await desk.enqueue(probe(custom_id="a"), probe(depends_on=("a",), delay_s=3600))
    slot = await desk.slot()
    recorded = await desk.end(slot, await desk.claim(slot))
    assert not recorded.ready
    assert (await desk.get(child.id)).state_reason is ScheduledReason.DELAYED


async def test_a_fan_in_of_a_thousand_runs_within_a_second_of_the_last(desk: Desk) -> None:
    parents = [probe(custom_id=f"p{n}") for n in range(1000)]
    accepted = await desk.enqueue(*parents, probe(depends_on=tuple(f"p{n}" for n in range(1000))))
    child = accepted[-1].id
    slots = [await desk.slot(), await desk.slot()]
    readied: list[object] = []
    ended_at: list[float] = []

    async def drain(number: int) -> None:
        while jobs := await desk.claim(slots[number], 50):
            if jobs[0].id == child:
                return
            recorded = await desk.end(slots[number], jobs, DONE)
            ended_at.append(time.monotonic())
            readied.extend(recorded.ready.get("probe", ()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain, 0)
        tasks.start_soon(drain, 1)
    assert readied == [child]
    assert (await desk.get(child)).state in {"queued", "running"}
    assert time.monotonic() - max(ended_at) < 1


async def test_a_cancelled_child_does_not_trouble_its_parent(desk: Desk) -> None:
    parent, child = await desk.enqueue(probe(custom_id="a"), probe(depends_on=("a",)))
    async with desk.pool.acquire() as connection:
        result = await ledger.cancel(connection, DEFAULT_TENANT, [child.id])
        # The edge stays until the parent ends, and nobody looks at it.
        await connection.execute("DELETE FROM dependencies")
    assert result.cancelled == (child.id,)
    slot = await desk.slot()
    recorded = await desk.end(slot, await desk.claim(slot))
    assert not recorded.ready
    assert await desk.states(parent.id, child.id) == ["succeeded", "cancelled"]


async def test_a_thousand_children_of_one_parent_are_queued_by_its_end(desk: Desk) -> None:
    children = [probe(depends_on=("p",)) for _ in range(1000)]
    accepted = await desk.enqueue(probe(custom_id="p"), *children)
    slot = await desk.slot()
    (parent,) = await desk.claim(slot)
    recorded = await desk.end(slot, [parent])
    assert set(recorded.ready["probe"]) == {job.id for job in accepted[1:]}
    assert len(await desk.claim(slot, 2000)) == 1000


_BLOCKED = "SELECT cardinality(pg_blocking_pids($1)) > 0"


async def _until_blocked(desk: Desk, pid: int) -> None:
    """Return once the backend waits for a lock."""
    async with desk.pool.acquire() as connection:
        while not await connection.fetchval(_BLOCKED, pid):  # noqa: ASYNC110 - only Postgres knows
            await anyio.sleep(0.005)


@pytest.mark.parametrize("ending", [DONE, HOPELESS], ids=["succeeds", "fails"])
async def test_a_parent_that_ends_while_its_child_is_enqueued_is_not_missed(
    desk: Desk, ending: Ending
) -> None:
    """Whoever locks the parent first, the other one waits and then sees what it did."""
    parents = await desk.enqueue(probe(), probe())
    slot = await desk.slot()
    claimed = {job.id: job for job in await desk.claim(slot)}
    children: list[UUID] = []

    async def enqueue(connection: Connection, parent: UUID) -> None:
        child = probe(depends_on=(str(parent),), on_parent_failure=OnParentFailure.FAIL)
        (job,) = await ledger.enqueue(connection, DEFAULT_TENANT, [child], kinds=desk.kinds)
        children.append(job.id)

    async def end(connection: Connection, parent: UUID) -> None:
        ended = [Ended(claimed[parent], ending, 0.1)]
        await ledger.record(connection, slot, ended, kinds=desk.kinds, rng=desk.rng)

    for (first, second), parent in zip(((enqueue, end), (end, enqueue)), parents, strict=True):
        async with desk.pool.acquire() as one, desk.pool.acquire() as other:
            pid = await other.fetchval("SELECT pg_backend_pid()")
            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks, one.transaction():
                    await first(one, parent.id)
                    tasks.start_soon(second, other, parent.id)
                    await _until_blocked(desk, pid)
    wanted = "queued" if ending is DONE else "failed"
    assert await desk.states(*children) == [wanted, wanted]


class _Retrying:
    """A connection on which a parent is retried right after the live ones were looked at."""

    def __init__(self, connection: Connection, meanwhile: Callable[[], Awaitable[object]]) -> None:
        self._connection = connection
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    async def fetch(self, query: str, *arguments: object) -> object:
        rows = await self._connection.fetch(query, *arguments)
        if query == dependencies.QUERIES["lock_parents"]:
            await self._meanwhile()
        return rows


async def test_a_parent_that_lives_again_between_two_looks_is_found(desk: Desk) -> None:
    (parent,) = await desk.enqueue(probe())
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), HOPELESS)
    child = probe(depends_on=(str(parent.id),))
    async with desk.pool.acquire() as connection, desk.pool.acquire() as other:
        retrying = _Retrying(connection, lambda: ledger.retry(other, DEFAULT_TENANT, [parent.id]))
        (accepted,) = await ledger.enqueue(
            retrying,  # type: ignore[arg-type]  # all of a connection, by delegation
            DEFAULT_TENANT,
            [child],
            kinds=desk.kinds,
        )
    assert (await desk.get(accepted.id)).state_reason is ScheduledReason.DEPENDENCY
