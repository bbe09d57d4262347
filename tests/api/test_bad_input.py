"""Whatever is sent: a problem document that names the field, never a 5xx, and nothing accepted."""

import json
from typing import Any

import httpx
import pytest

from runtime.postgres import Pool

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
EMBED: dict[str, Any] = {"kind": "embed", "payload": {"texts": ["a"]}}


def crawl(url: str) -> dict[str, Any]:
    return {"kind": "crawl", "payload": {"url": url}}


async def accepted(db: Pool) -> int:
    return int(
        await db.fetchval("SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM batches)")
    )


def assert_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert {"type", "title", "detail"} <= problem.keys()
    return problem


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"kind": "nonsense", "payload": {}}, "/kind"),
        ({"kind": "embed"}, "/payload"),
        ({"payload": {}}, "/kind"),
        ({"kind": "embed", "payload": []}, "/payload"),
        ({"kind": "embed", "payload": {}}, "/payload"),
        ({"kind": "embed", "payload": {"texts": ["a"], "extra": 1}}, "/payload/extra"),
        ({"kind": "embed", "payload": {"texts": [1]}}, "/payload/texts/0"),
        ({"kind": "embed", "payload": {"texts": ["a\x00b"]}}, "/payload/texts/0"),
        ({"kind": "embed", "payload": {"document_ids": ["7"]}}, "/payload/document_ids/0"),
        (
            {"kind": "embed", "payload": {"texts": ["a"], "collection": "No!"}},
            "/payload/collection",
        ),
        (crawl("nonsense"), "/payload/url"),
        (crawl("file:///etc/passwd"), "/payload/url"),
        (crawl("http://127.0.0.1/"), "/payload/url"),
        (crawl("http://[::1]/"), "/payload/url"),
        (crawl("http://10.0.0.7/"), "/payload/url"),
        (crawl("http://169.254.169.254/latest"), "/payload/url"),
        (crawl("http://2130706433/"), "/payload/url"),
        (crawl("http://user:password@example.org/"), "/payload/url"),
        (crawl("http://example.org:99999/"), "/payload/url"),
        (
            {"kind": "crawl", "payload": {"urls": ["http://a.org/", "http://0x7f.1/"]}},
            "/payload/urls/1",
        ),
        (
            {"kind": "crawl", "payload": {"url": "http://a.org/", "max_pages": -1}},
            "/payload/max_pages",
        ),
        (
            {"kind": "crawl", "payload": {"url": "http://a.org/", "max_pages": "5"}},
            "/payload/max_pages",
        ),
        ({**EMBED, "priority": 10}, "/priority"),
        ({**EMBED, "priority": -1}, "/priority"),
        ({**EMBED, "priority": "4"}, "/priority"),
        ({**EMBED, "priority": True}, "/priority"),
        ({**EMBED, "priority": 2**63 - 1}, "/priority"),
        ({**EMBED, "delay_s": -1}, "/delay_s"),
        ({**EMBED, "delay_s": 1e300}, "/delay_s"),
        ({**EMBED, "delay_s": 2**60}, "/delay_s"),
        ({**EMBED, "run_at": "9999-12-31T23:59:59-14:00"}, "/run_at"),
        ({**EMBED, "run_at": "0001-01-01T00:00:00+14:00"}, "/run_at"),
        ({**EMBED, "run_at": "2999-01-01T00:00:00Z"}, "/run_at"),
        ({**EMBED, "run_at": "2026-13-01T00:00:00Z"}, "/run_at"),
        ({**EMBED, "run_at": "2026-01-01T00:00:00"}, "/run_at"),
        ({**EMBED, "run_at": "2026-01-01"}, "/run_at"),
        ({**EMBED, "run_at": 1}, "/run_at"),
        ({**EMBED, "timeout_s": 0}, "/timeout_s"),
        ({**EMBED, "max_attempts": 0}, "/max_attempts"),
        ({**EMBED, "max_attempts": 100_000}, "/max_attempts"),
        ({**EMBED, "tags": ["a"] * 33}, "/tags"),
        ({**EMBED, "tags": "a"}, "/tags"),
        ({**EMBED, "tags": ["a\x00"]}, "/tags/0"),
        ({**EMBED, "unique": {"key": "k", "until": "time"}}, "/unique"),
        ({**EMBED, "unique": {"key": "k", "for_s": -1}}, "/unique/for_s"),
        ({**EMBED, "depends_on": ["01890000-0000-7000-8000-000000000000"]}, "/depends_on"),
        ({**EMBED, "depends_on": ["no-such-custom-id"]}, "/depends_on/0"),
        ({**EMBED, "on_parent_failure": "explode"}, "/on_parent_failure"),
        ({**EMBED, "callback_url": "http://localhost.:99999/"}, "/callback_url"),
        ({**EMBED, "callback_url": "http://192.168.1.1/"}, "/callback_url"),
        ({**EMBED, "callback_url": "gopher://example.org/"}, "/callback_url"),
        ({**EMBED, "nonsense": 1}, "/nonsense"),
        ([EMBED], ""),
        (None, ""),
        ("text", ""),
    ],
)
async def test_a_bad_job_is_422_and_names_the_field(
    client: httpx.AsyncClient, db: Pool, body: object, pointer: str
) -> None:
    response = await client.post("/v1/jobs", content=json.dumps(body), headers=JSON)
    problem = assert_problem(response, 422)
    assert problem["errors"][0]["pointer"] == pointer
    assert await accepted(db) == 0


