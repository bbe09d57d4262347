"""`xnai batch` and `xnai watch` against a running API, with a slot played by the test."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from typer.testing import CliRunner, Result

from cli import uploads
from cli.main import app
from jobs.live import LiveStream
from jobs.outcomes import Failed, Problem
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings, load_settings
from tests.api.live_server import ROOT, running
from tests.api.slot import PlayedSlot, register

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

_STREAMS = r'requests_total{[^}]*route="/v1/batches/{batch_id}/events"[^}]*} ([0-9.]+)'
BROKEN = Failed(Problem("broken", "it broke", retryable=False))


@dataclass(slots=True)
class Shell:
    """Runs commands as a user who has the admin key."""

    settings: Settings
    environment: dict[str, str]

    async def __call__(self, *words: str, code: int = 0, stdin: str | None = None) -> Result:
        invoke = partial(CliRunner().invoke, app, list(words), obj=self.settings, input=stdin)
        result = await anyio.to_thread.run_sync(invoke)
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    async def streams(self, least: int) -> None:
        """Wait until so many streams of a batch's events were begun."""
        async with httpx.AsyncClient(base_url=str(self.settings.api_url)) as client:
            while True:
                found = re.search(_STREAMS, (await client.get("/metrics")).text)
                if found and float(found[1]) >= least:
                    return
                await anyio.sleep(0.02)

    async def json(self, *words: str, code: int = 0) -> Any:
        return json.loads((await self(*words, "--json", code=code)).stdout)


@pytest.fixture
async def shell(settings: Settings, db: Pool) -> AsyncIterator[Shell]:
    """A user's shell beside an API of its own that ends every stream after a moment."""
    del db
    async with running(settings, XNAI_STREAM_MAX_S="0.3") as (url, key):
        yield Shell(
            load_settings(data_dir=settings.data_dir, api_url=url, api_key=key),
            {"XNAI_API_URL": url, "XNAI_API_KEY": key, "XNAI_DATA_DIR": str(settings.data_dir)},
        )


@pytest.fixture
async def slot(db: Pool, redis: Client) -> PlayedSlot:
    return await register(db, LiveStream(redis), "probe")


def jobs_file(folder: Path, *lines: str) -> Path:
    path = folder / "jobs.ndjson"
    path.write_text("\n".join(lines))
    return path


def line(number: int) -> str:
    return json.dumps({"kind": "probe", "payload": {}, "custom_id": f"c{number}"})


async def test_a_batch_is_submitted_shown_read_and_ended(
    shell: Shell, slot: PlayedSlot, tmp_path: Path
) -> None:
    file = jobs_file(tmp_path, *map(line, range(4)))
    submitted = await shell.json("batch", "submit", str(file), "--idempotency-key", "once")
    again = await shell.json("batch", "submit", str(file), "--idempotency-key", "once")
    assert again == submitted
    batch_id = submitted["id"]
    one, other, *_ = await slot.claim(2)
    await slot.end([one])
    await slot.end([other], BROKEN)
    assert (await shell.json("batch", "list", "--state", "running"))[0]["id"] == batch_id
    assert "1 succeeded, 1 failed" in (await shell("batch", "show", batch_id)).stdout
    read = tmp_path / "results.ndjson"
    await shell("batch", "results", batch_id, "--output", str(read))
    first, second = [json.loads(text) for text in read.read_text().splitlines()]
    assert {first["state"], second["state"]} == {"succeeded", "failed"}
    cancelled = await shell.json("batch", "cancel", batch_id)
    assert (cancelled["state"], cancelled["counts"]["cancelled"]) == ("finished", 2)
    rest = await shell("batch", "results", batch_id, "--cursor", second["cursor"], "--follow")
    assert [json.loads(text)["state"] for text in rest.stdout.splitlines()] == ["cancelled"] * 2
    assert (await shell.json("batch", "retry", batch_id))["counts"]["queued"] == 3
    bad = await shell("batch", "submit", "-", stdin=line(1) + "\n\n{}", code=1)
    assert isinstance(bad.exception, Exception)
    assert "line 3" in str(bad.exception)
    await shell("batch", "submit", str(tmp_path / "nowhere"), code=2)


