"""The body: thin, with links to what it names, and the same bytes for every attempt."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import orjson
import pytest

from jobs.model import DEFAULT_TENANT, JsonObject
from webhooks.model import Owed
from webhooks.request import body_of

ID = UUID("01990000-0000-7000-8000-000000000001")
OWED = Owed(
    id=ID,
    tenant_id=DEFAULT_TENANT,
    endpoint_id=None,
    url="https://example.org/hook",
    lane="endpoint x",
    type="job.settled",
    occurred_at=datetime(2026, 5, 1, 14, 0, 0, 5, tzinfo=timezone(timedelta(hours=2))),
    data={"id": "j", "batch_id": None},
    attempt=1,
    failures=0,
    claimed_at=datetime(2026, 5, 1, 12, 1, tzinfo=UTC),
    secrets=(),
)


@pytest.mark.parametrize(
    ("type_", "data", "links"),
    [
        ("job.settled", {"id": "j"}, {"job": "/v1/jobs/j"}),
        ("job.lost", {"job_id": 1, "batch_id": 2}, {"job": "/v1/jobs/1", "batch": "/v1/batches/2"}),
        ("job.failed", {"job_id": "j", "batch_id": None}, {"job": "/v1/jobs/j"}),
        ("batch.finished", {"id": "b"}, {"batch": "/v1/batches/b"}),
        ("document.changed", {"document_id": "d"}, {"document": "/v1/documents/d"}),
        ("document.removed", {"document_id": "d"}, {}),
        ("schedule.missed", {"links": {"schedule": "/s"}}, {"schedule": "/s"}),
        ("webhook.test", {}, {}),
    ],
)  # fmt: skip
def test_links_lead_to_what_the_body_names(
    type_: str, data: JsonObject, links: dict[str, str]
) -> None:
    body = orjson.loads(body_of(replace(OWED, type=type_, data=data)))
    assert body["data"] == {**data, "links": links}


def test_body_is_the_same_for_every_attempt_and_in_utc() -> None:
    body = body_of(OWED)
    assert body == body_of(replace(OWED, attempt=7, failures=6))
    told = orjson.loads(body)
    assert set(told) == {"type", "timestamp", "data"}
    assert told["timestamp"] == "2026-05-01T12:00:00.000005Z"
    assert datetime.fromisoformat(told["timestamp"]).astimezone(UTC) == OWED.occurred_at
