"""`xnai webhooks` against a running API, with a deliverer beside it."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
import pytest

from jobs.model import DEFAULT_TENANT
from runtime.egress import EgressPolicy
from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.live_server import ROOT, running
from tests.webhooks.receiver import receiver, reply
from webhooks import endpoints
from webhooks.deliver import Deliverer
from webhooks.wire import Wire

pytestmark = pytest.mark.anyio

LOOPBACK = "127.0.0.0/8"
WITHIN_S = 30


@dataclass(frozen=True, slots=True)
class Shell:
    """Starts commands as a user who has the key: `listen` waits for signals, as no thread can."""

    environment: dict[str, str]

    @contextmanager
    def start(self, *words: str) -> Iterator["subprocess.Popen[str]"]:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "webhooks", *words],
            cwd=ROOT,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
async def shell(settings: Settings, db: Pool) -> AsyncIterator[Shell]:
    """A shell beside an API that may reach this machine."""
    del db
    async with running(settings, XNAI_EGRESS_ALLOW=LOOPBACK) as (url, key):
        yield Shell(
            {"XNAI_DATA_DIR": str(settings.data_dir), "XNAI_API_URL": url, "XNAI_API_KEY": key}
        )


async def test_listen_prints_verified_events_passes_them_on_and_removes_itself(
    shell: Shell, db: Pool
) -> None:
    wire = Wire(EgressPolicy((LOOPBACK,)))
    async with receiver(reply(503), reply(204)) as there:
        words = ("listen", "--forward", there.url, "--events", "webhook.disabled", "--json")
        with shell.start(*words, "--count", "2") as process:
            assert process.stderr is not None
            with anyio.fail_after(WITHIN_S):
                said = await anyio.to_thread.run_sync(process.stderr.readline)
            assert said.startswith("listening on http://127.0.0.1:")
            async with db.acquire() as connection:
                (endpoint,) = await endpoints.list_endpoints(connection, DEFAULT_TENANT)
                assert endpoint.events == ("webhook.disabled",)
                sent = await endpoints.send_test(connection, DEFAULT_TENANT, endpoint.id)
                deliverer = Deliverer(db, wire)
                assert await deliverer.deliver_due() == 1
                # What it is forwarded to was not well: so it is tried again.
                await connection.execute("UPDATE outbox SET due_at = now()")
                assert await deliverer.deliver_due() == 1
            printed, _ = await anyio.to_thread.run_sync(
                partial(process.communicate, timeout=WITHIN_S)
            )
            assert process.returncode == 0
    await wire.aclose()
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [(line["forwarded"], line["is_repeat"]) for line in lines] == [(503, False), (204, True)]
    assert {(line["webhook_id"], line["type"]) for line in lines} == {(str(sent), "webhook.test")}
    assert there.requests[0].headers["webhook-id"] == str(sent)
    async with db.acquire() as connection:
        assert await endpoints.list_endpoints(connection, DEFAULT_TENANT) == []


async def test_listen_says_which_entry_is_missing(settings: Settings, db: Pool) -> None:
    del db
    async with running(settings) as (url, key):
        shell = Shell(
            {"XNAI_DATA_DIR": str(settings.data_dir), "XNAI_API_URL": url, "XNAI_API_KEY": key}
        )
        with shell.start("listen") as process:
            _, said = await anyio.to_thread.run_sync(partial(process.communicate, timeout=WITHIN_S))
            assert process.returncode == 1
    assert "'127.0.0.1'" in said
    assert "XNAI_EGRESS_ALLOW" in said
