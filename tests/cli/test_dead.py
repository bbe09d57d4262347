"""`xnai dead` and `xnai operations` against a running API and ticker."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from jobs import dispatch
from jobs.live import LiveStream
from jobs.lookup import PAGE_ROWS
from jobs.model import NewJob
from jobs.operation_ticker import OperationTicker
from jobs.outcomes import Failed, Problem
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings, load_settings
from tests.api.live_server import running
from tests.jobs.desk import Desk, probe

pytestmark = pytest.mark.anyio

# Dead letters that go before every other in a list.
NEWER = """
INSERT INTO history (tenant_id, id, finished_at, state, kind, pool, payload, priority, run_at,
    created_at, max_attempts, attempt, failures, losses, tags, lineage, on_parent_failure,
    has_family, error)
SELECT 1, ('ffffffff-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, now(), 'failed', 'embed',
    'embed', '{}', 4, now(), now(), 3, 1, 0, 0, '{}', '{}', 'run', false, '{"type": "broken"}'
FROM generate_series(1, $1::int) AS n
"""


@dataclass(slots=True)
class Shell:
    """Runs commands as a user who has the admin key."""

    settings: Settings

    async def __call__(self, *words: str, code: int = 0, stdin: str | None = None) -> Result:
        invoke = partial(CliRunner().invoke, app, list(words), obj=self.settings, input=stdin)
        result = await anyio.to_thread.run_sync(invoke)
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    async def json(self, *words: str, code: int = 0) -> Any:
        return json.loads((await self(*words, "--json", code=code)).stdout)


@pytest.fixture
async def shell(settings: Settings, db: Pool, redis: Client) -> AsyncIterator[Shell]:
    """A user's shell beside an API of its own, and a ticker that works operations off."""
    ticker = OperationTicker(db, LiveStream(redis), partial(dispatch.announce, redis))
    async with running(settings) as (url, key), anyio.create_task_group() as group:
        group.start_soon(partial(ticker.run, poll_s=0.05))
        yield Shell(load_settings(data_dir=settings.data_dir, api_url=url, api_key=key))
        group.cancel_scope.cancel()


@pytest.fixture
def desk(db: Pool) -> Desk:
    return Desk(db)


async def dead_letters(desk: Desk, *jobs: NewJob, type_: str = "broken") -> list[str]:
    accepted = await desk.enqueue(*jobs)
    slot = await desk.slot()
    while claimed := await desk.claim(slot):
        await desk.end(slot, claimed, Failed(Problem(type_, "it broke", retryable=False)))
    return [str(job.id) for job in accepted]


def ids(rows: list[dict[str, Any]]) -> set[str]:
    return {row["id"] for row in rows}


async def test_dead_letters_are_listed_shown_retried_and_discarded_by_id(
    shell: Shell, desk: Desk
) -> None:
    one, other, third = await dead_letters(desk, probe(), probe(tags=("t",)), probe())
    torn = await dead_letters(desk, probe(), type_="torn")
    assert ids(await shell.json("dead", "list")) == {one, other, third, *torn}
    assert ids(await shell.json("dead", "list", "--error", "torn")) == set(torn)
    assert ids(await shell.json("dead", "list", "--tag", "t")) == {other}
    assert "broken: it broke" in (await shell("dead", "list")).stdout
    shown = await shell.json("dead", "show", one)
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["failed"]
    assert "discarded" in (await shell("dead", "discard", one, other)).stdout
    assert ids(await shell.json("dead", "list")) == {third, *torn}
    assert ids(await shell.json("dead", "list", "--discarded")) == {one, other}
    retried = await shell.json("dead", "retry", one, third)
    assert {job["state"] for job in retried} == {"queued"}
    # What one refuses does not keep the others.
    failed = await shell("dead", "discard", one, torn[0], code=1)
    assert torn[0] in failed.stdout
    assert "only failed jobs" in failed.stderr
    assert "no dead letters" in (await shell("dead", "list")).stdout


async def test_a_rare_error_is_found_behind_more_jobs_than_a_page_looks_at(
    shell: Shell, desk: Desk, db: Pool
) -> None:
    torn = await dead_letters(desk, probe(), type_="torn")
    await db.execute(NEWER, PAGE_ROWS + 1)
    assert ids(await shell.json("dead", "list", "--error", "torn")) == set(torn)
    assert ids(await shell.json("jobs", "list", "--kind", "probe", "--limit", "1")) == set(torn)


async def test_what_matches_is_retried_by_an_operation_and_followed(
    shell: Shell, desk: Desk
) -> None:
    own = await dead_letters(desk, *(probe() for _ in range(12)))
    torn = await dead_letters(desk, probe(), type_="torn")
    shown = await shell("dead", "retry", "--error", "broken", "--dry-run")
    assert "12 jobs match" in shown.stdout
    found = await shell.json("dead", "retry", "--error", "broken", "--dry-run")
    assert (found["matched"], found["at_least"], len(found["sample"])) == (12, False, 10)
    done = await shell.json("dead", "retry", "--error", "broken", "--yes")
    assert (done["state"], done["counts"]["done"]) == ("succeeded", 12)
    assert set(await desk.states(*map(UUID, own))) == {"queued"}
    (listed,) = await shell.json("operations", "list")
    assert listed == done
    assert await shell.json("operations", "watch", done["id"]) == done
    assert "retry" in (await shell("operations", "list")).stdout
    gone = await shell("dead", "discard", "--all", "--yes")
    assert "succeeded" in gone.stdout
    assert ids(await shell.json("dead", "list", "--discarded")) == set(torn)
    assert "0 jobs match" in (await shell("dead", "discard", "--all")).stdout


async def test_operations_are_started_shown_and_cancelled(shell: Shell, desk: Desk) -> None:
    keep, drop = await desk.enqueue(probe(), probe(tags=("x",)))
    words = ("operations", "start", "cancel", "--tag", "x", "--state", "queued")
    done = await shell.json(*words, "--yes")
    assert done["filter"] == {"state": "queued", "tags": ["x"]}
    assert await desk.states(keep.id, drop.id) == ["queued", "cancelled"]
    assert await shell.json("operations", "show", done["id"]) == done
    assert (await shell.json("operations", "cancel", done["id"]))["state"] == "succeeded"
    started = await shell.json("operations", "start", "retry", "--all", "--yes", "--no-wait")
    assert started["counts"]["done"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dead", "retry"), "--all"),
        (("dead", "discard", "x", "--kind", "crawl"), "not both"),
        (("operations", "start", "cancel"), "--all"),
        (("operations", "start", "explode", "--all"), "explode"),
    ],
)
async def test_nothing_is_meant_by_nothing(
    settings: Settings, words: tuple[str, ...], said: str
) -> None:
    result = await Shell(settings)(*words, code=2)
    assert said in result.stderr


async def test_without_a_terminal_nobody_is_asked(shell: Shell, desk: Desk) -> None:
    own = await dead_letters(desk, probe())
    result = await shell("dead", "retry", "--kind", "probe", code=2)
    assert "--yes" in result.stderr
    assert await desk.states(*map(UUID, own)) == ["failed"]


async def test_a_paused_pool_tells_by_whom_and_why(shell: Shell) -> None:
    await shell("pools", "pause", "embed", "--reason", "repairs")
    (paused,) = (row for row in await shell.json("pools", "list") if row["name"] == "embed")
    assert (paused["paused_by"], paused["paused_reason"]) == ("admin.key", "repairs")
    assert paused["paused_at"] is not None
    assert "repairs" in (await shell("pools")).stdout
    await shell("pools", "resume", "embed")
    assert "repairs" not in (await shell("pools")).stdout
