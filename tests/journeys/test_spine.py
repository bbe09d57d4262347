"""From a URL to a cited answer, through the command line and HTTP, by the real engines."""

import os
from pathlib import Path

import psutil

from tests.support.stack import Stack, wait_until

TERMINAL = {"succeeded", "failed", "cancelled"}


def test_a_crawled_site_is_searched_and_asked_about(stack: Stack, site_url: str) -> None:
    job = stack.json(
        *("crawl", site_url, "-c", "light", "--max-pages", "10", "--max-depth", "2"),
        *("--scope", "prefix"),
    )
    assert job["result"]["pages"]["fetched"] == 3
    assert job["follow_ups"]["failed"] == 0
    found = stack.json("search", "-c", "light", "how many steps does the keeper climb")
    assert found["hits"][0]["document"]["url"] == f"{site_url}keeper.html"
    answer = stack.json("ask", "-c", "light", "How many steps does the keeper climb?")
    assert f"{site_url}keeper.html" in {c["url"] for c in answer["result"]["citations"]}
    assert answer["result"]["text"].strip()


def test_a_second_crawl_finds_the_pages_unchanged_and_embeds_nothing(
    stack: Stack, site_url: str
) -> None:
    first, second = (stack.json("crawl", f"{site_url}birds.html", "-c", "again") for _ in "12")
    assert first["result"]["pages"]["fetched"] == 1
    assert second["result"]["pages"]["unchanged"] == 1
    assert second["follow_ups"]["total"] == 0


def test_a_folder_is_mirrored(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# Tea\n\nGreen tea is brewed at 70 degrees.", encoding="utf-8")
    (folder / "b.txt").write_text("Coffee is brewed at 93 degrees.", encoding="utf-8")
    assert stack.json("ingest", str(folder), "-c", "notes")["sent"] == 2
    assert stack.json("ingest", str(folder), "-c", "notes")["unchanged"] == 2
    (folder / "b.txt").unlink()
    assert stack.json("ingest", str(folder), "-c", "notes", "--delete")["deleted"] == 1
    hits = stack.json("search", "-c", "notes", "coffee")["hits"]
    assert all("Coffee" not in hit["text"] for hit in hits)


def test_slots_run_on_the_cores_that_doctor_names(stack: Stack) -> None:
    plan = {(s["pool"], s["number"]): set(s["cpus"]) for s in stack.json("doctor")["slots"]}
    for (pool, number), cpus in plan.items():
        (process,) = stack.titled(f"work {pool} slot {number}")
        allowed = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        line = next(row for row in allowed.splitlines() if row.startswith("Cpus_allowed_list"))
        assert _expand(line.split(":")[1].strip()) == cpus


def _expand(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def test_a_slot_is_never_busier_than_its_cores(stack: Stack) -> None:
    with stack.api() as api:
        texts = [
            f"Sentence number {n} about lighthouses and their keepers." * 8 for n in range(200)
        ]
        job = api.post("/v1/jobs", {"kind": "embed", "payload": {"texts": texts}})
        seen = 0
        while job["state"] not in TERMINAL:
            for process in stack.titled("work embed slot"):
                busy = [t for t in _threads(process) if t == "R"]
                assert len(busy) <= 1 + 1  # the engine's thread, and the loop in passing
                seen = max(seen, len(busy))
            job = api.get(f"/v1/jobs/{job['id']}")
        assert job["state"] == "succeeded", job
        assert len(job["result"]["vectors"]) == 200


def _threads(process: psutil.Process) -> list[str]:
    states = []
    for entry in os.scandir(f"/proc/{process.pid}/task"):
        try:
            stat = Path(entry.path, "stat").read_text(encoding="utf-8")
        except OSError:
            continue
        states.append(stat.rpartition(")")[2].split()[0])
    return states


def test_progress_and_tokens_are_streamed(stack: Stack) -> None:
    with stack.api() as api:
        payload = {"prompt": "Say hello.", "max_tokens": 24, "seed": 3}
        job = api.post("/v1/jobs", {"kind": "generate", "payload": payload})
        text = ""
        with api.events(f"/v1/jobs/{job['id']}/events") as events:
            for event in events:
                if event.type == "job.token":
                    text += event.data["text"]
                if event.type == "job.settled":
                    break
        job = api.get(f"/v1/jobs/{job['id']}")
    assert job["state"] == "succeeded"
    assert text.strip() == job["result"]["text"].strip()


def test_a_prompt_longer_than_the_context_is_a_typed_failure(stack: Stack) -> None:
    with stack.api() as api:
        payload = {"prompt": "word " * 20_000, "max_tokens": 8}
        job = api.post("/v1/jobs", {"kind": "generate", "payload": payload}, wait_s=60)
    assert (job["state"], job["error"]["type"]) == ("failed", "prompt_too_long")


def test_a_hanging_job_is_ended_by_its_timeout_and_the_pool_lives_on(stack: Stack) -> None:
    with stack.api() as api:
        body = {"kind": "probe", "payload": {"outcome": "hang"}, "timeout_s": 1, "max_attempts": 1}
        job = api.post("/v1/jobs", body, wait_s=30)
        assert (job["state"], job["error"]["type"]) == ("failed", "timeout")
        job = api.post("/v1/jobs", {"kind": "probe", "payload": {"echo": 7}}, wait_s=30)
        assert job["result"] == {"echo": 7}


def test_a_running_job_is_cancelled_within_5_s_even_in_a_busy_loop(stack: Stack) -> None:
    with stack.api() as api:
        job = api.post("/v1/jobs", {"kind": "probe", "payload": {"outcome": "hang"}})
        path = f"/v1/jobs/{job['id']}"
        wait_until(lambda: api.get(path)["state"] == "running", timeout_s=20, what="the job to run")
        api.post(f"{path}/cancel")
        wait_until(
            lambda: api.get(path)["state"] == "cancelled", timeout_s=6, what="the cancellation"
        )