async def test_a_private_address_is_refused_with_the_entry_that_would_permit_it(
    client: httpx.AsyncClient,
) -> None:
    problem = assert_problem(await client.post("/v1/jobs", json=crawl("http://10.0.0.7/")), 422)
    assert "EGRESS_ALLOW" in problem["detail"]
    assert "10.0.0.7" in problem["detail"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"", 422),
        (b'{"kind": "embed", "payload": {"texts": ["\xff"]}}', 400),
        (b"\xff\xfe{\x00}\x00", 400),
        (b'{"kind": "embed", "payload": {"texts": ["\\ud800"]}}', 400),
        (b'{"kind": "embed", "payload": {"texts": ["\x00"]}}', 400),
        (b'{"kind": "embed", "payload": {"texts": ["a"]}, "delay_s": NaN}', 400),
        (b'{"kind": "embed", "payload": {"texts": ["a"]}, "delay_s": Infinity}', 400),
        (b'{"kind": "embed", "payload": {"texts": ["a"]}, "delay_s": 1e999}', 400),
        (b'{"kind": "embed", "kind": "crawl", "payload": {}}', 422),
        (b'{"kind": "probe", "payload": {"echo": %s}}' % (b"9" * 30), 422),
        (b'{"kind": "probe", "payload": {"echo": %s}}' % (b"9" * 5000), 400),
        (b'{"kind": "probe", "payload": {"echo": %s%s}}' % (b"[" * 100, b"]" * 100), 422),
        (b'{"kind": "probe", "payload": {"echo": %s%s}}' % (b"[" * 90_000, b"]" * 90_000), 422),
        (b'{"kind": "probe", "payload": {"echo": {"a\\u0000": 1}}}', 422),
        (b'{"kind": "probe", "payload": {"echo": ["\\u0000"]}}', 422),
    ],
)
async def test_json_that_cannot_be_kept_is_refused(
    client: httpx.AsyncClient, db: Pool, content: bytes, status: int
) -> None:
    assert_problem(await client.post("/v1/jobs", content=content, headers=JSON), status)
    assert await accepted(db) == 0


async def test_a_backslash_before_u0000_is_plain_text(client: httpx.AsyncClient) -> None:
    content = b'{"kind": "probe", "payload": {"echo": "\\\\u0000"}}'
    response = await client.post("/v1/jobs", content=content, headers=JSON)
    assert response.status_code == 202
    assert response.json()["payload"]["echo"] == "\\u0000"


@pytest.mark.parametrize("size", [300 * 1024, 2 * 1024 * 1024, 10 * 1024 * 1024])
async def test_a_large_payload_is_413(client: httpx.AsyncClient, db: Pool, size: int) -> None:
    body = {"kind": "embed", "payload": {"texts": ["x" * size]}}
    assert_problem(await client.post("/v1/jobs", json=body), 413)
    assert await accepted(db) == 0


