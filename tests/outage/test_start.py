"""A stack starts, works and stops without any Redis, and says what it lacks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack, wait_until

pytestmark = [pytest.mark.crash]


@pytest.fixture
def stack(data_dir: Path) -> Iterator[Stack]:
    nobody = "redis://127.0.0.1:1/0"
    found = Stack(data_dir, {"XNAI_REDIS_URL": nobody, "XNAI_POOLS": "probe=1x1"})
    found.start()
    yield found
    assert found.stop() == 0


def test_without_redis_every_role_starts_and_jobs_run(stack: Stack) -> None:
    with stack.api() as api:
        ready = api.get("/readyz")
        assert ready["status"] == "degraded"
        assert ready["dependencies"]["redis"]["status"] == "down"
        done = api.post("/v1/jobs", {"kind": "probe", "payload": {"echo": "still"}})

        def has_succeeded() -> bool:
            return bool(api.get(f"/v1/jobs/{done['id']}")["state"] == "succeeded")

        wait_until(has_succeeded, timeout_s=30, what="a job to end without Redis")
    findings = {found["check"]: found["status"] for found in stack.json("doctor")["findings"]}
    assert findings["redis"] == "degraded"
    assert {findings["api"], findings["postgres"]} == {"ok"}
