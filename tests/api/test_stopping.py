"""What a client is told whose request outlasts the API's stop: 503, or nothing once it has begun.

The requests wait for a table's lock, in the API as a process of its own.
"""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio
import anyio.to_thread
import asyncpg
import httpx
import pytest

from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.live_server import Live, started

pytestmark = [pytest.mark.anyio, pytest.mark.crash]

PROBE = {"kind": "probe", "payload": {}}
# Nothing but the stop ends a wait here, however busy the machine is.
PATIENT = {"XNAI_LOCK_TIMEOUT_S": "60", "XNAI_STATEMENT_TIMEOUT_S": "600"}
IN_TIME_S = 45.0
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = ANY ($1::regclass[])"


@pytest.fixture
async def locked(db: Pool) -> AsyncIterator[None]:
    """Nobody else reads or writes events."""
    async with db.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await connection.execute("LOCK TABLE jobs, events IN ACCESS EXCLUSIVE MODE")
        yield


@asynccontextmanager
async def client_of(live: Live) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {live.key}"}
    async with httpx.AsyncClient(base_url=live.url, headers=headers, timeout=60) as client:
        yield client


async def until_waiting(connection: "asyncpg.Connection[asyncpg.Record]", count: int) -> None:
    with anyio.fail_after(IN_TIME_S):
        while await connection.fetchval(WAITING, ["jobs", "events"]) < count:  # noqa: ASYNC110 - Postgres tells
            await anyio.sleep(0.02)


async def stop(live: Live, *signals: signal.Signals) -> None:
    # Two of one kind that come at once may be told as one.
    for number in signals:
        live.api.send_signal(number)
    with anyio.fail_after(IN_TIME_S):
        assert await anyio.to_thread.run_sync(live.api.wait, abandon_on_cancel=True) == 0


@pytest.mark.parametrize(
    ("grace_s", "signals"),
    [("1", [signal.SIGTERM]), ("600", [signal.SIGTERM, signal.SIGINT])],
    ids=["after the grace period", "told twice"],
)
@pytest.mark.usefixtures("locked")
async def test_requests_that_outlast_the_stop_are_told_to_come_again(
    settings: Settings,
    connection: "asyncpg.Connection[asyncpg.Record]",
    grace_s: str,
    signals: list[signal.Signals],
) -> None:
    answers: list[httpx.Response] = []
    async with (
        started(settings, XNAI_GRACE_S=grace_s, **PATIENT) as live,
        client_of(live) as client,
        anyio.create_task_group() as group,
    ):

        async def submit(path: str, body: object) -> None:
            headers = {"Idempotency-Key": str(uuid4())}
            answers.append(await client.post(path, json=body, headers=headers))

        group.start_soon(submit, "/v1/jobs", PROBE)
        group.start_soon(submit, "/v1/batches", {"jobs": [PROBE]})
        await until_waiting(connection, 2)
        await stop(live, *signals)
    assert len(answers) == 2
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["type"] == "urn:xnai:problem:unavailable"


@pytest.mark.usefixtures("locked")
async def test_answer_that_has_begun_is_cut_off(
    settings: Settings, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with (
        started(settings, XNAI_GRACE_S="1", **PATIENT) as live,
        client_of(live) as client,
        client.stream("GET", "/v1/events") as response,
    ):
        assert response.status_code == 200
        await until_waiting(connection, 1)
        await stop(live, signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            await response.aread()
