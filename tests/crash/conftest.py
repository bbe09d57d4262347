"""Supervisors to be killed and stopped, with kinds that misbehave, and the rows that they write."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import anyio
import psutil
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from jobs import ledger, lookup, slots
from jobs.kinds import load_kinds
from jobs.model import DEFAULT_TENANT, Job, JsonObject, NewJob
from jobs.states import JobState
from runtime.postgres import Pool
from tests.workers.conftest import start_work

__all__ = ["start_work"]

KINDS_MODULE = "tests.crash.kinds"
KINDS = load_kinds((KINDS_MODULE,))
WITHIN_S = 30.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here kills or stops something."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.crash)


@dataclass(frozen=True, slots=True)
class Scene:
    """The ledger as the tests of this folder look at it, and where processes count."""

    db: Pool
    folder: Path
    metrics: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a supervisor needs to take part."""
        return {
            "XNAI_KINDS": KINDS_MODULE,
            "XNAI_POOLS": "alone=1x1,shared=1x1,probe=1x1",
            "XNAI_SWEEP_S": "0.2",
            "XNAI_POLL_S": "0.2",
            "PROMETHEUS_MULTIPROC_DIR": str(self.metrics),
        }

    async def submit(self, *jobs: NewJob) -> list[UUID]:
        """Enqueue; answers the ids."""
        async with self.db.acquire() as connection:
            accepted = await ledger.enqueue(connection, DEFAULT_TENANT, jobs, kinds=KINDS)
        return [job.id for job in accepted]

    async def effect(self, pool: str) -> UUID:
        """Enqueue a job whose first attempt waits for `go`, and wait until it does."""
        (job_id,) = await self.submit(NewJob(f"effect-{pool}", {"folder": str(self.folder)}))
        await until(self.began(1).exists)
        return job_id

    def began(self, attempt: int) -> Path:
        """The sign that an attempt of `effect` runs."""
        return self.folder / f"began-{attempt}"

    async def ended(self, ids: list[UUID], *states: JobState) -> list[Job]:
        """Wait until all jobs are in one of these states (default: succeeded)."""
        wanted = states or (JobState.SUCCEEDED,)
        with anyio.fail_after(WITHIN_S):
            while True:
                async with self.db.acquire() as connection:
                    jobs = await lookup.get_many(connection, DEFAULT_TENANT, ids)
                if all(job.state in wanted for job in jobs):
                    return jobs
                await anyio.sleep(0.02)

    async def losses(self) -> int:
        """Lives that jobs have lost, the finished ones included."""
        async with self.db.acquire() as connection:
            found: int = await connection.fetchval(
                "SELECT coalesce((SELECT sum(losses) FROM jobs), 0)"
                " + coalesce((SELECT sum(losses) FROM history), 0)"
            )
        return found

    async def effects(self) -> list[int]:
        """The attempts whose write was let through."""
        async with self.db.acquire() as connection:
            return [row["attempt"] for row in await connection.fetch("SELECT * FROM effects")]

    async def live(self) -> list[slots.Slot]:
        """Every live slot."""
        async with self.db.acquire() as connection:
            return await slots.live(connection)

    async def until_live(self, found: Callable[[list[slots.Slot]], bool]) -> None:
        """Wait until the live slots are as told."""
        with anyio.fail_after(WITHIN_S):
            while not found(await self.live()):  # noqa: ASYNC110 - the ledger tells
                await anyio.sleep(0.02)

    def counted(self, name: str) -> float:
        """A counter over all processes, dead and alive."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self.metrics))  # type: ignore[no-untyped-call] # has no types
        return sum(
            sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if sample.name == name
        )


@pytest.fixture
async def scene(db: Pool, tmp_path: Path) -> AsyncIterator[Scene]:
    """A ledger with a table of effects beside it."""
    folders = [tmp_path / name for name in ("signs", "metrics")]
    for folder in folders:
        folder.mkdir()
    async with db.acquire() as connection:
        await connection.execute("CREATE TABLE effects (job_id uuid, attempt int)")
    yield Scene(db, *folders)
    async with db.acquire() as connection:
        await connection.execute("DROP TABLE effects")


def slot_processes(supervisor_pid: int, pool: str = "") -> list[psutil.Process]:
    """The slots that a supervisor runs."""
    return [
        child
        for child in psutil.Process(supervisor_pid).children()
        if f"work {pool}" in " ".join(child.cmdline())
    ]


async def until(is_true: Callable[[], bool]) -> None:
    """Poll what no signal tells."""
    with anyio.fail_after(WITHIN_S):
        while not is_true():  # noqa: ASYNC110 - other processes
            await anyio.sleep(0.02)


def probe(**payload: float | str) -> NewJob:
    """A job that does as it is told."""
    fields: JsonObject = dict(payload)
    return NewJob("probe", fields)


@pytest.fixture(autouse=True)
def _no_inherited_metrics() -> Iterator[None]:
    """Tests give their processes a folder of their own."""
    kept = os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    yield
    if kept is not None:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = kept
