"""Slots that are renewed in time, and code that is older than its neighbour's."""

import itertools

import pytest

from jobs.model import NewJob
from tests.crash.conftest import Scene, probe
from tests.workers.conftest import StartWork

pytestmark = pytest.mark.anyio

POOLS = {"XNAI_POOLS": "probe=2x1"}


async def ended_for(scene: Scene, reason: str) -> int:
    async with scene.db.acquire() as connection:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM slots WHERE end_reason = $1", reason
        )
    return count


@pytest.mark.parametrize(
    ("reason", "setting", "limit"),
    [
        ("jobs", "XNAI_RECYCLE_JOBS", "100"),
        ("rss", "XNAI_RECYCLE_RSS_MB", "1"),
        ("age", "XNAI_RECYCLE_AGE_S", "0.5"),
    ],
)
async def test_worn_slots_are_renewed_one_at_a_time_and_lose_nothing(
    scene: Scene, start_work: StartWork, reason: str, setting: str, limit: str
) -> None:
    ids = await scene.submit(*(probe(sleep_s=0.05) for _ in range(600)))
    start_work("probe", **scene.environment | POOLS | {setting: limit})
    await scene.ended(ids)
    while await ended_for(scene, reason) < 2:
        await scene.ended(await scene.submit(*(probe() for _ in range(50))))
    assert await scene.losses() == 0
    async with scene.db.acquire() as connection:
        rows = await connection.fetch(
            "SELECT started_at, ended_at FROM slots WHERE pool = 'probe' ORDER BY id"
        )
    ends = sorted(row["ended_at"] for row in rows if row["ended_at"] is not None)
    for one, following in itertools.pairwise(ends):
        # Whoever was renewed was back before it was the next one's turn.
        assert any(one < row["started_at"] < following for row in rows)


async def test_old_code_leaves_the_kinds_of_new_code_alone(
    scene: Scene, start_work: StartWork
) -> None:
    pools = {"XNAI_POOLS": "probe=1x1,shared=1x1"}
    old = {name: value for name, value in scene.environment.items() if name != "XNAI_KINDS"}
    start_work("probe", "shared", **old | pools)
    await scene.until_live(lambda live: [one.state for one in live] == ["live"] * 2)
    (scene.folder / "go").touch()
    new = await scene.submit(
        *(NewJob("effect-shared", {"folder": str(scene.folder)}) for _ in range(5))
    )
    both = await scene.submit(*(probe() for _ in range(50)))
    await scene.ended(both)
    assert await scene.effects() == []
    start_work("probe", "shared", **scene.environment | pools)
    jobs = await scene.ended(new)
    kinds = {one.id: one.kinds for one in await scene.live()}
    assert all("effect-shared" in kinds[job.slot_id] for job in jobs if job.slot_id)
    assert await scene.effects() == [1] * 5
