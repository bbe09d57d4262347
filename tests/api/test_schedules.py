"""/v1/schedules over HTTP: what is asked for becomes a schedule, and is shown as one."""

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

JOB: dict[str, Any] = {"kind": "probe", "payload": {"echo": 1}, "tags": ["a"]}


async def test_a_schedule_is_made_shown_changed_and_triggered(client: httpx.AsyncClient) -> None:
    asked = {"name": "hourly", "job": JOB, "cron": "0 * * * *", "timezone": "Europe/Berlin"}
    made = await client.post("/v1/schedules", json=asked)
    assert made.status_code == 201
    path = made.headers["location"]
    shown = await client.get(path)
    assert shown.json() == made.json()
    assert {name: shown.json()[name] for name in ("name", "cron", "timezone")} == {
        name: asked[name] for name in ("name", "cron", "timezone")
    }
    assert (shown.json()["job"]["payload"], shown.json()["job"]["tags"]) == ({"echo": 1}, ["a"])
    changed = await client.patch(
        path, json={"every_s": 60, "overlap": "queue"}, headers={"If-Match": shown.headers["etag"]}
    )
    assert (changed.json()["cron"], changed.json()["every_s"]) == (None, 60)
    assert changed.json()["overlap"] == "queue"
    late = await client.patch(path, json={"name": "x"}, headers={"If-Match": shown.headers["etag"]})
    assert late.status_code == 412
    assert len((await client.get(f"{path}/preview", params={"n": 3})).json()["data"]) == 3
    fired = await client.post(f"{path}/trigger")
    assert fired.status_code == 202
    job = await client.get(fired.headers["location"])
    assert (job.json()["id"], job.json()["payload"]) == (fired.json()["job_id"], {"echo": 1})
    (run,) = (await client.get(f"{path}/runs")).json()["data"]
    assert run["job_id"] == fired.json()["job_id"]


@pytest.mark.parametrize(
    ("timing", "pointer"),
    [
        ({}, ""),
        ({"every_s": 60, "cron": "* * * * *"}, ""),
        ({"every_s": 0}, "/every_s"),
        ({"every_s": 60, "job": {**JOB, "payload": {"sleep_s": -1}}}, "/job/payload/sleep_s"),
    ],
)
async def test_a_bad_schedule_is_422_and_names_the_field(
    client: httpx.AsyncClient, timing: dict[str, Any], pointer: str
) -> None:
    answer = await client.post("/v1/schedules", json={"name": "s", "job": JOB, **timing})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