async def test_a_body_that_only_turns_out_to_be_large_is_413(client: httpx.AsyncClient) -> None:
    async def chunks() -> Any:
        for _ in range(200):
            yield b" " * 65536

    response = await client.post("/v1/jobs", content=chunks(), headers=JSON)
    assert_problem(response, 413)


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/xml", "multipart/form-data", ";"]
)
async def test_another_media_type_is_415(client: httpx.AsyncClient, media_type: str | None) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    response = await client.post("/v1/jobs", content=json.dumps(EMBED).encode(), headers=headers)
    assert_problem(response, 415)


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "/limit"),
        ("limit=-1", "/limit"),
        ("limit=1001", "/limit"),
        ("limit=a", "/limit"),
        ("limit=99999999999999999999999", "/limit"),
        ("limit=1&limit=2", "/limit"),
        ("cursor=nonsense", "/cursor"),
        ("cursor=%F0%9F%A6%86", "/cursor"),
        ("cursor=am9iczowMTg5", "/cursor"),
        ("state=sleeping", "/state"),
        ("batch_id=7", "/batch_id"),
        ("sate=queued", "/sate"),
        ("kind=" + "x" * 64, "/kind"),
    ],
)
async def test_a_bad_query_names_the_parameter(
    client: httpx.AsyncClient, query: str, pointer: str
) -> None:
    problem = assert_problem(await client.get(f"/v1/jobs?{query}"), 422)
    assert problem["errors"][0]["pointer"] == pointer
    assert problem["errors"][0]["in"] == "query"


LISTS = [
    "jobs",
    "batches",
    "schedules",
    "webhooks",
    "documents",
    "collections",
    "keys",
]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(
    "cursor", ["x", "bm9uc2Vuc2U", "am9iczp4", "a" * 512, "a" * 513, "=", "-_"]
)
async def test_a_cursor_that_the_list_did_not_give_is_422(
    client: httpx.AsyncClient, name: str, cursor: str
) -> None:
    problem = assert_problem(await client.get(f"/v1/{name}", params={"cursor": cursor}), 422)
    assert problem["errors"][0]["pointer"] == "/cursor"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/jobs/nonsense", 422),
        ("/v1/jobs/%00", 422),
        ("/v1/jobs/%ff", 400),
        ("/v1/jobs?tag=%ff", 400),
        ("/v1/jobs?tag=%00", 422),
        ("/v1/jobs/01890000-0000-7000-8000-000000000000", 404),
        ("/v1/nothing", 404),
        ("/v1/jobs/", 404),
        ("/v1/../etc/passwd", 404),
        ("/v1/batches/7", 422),
        ("/v1/documents/7", 422),
        ("/v1/collections/UPPER", 405),
    ],
)
async def test_a_bad_path_is_a_problem(client: httpx.AsyncClient, path: str, status: int) -> None:
    assert_problem(await client.get(path), status)


async def test_405_names_every_method_of_the_path(client: httpx.AsyncClient) -> None:
    response = await client.put("/v1/jobs", json={})
    assert_problem(response, 405)
    assert set(response.headers["allow"].split(", ")) == {"GET", "POST"}


@pytest.mark.parametrize("key", ["", " ", "ä", "a b", "x" * 256])
async def test_a_bad_idempotency_key_is_422(client: httpx.AsyncClient, db: Pool, key: str) -> None:
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    response = await client.post("/v1/jobs", json=EMBED, headers=headers)
    problem = assert_problem(response, 422)
    assert problem["errors"][0]["in"] == "header"
    assert await accepted(db) == 0


@pytest.mark.parametrize(
    "prefer", ["", "wait", "wait=", "wait=x", "wait=-1", "wait=1e9", "ä", ";;,=,"]
)
async def test_a_preference_that_cannot_be_read_is_ignored(
    client: httpx.AsyncClient, prefer: str
) -> None:
    headers = [(b"Prefer", prefer.encode("latin-1"))]
    response = await client.post("/v1/jobs", json=EMBED, headers=headers)
    assert response.status_code == 202
    assert "preference-applied" not in response.headers


async def test_every_answer_carries_the_security_headers(
    client: httpx.AsyncClient, anonymous: httpx.AsyncClient
) -> None:
    answers = [
        await client.get("/v1/jobs"),
        await client.get("/v1/nothing"),
        await anonymous.get("/v1/jobs"),
        await anonymous.get("/healthz"),
        await client.get("/v1/jobs/%ff"),
    ]
    for response in answers:
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert "access-control-allow-origin" not in response.headers
