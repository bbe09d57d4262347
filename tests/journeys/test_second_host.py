"""A second data directory, given the addresses of the first only: it works and searches alike."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack, wait_until


@pytest.fixture
def second(stack: Stack, tmp_path: Path) -> Iterator[Stack]:
    """Another host: its own data directory, nothing shared but Postgres and Redis."""
    found = stack.json("env")
    names = ("XNAI_DATABASE_URL", "XNAI_REDIS_URL", "XNAI_API_URL", "XNAI_API_KEY")
    host = Stack(tmp_path / "second", {name: found[name] for name in names})
    roles = (("work", "embed"), ("search-server",))
    started = [host.spawn(*role) for role in roles]
    yield host
    for process in started:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(30) for process in started] == [0, 0]


def test_it_takes_its_share_of_the_jobs_and_answers_searches_alike(
    stack: Stack, second: Stack, site_url: str
) -> None:
    stack.json("crawl", f"{site_url}keeper.html", "-c", "shared")
    alone = stack.json("search", "-c", "shared", "the lamp")["hits"]
    with stack.api() as api:
        wait_until(
            lambda: sum(w["pool"] == "embed" for w in api.get("/v1/workers")["data"]) > 2,
            timeout_s=30,
            what="the second host's slots",
        )
        jobs = [{"kind": "embed", "payload": {"texts": [f"text {n}"] * 20}} for n in range(40)]
        batch = api.post("/v1/batches", {"jobs": jobs})
        path = f"/v1/batches/{batch['id']}"
        wait_until(
            lambda: bool(api.get(path)["state"] == "finished"), timeout_s=90, what="the batch"
        )
        ids = [
            job["id"] for job in api.pages("/v1/jobs", params={"batch_id": batch["id"]}, most=99)
        ]
        slots = {api.get(f"/v1/jobs/{i}/attempts")["data"][-1]["slot_id"] for i in ids}
        first_slots = {w["id"] for w in api.get("/v1/workers")["data"] if w["pool"] == "embed"}
    assert slots <= first_slots
    assert len(slots) > 2, "only the first host's slots took jobs"
    # The first host's search role goes, and with it the files of the first data directory.
    (search,) = stack.titled("search-server")
    search.suspend()
    try:
        shutil.rmtree(stack.data_dir / "index")
        with second.api() as api:
            body = {"query": "the lamp", "collection": "shared"}
            there = api.post("/v1/search", body)["hits"]
    finally:
        search.resume()
    assert [hit["text"] for hit in there] == [hit["text"] for hit in alone]
    assert [hit["score"] for hit in there] == pytest.approx([hit["score"] for hit in alone])