async def test_more_jobs_than_a_request_may_bring_go_in_parts_and_on_where_they_broke_off(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "WHOLE_JOBS", 9)
    monkeypatch.setattr(uploads, "PART_JOBS", 4)
    lines = ["", *map(line, range(12))]
    broken = "\n".join([*lines[:8], "nonsense", *lines[9:]])
    failed = await shell("batch", "submit", "-", stdin=broken, code=1)
    assert "line 9 " in str(failed.exception)
    (left,) = await shell.json("batch", "list")
    assert (left["state"], left["counts"]["total"]) == ("open", 4)
    file = jobs_file(tmp_path, *lines)
    whole = await shell.json("batch", "submit", str(file), "--resume", left["id"])
    assert (whole["id"], whole["state"], whole["counts"]["total"]) == (left["id"], "running", 12)
    # Of all that is repeated nothing is added.
    assert await shell.json("batch", "submit", str(file), "--resume", left["id"]) == whole


async def test_a_batch_is_opened_filled_by_hand_and_sealed(shell: Shell, tmp_path: Path) -> None:
    batch_id = (await shell("batch", "open", "--tag", "t")).stdout.strip()
    file = jobs_file(tmp_path, *map(line, range(3)))
    assert "3 jobs" in (await shell("batch", "append", batch_id, str(file))).stdout
    assert "added before" in (await shell("batch", "append", batch_id, str(file))).stdout
    await shell("batch", "append", batch_id, "-", "--part", "two", stdin=line(7))
    sealed = await shell.json("batch", "seal", batch_id)
    assert (sealed["tags"], sealed["counts"]["total"]) == (["t"], 4)
    late = await shell("batch", "append", batch_id, "-", stdin=line(8), code=1)
    assert "takes no more jobs" in str(late.exception)


async def test_a_watcher_is_told_each_change_once_over_many_connections(
    shell: Shell, slot: PlayedSlot, tmp_path: Path
) -> None:
    """Every stream of this API ends after 0.3 s, so that the watcher comes back all the time."""
    file = jobs_file(tmp_path, *map(line, range(3)))
    batch_id = (await shell.json("batch", "submit", str(file)))["id"]
    told: list[str] = []

    async def watch() -> None:
        told.append((await shell("watch", batch_id, "--json", code=1)).stdout)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        for count, ending in enumerate((None, BROKEN, None), 1):
            await shell.streams(count)
            (job,) = await slot.claim(1)
            await slot.end([job], ending)
    events = [json.loads(text) for text in told[0].splitlines()]
    ids = [event["id"] for event in events]
    assert len(set(ids)) == len(ids)
    assert [event["type"] for event in events][-1:] == ["batch.finished"]
    over = [sum(event["data"]["counts"][s] for s in ("succeeded", "failed")) for event in events]
    assert over == sorted(over)
    for event in events:
        counts = dict(event["data"]["counts"])
        assert counts.pop("total") == 3 == sum(counts.values())
    lines = (await shell("watch", batch_id, code=1)).stdout
    assert "batch finished: 3 of 3, 2 succeeded, 1 failed" in lines


async def test_a_job_is_watched_to_its_end_and_ctrl_c_harms_nothing(
    shell: Shell, slot: PlayedSlot
) -> None:
    job_id = (await shell.json("submit", "probe"))["id"]
    watcher = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "watch", job_id],
        cwd=ROOT,
        env=os.environ | shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watcher.stdout is not None
    first = await anyio.to_thread.run_sync(watcher.stdout.readline)
    assert first == b"probe queued\n"
    watcher.send_signal(signal.SIGINT)
    _, said = await anyio.to_thread.run_sync(partial(watcher.communicate, timeout=30))
    assert (watcher.returncode, b"goes on" in said) == (130, True)
    await slot.end(await slot.claim())
    seen = await shell("watch", job_id, "--json")
    types = [json.loads(text)["type"] for text in seen.stdout.splitlines()]
    assert types == ["job.started", "job.succeeded", "job.settled"]
    assert "succeeded" in (await shell("watch", job_id)).stdout
    await shell("watch", "01a205c9-a55e-73ee-b696-000000000000", code=1)
