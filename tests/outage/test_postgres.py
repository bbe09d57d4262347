"""Postgres goes and comes back: requests end in time with 503, every process goes on by itself, and
no job is lost or doubled.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from api.app import create_app
from tests.outage.world import ANSWER_S, EVENTUALLY_S, Watch, World

pytestmark = [pytest.mark.anyio, pytest.mark.crash]

# A loaded machine may add this much to a promised limit without breaking the promise's sense.
MARGIN_S = 2.0


async def answers_503(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> None:
    """The promised answer, in the promised time."""
    watch = Watch()
    answer = await client.request(method, path, **options)
    assert watch.seconds < ANSWER_S + MARGIN_S
    assert answer.status_code == 503, f"{method} {path}: {answer.status_code} {answer.text[:200]}"
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["type"] == "urn:xnai:problem:unavailable"


async def every_request_is_put_off(own: World, client: httpx.AsyncClient) -> None:
    """Each operation by a key that nobody has seen, and a few as far as the ledger."""
    stranger = f"{own.key[:-8]}{'0' * 8}"
    operations = [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, methods in create_app(own.settings).openapi()["paths"].items()
        if path.startswith("/v1")
        for method in methods
    ]
    assert len(operations) > 40
    async with own.client(stranger) as unknown, anyio.create_task_group() as group:
        for method, path in operations:
            group.start_soon(answers_503, unknown, method, path)
    await the_ledger_is_away(client)


async def the_ledger_is_away(client: httpx.AsyncClient) -> None:
    job = {"kind": "probe", "payload": {}}
    async with anyio.create_task_group() as group:
        for method, path, body in (
            ("GET", "/v1/jobs", None),
            ("POST", "/v1/jobs", job),
            ("POST", "/v1/batches", {"jobs": [job]}),
            ("GET", "/v1/pools", None),
            ("GET", "/v1/schedules", None),
        ):
            group.start_soon(partial(answers_503, client, method, path, json=body))
    assert (await client.get("/healthz")).status_code == 200
    watch = Watch()
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/metrics")).status_code == 200
    assert watch.seconds < ANSWER_S + MARGIN_S


async def is_back(own: World, client: httpx.AsyncClient, running: str, slots: set[int]) -> None:
    """The first request works, and the job that ran meanwhile ends with its only attempt."""
    assert (await client.get("/v1/jobs")).status_code == 200
    ids = await own.submit(client, 3)
    for job in await own.finished(client, [running, *ids]):
        assert job["attempt"] == 1, job
    assert own.slot_pids() == slots


async def a_running_job(own: World, client: httpx.AsyncClient) -> str:
    (job_id,) = await own.submit(client, sleep_s=1.0)
    await own.runs(client, job_id)
    return job_id


async def test_a_restart_is_waited_out_and_what_was_accepted_is_kept(
    own: World, client: httpx.AsyncClient
) -> None:
    running = await a_running_job(own, client)
    slots = own.slot_pids()
    accepted = await own.submit(client, 10)
    # Right behind the last 202: no checkpoint, no goodbye.
    await own.kill("postgres", signal.SIGKILL)
    await every_request_is_put_off(own, client)
    await own.start_servers()
    await is_back(own, client, running, slots)
    await own.finished(client, accepted)

    running = await a_running_job(own, client)
    await own.kill("postgres", signal.SIGINT)
    await own.start_servers()
    await is_back(own, client, running, slots)


async def test_connections_are_killed_and_made_again(own: World, client: httpx.AsyncClient) -> None:
    slots = own.slot_pids()
    admin = await own.admin()
    for _ in range(3):
        running = await a_running_job(own, client)
        killed = await admin.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name LIKE 'xnai%' AND pid <> pg_backend_pid()"
        )
        assert killed > 2
        with anyio.fail_after(EVENTUALLY_S):
            # Whoever is faster than the news of the end still meets it.
            while (await client.get("/v1/jobs")).status_code != 200:
                pass
        await own.finished(client, [running, *await own.submit(client, 3)])
    await admin.close()
    assert own.slot_pids() == slots


async def test_silence_ends_requests_in_time_and_nothing_else(
    own: World, client: httpx.AsyncClient
) -> None:
    running = await a_running_job(own, client)
    slots = own.slot_pids()
    own.lines.cut("postgres")
    await the_ledger_is_away(client)
    await every_request_is_put_off(own, client)
    own.lines.heal("postgres")
    await is_back(own, client, running, slots)


async def test_a_read_only_server_is_an_outage_of_writing(
    own: World, client: httpx.AsyncClient
) -> None:
    running = await a_running_job(own, client)
    slots = own.slot_pids()
    admin = await own.admin()
    await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await admin.execute("SELECT pg_reload_conf()")
    with anyio.fail_after(EVENTUALLY_S):
        while await admin.fetchval("SHOW default_transaction_read_only") != "on":
            pass
    await answers_503(client, "POST", "/v1/jobs", json={"kind": "probe", "payload": {}})
    assert (await client.get("/v1/jobs")).status_code == 200
    await admin.execute("SET transaction_read_only = off")
    await admin.execute("SET default_transaction_read_only = off")
    await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
    await admin.execute("SELECT pg_reload_conf()")
    with anyio.fail_after(EVENTUALLY_S):
        answer = await client.post("/v1/jobs", json={"kind": "probe", "payload": {}})
        while answer.status_code == 503:
            answer = await client.post("/v1/jobs", json={"kind": "probe", "payload": {}})
    await admin.close()
    await is_back(own, client, running, slots)


async def test_a_pool_that_is_used_up_puts_requests_off_in_time(
    own: World, client: httpx.AsyncClient
) -> None:
    slots = own.slot_pids()
    running = await a_running_job(own, client)
    admin = await own.admin()
    async with admin.transaction():
        await admin.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(answers_503, client, "GET", "/v1/jobs")
    await admin.close()
    await is_back(own, client, running, slots)


async def test_locks_that_last_put_requests_off_and_stop_no_slot(
    own: World, client: httpx.AsyncClient
) -> None:
    slots = own.slot_pids()
    running = await a_running_job(own, client)
    (waiting,) = await own.submit(client)
    admin = await own.admin()
    async with admin.transaction():
        await admin.execute("LOCK TABLE ready, held IN ACCESS EXCLUSIVE MODE")
        await answers_503(client, "POST", "/v1/jobs", json={"kind": "probe", "payload": {}})
        # The slot wants to claim or to record, is refused in time, and asks again.
        asked: set[datetime] = set()
        with anyio.fail_after(EVENTUALLY_S):
            while len(asked) < 3:
                rows = await admin.fetch(
                    "SELECT query_start FROM pg_stat_activity"
                    " WHERE wait_event_type = 'Lock' AND application_name LIKE 'xnai %'"
                    " AND application_name NOT LIKE 'xnai api%'"
                )
                asked |= {row["query_start"] for row in rows}
                await anyio.sleep(0.05)
    await admin.close()
    await is_back(own, client, running, slots)
    await own.finished(client, [waiting])


@asynccontextmanager
async def small_disk(own: World) -> AsyncIterator[Path]:
    """What is accepted and what has ended lies on a disk of its own, of which this is the root."""
    assert own.servers.postgres is not None
    owner = own.servers.postgres.folder.stat()
    # The tests' own folders are closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="xnai-small-"))
    options = f"size=24m,mode=700,uid={owner.st_uid},gid={owner.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", folder], check=True)
    try:
        admin = await own.admin()
        await admin.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        tables = await admin.fetchval(
            "SELECT array_agg(c.oid::regclass::text) FROM pg_class AS c"
            " WHERE relkind = 'r' AND (relname = 'jobs' OR relname LIKE 'history_2%')"
        )
        for table in tables:
            await admin.execute(f"ALTER TABLE {table} SET TABLESPACE small")
        yield folder
        for table in tables:
            await admin.execute(f"ALTER TABLE {table} SET TABLESPACE pg_default")
        await admin.execute("DROP TABLESPACE small")
        await admin.close()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def fill_up(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts a small disk")
async def test_a_full_disk_puts_writing_off_until_there_is_room(
    own: World, client: httpx.AsyncClient
) -> None:
    slots = own.slot_pids()
    async with small_disk(own) as disk:
        running = await a_running_job(own, client)
        fill_up(disk)
        with anyio.fail_after(EVENTUALLY_S):
            # The last pages have room for some.
            body = {"kind": "probe", "payload": {"echo": "x" * 1000}}
            answer = await client.post("/v1/jobs", json=body)
            accepted = []
            while answer.status_code == 202:
                accepted.append(answer.json()["id"])
                answer = await client.post("/v1/jobs", json=body)
        await answers_503(client, "POST", "/v1/jobs", json=body)
        await answers_503(client, "POST", "/v1/batches", json={"jobs": [body] * 5})
        assert (await client.get("/v1/jobs")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        (disk / "filler").unlink()
        await is_back(own, client, running, slots)
        await own.finished(client, accepted)
