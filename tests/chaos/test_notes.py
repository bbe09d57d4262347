"""Notes of handlers survive them, effects tell who wrote them, and a story is told in order."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from chaos import effects, journal, report
from chaos.history import AcceptedJob, ClientLog, Effect, History, Run
from jobs.model import SlotId, Token

pytestmark = pytest.mark.anyio


def run_of(data_dir: Path, token: int) -> Any:  # a Run needs a whole slot; noting needs four fields
    job = SimpleNamespace(id=uuid4(), token=token, attempt=1, slot_id=7)
    services = SimpleNamespace(settings=SimpleNamespace(data_dir=data_dir))
    return SimpleNamespace(job=job, services=services)


def test_run_is_noted_with_its_beginning_and_end(tmp_path: Path) -> None:
    run = run_of(tmp_path, 41)
    with journal.noted(run):
        (begun,) = journal.read(tmp_path)
        assert begun.ended_at is None
    (ended,) = journal.read(tmp_path)
    assert (ended.job_id, ended.token, ended.slot_id) == (run.job.id, 41, 7)
    assert ended.ended_at is not None
    assert ended.began_at <= ended.ended_at


def test_run_that_raises_is_noted_as_ended(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="told to"), journal.noted(run_of(tmp_path, 42)):
        raise ValueError("told to")
    (ended,) = journal.read(tmp_path)
    assert ended.ended_at is not None


def test_notes_are_of_each_process_alone(tmp_path: Path) -> None:
    with journal.noted(run_of(tmp_path, 43)):
        pass
    (file,) = (tmp_path / journal.FOLDER).iterdir()
    assert file.name.startswith(f"{os.getpid()}-")


async def add_finished(
    connection: "asyncpg.Connection[asyncpg.Record]", job_id: UUID, state: str
) -> None:
    await connection.execute(
        "INSERT INTO history (tenant_id, id, finished_at, state, kind, pool, payload, priority,"
        " run_at, created_at, max_attempts, attempt, failures, losses, tags, lineage,"
        " on_parent_failure, has_family)"
        " VALUES (1, $1, now(), $2, 'effect', 'chaos', '{}', 4, now(), now(), 4, 1, 0, 0, '{}',"
        " '{}', 'cancel', false)",
        job_id,
        state,
    )


async def test_effects_that_count_are_of_successes_and_of_doubles(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    done, failed, doubled = uuid4(), uuid4(), uuid4()
    transaction = connection.transaction()
    await transaction.start()
    await effects.create_table(connection)
    for job_id, state in ((done, "succeeded"), (failed, "failed"), (doubled, "failed")):
        await add_finished(connection, job_id, state)
    for job_id, token in ((done, 1), (failed, 2), (doubled, 3), (doubled, 4)):
        await connection.execute(effects.QUERIES["write_effect"], job_id, token, 1)
    found = {(effect.job_id, effect.token) for effect in await effects.read(connection)}
    await transaction.rollback()
    assert found == {(done, 1), (doubled, 3), (doubled, 4)}


def test_story_of_a_job_is_told_in_the_order_of_time() -> None:
    job_id, at = uuid4(), datetime(2026, 5, 4, tzinfo=UTC)
    log = ClientLog(
        accepted=(AcceptedJob(job_id, at, "key-1"), AcceptedJob(uuid4(), at)),
        runs=(
            Run(job_id, Token(9), 2, SlotId(3), at + timedelta(seconds=5)),
            Run(job_id, Token(8), 1, SlotId(1), at + timedelta(seconds=1)),
        ),
        effects=(Effect(job_id, Token(9), 2),),
    )
    slots = {SlotId(1): at + timedelta(seconds=3), SlotId(3): None}
    told = report.story(History(log=log, slots=slots), job_id)
    assert [line.partition("  ")[2] or line for line in told] == [
        "accepted, Idempotency-Key key-1",
        "handler began: attempt 1, token 8, slot 1",
        "slot 1 declared dead",
        "handler began: attempt 2, token 9, slot 3",
        "effect of attempt 2, token 9",
    ]
