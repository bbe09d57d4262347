"""The example of the documentation, run by a real worker in a pool of its own."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import anyio
import pytest
from pydantic import ValidationError

from jobs import dispatch, ledger, lookup
from jobs.kinds import KindRegistry, load_kinds
from jobs.live import CHANNEL
from jobs.model import DEFAULT_TENANT, Job, JsonObject, NewJob
from jobs.states import JobState
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.support.repository import ROOT

pytestmark = pytest.mark.anyio

MODULE = "examples.own_kind"
TEXT = "To be, or not to be:\nthat is the question."
UNTIL_DONE_S = 60.0


@pytest.fixture
def kinds() -> KindRegistry:
    return load_kinds([MODULE])


@asynccontextmanager
async def _worker(settings: Settings) -> AsyncIterator[None]:
    """`xnai work words`, as an operator starts it, ended by SIGTERM."""
    environment = os.environ | {
        "XNAI_DATA_DIR": str(settings.data_dir),
        "XNAI_DATABASE_URL": str(settings.database_url),
        "XNAI_REDIS_URL": str(settings.redis_url),
        "XNAI_KINDS": MODULE,
        "XNAI_POOLS": "words=1x1",
    }
    command = [sys.executable, "-m", "cli.roles", "work", "words"]
    async with await anyio.open_process(
        command, cwd=ROOT, env=environment, stdout=None, stderr=None
    ) as process:
        try:
            yield
        finally:
            process.terminate()
            with anyio.CancelScope(shield=True), anyio.fail_after(UNTIL_DONE_S):
                await process.wait()


async def _submit(db: Pool, redis: Client, kinds: KindRegistry, text: str) -> UUID:
    payload: JsonObject = {"text": text, "top": 2}
    async with db.acquire() as connection, connection.transaction():
        [accepted] = await ledger.enqueue(
            connection, DEFAULT_TENANT, [NewJob("count-words", payload)], kinds=kinds
        )
    await dispatch.announce(redis, {accepted.pool: [accepted.id]})
    return accepted.id


async def _ended(db: Pool, redis: Client, job_id: UUID) -> Job:
    """The job once it is terminal, read again whenever the live channel says something."""
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(redis.pubsub(ignore_subscribe_messages=True))
        await channel.subscribe(CHANNEL)
        with anyio.fail_after(UNTIL_DONE_S):
            while True:
                async with db.acquire() as connection:
                    job = await lookup.get(connection, DEFAULT_TENANT, job_id)
                if job.state.is_terminal:
                    return job
                await channel.get_message(timeout=1.0)


@pytest.mark.journey
async def test_example_runs_in_its_own_pool(
    db: Pool, redis: Client, settings: Settings, kinds: KindRegistry
) -> None:
    counted = await _submit(db, redis, kinds, TEXT)
    wordless = await _submit(db, redis, kinds, "12 34")
    async with _worker(settings):
        done = await _ended(db, redis, counted)
        failed = await _ended(db, redis, wordless)
    assert done.state is JobState.SUCCEEDED
    assert done.result == {"words": 10, "top": {"to": 2, "be": 2}}
    assert failed.state is JobState.FAILED
    assert failed.attempt == 1
    assert (failed.error or {})["type"] == "no_words"


def test_payload_is_checked_before_a_job_is_accepted(kinds: KindRegistry) -> None:
    for bad in ({"text": ""}, {"text": "a", "top": 0}, {"text": "a", "more": 1}, {"text": "\x00"}):
        with pytest.raises(ValidationError):
            kinds["count-words"].payload.model_validate(bad)


def test_module_can_be_imported_without_the_workers() -> None:
    """The API imports it for the payload alone."""
    program = f"import sys, {MODULE}; sys.exit('workers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == 0
