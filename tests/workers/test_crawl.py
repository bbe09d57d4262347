"""Crawl jobs against a real site and the real ledger: what they keep, skip, follow and survive."""

import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import cast

import pytest

from jobs import slots, tenant_egress
from jobs.errors import Retry, StaleToken
from jobs.model import DEFAULT_TENANT, JsonObject, JsonValue
from jobs.outcomes import Completed
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.support.corpus import KINDS, Desk
from workers.handlers.crawl import Tools

pytestmark = pytest.mark.anyio


class _QuietHandler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        """Serve files, but ask for two hours' patience at /busy.html."""
        if self.path != "/busy.html":
            super().do_GET()
            return
        self.send_response(HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Retry-After", "7200")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Site:
    """Three pages, each linked to the next, served from a folder."""

    folder: Path
    url: str

    def write(self, name: str, text: str, link: str) -> None:
        body = f"<main><h1>{name}</h1><p>{text * 20}</p><a href='{link}.html'>next</a></main>"
        page = f"<html><head><title>Page {name}</title></head><body>{body}</body></html>"
        (self.folder / f"{name}.html").write_text(page, encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    found = Site(folder, f"http://127.0.0.1:{server.server_port}")
    for name, link in {"a": "b", "b": "c", "c": "a"}.items():
        found.write(name, f"All about {name}.", link)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
async def desk(db: Pool, redis: Client, settings: Settings) -> AsyncIterator[Desk]:
    allowed = settings.model_copy(update={"egress_allow": ("127.0.0.0/8",)})
    desk = Desk(db, redis, allowed)
    yield desk
    tools = desk.engines.get("crawl")
    if isinstance(tools, Tools):
        await tools.aclose()


async def crawl(desk: Desk, url: str, **fields: JsonValue) -> JsonObject:
    return await desk.work("crawl", {"url": url, "scope": "host", "max_depth": 5, **fields})


async def documents_to_embed(desk: Desk) -> int:
    """How many documents the queued embed jobs name; they are taken from the queue."""
    count = 0
    while (run := await desk.claim("embed")) is not None:
        count += len(run.payload.document_ids)
        await desk.end(run, Completed({}))
    return count


async def test_a_second_crawl_of_a_whole_site_is_unchanged_and_follows_its_links(
    desk: Desk, site: Site
) -> None:
    start = f"{site.url}/a.html"
    first = await crawl(desk, start, max_pages=10)
    assert first["pages"] == {"fetched": 3, "unchanged": 0, "failed": 0, "blocked": 0}
    assert await documents_to_embed(desk) == 3
    await embed_all(desk, first)
    second = await crawl(desk, start, max_pages=10)
    assert second["pages"] == {"fetched": 0, "unchanged": 3, "failed": 0, "blocked": 0}
    assert await documents_to_embed(desk) == 0
    site.write("c", "Something new about c.", "a")
    third = await crawl(desk, start, max_pages=10)
    assert third["pages"] == {"fetched": 1, "unchanged": 2, "failed": 0, "blocked": 0}
    assert await documents_to_embed(desk) == 1


async def embed_all(desk: Desk, result: JsonObject) -> None:
    await desk.work("embed", {"document_ids": result["documents"]})
    await desk.drain("index")


async def test_a_document_whose_embedding_never_finished_is_embedded_by_the_next_crawl(
    desk: Desk, site: Site
) -> None:
    await crawl(desk, f"{site.url}/a.html")
    assert await documents_to_embed(desk) == 1  # lost: its job ended without vectors
    again = await crawl(desk, f"{site.url}/a.html")
    assert again["pages"] == {"fetched": 0, "unchanged": 1, "failed": 0, "blocked": 0}
    assert await documents_to_embed(desk) == 1


async def test_without_the_pipeline_nothing_is_embedded(desk: Desk, site: Site) -> None:
    result = await crawl(desk, f"{site.url}/a.html", pipeline=False)
    assert len(cast("list[str]", result["documents"])) == 1
    assert await documents_to_embed(desk) == 0


async def test_a_late_crawl_keeps_nothing(desk: Desk, site: Site) -> None:
    run = await desk.claimed("crawl", {"url": f"{site.url}/a.html"})
    async with desk.postgres.acquire() as connection:
        await slots.end(connection, run.job.slot_id, "test")
    await slots.rescue(desk.postgres, run.job.slot_id, started=None, kinds=KINDS)
    with pytest.raises(StaleToken):
        await desk.finish(run)
    assert await desk.postgres.fetchval("SELECT count(*) FROM documents") == 0


async def test_a_host_that_is_down_is_worth_another_attempt(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Retry) as raised:
        await crawl(desk, f"http://127.0.0.1:{port}/")
    assert (raised.value.type, raised.value.after_s) == ("unreachable", None)


async def test_a_server_that_asks_for_time_gets_it(desk: Desk, site: Site) -> None:
    with pytest.raises(Retry) as raised:
        await crawl(desk, f"{site.url}/busy.html")
    assert (raised.value.type, raised.value.after_s) == ("throttled", 7200.0)


async def test_a_tenant_reaches_what_it_was_allowed_until_that_is_taken_away(
    desk: Desk, site: Site
) -> None:
    strict = desk.on(desk.settings.model_copy(update={"egress_allow": ()}))
    async with desk.postgres.acquire() as connection:
        await tenant_egress.allow(connection, DEFAULT_TENANT, "127.0.0.1")
    reached = await strict.work("crawl", {"url": f"{site.url}/a.html"})
    assert reached["pages"] == {"fetched": 1, "unchanged": 0, "failed": 0, "blocked": 0}
    async with desk.postgres.acquire() as connection:
        assert await tenant_egress.remove(connection, DEFAULT_TENANT, "127.0.0.1")
    refused = await strict.work("crawl", {"url": f"{site.url}/a.html"})
    assert refused["pages"] == {"fetched": 0, "unchanged": 0, "failed": 0, "blocked": 1}


async def test_a_private_address_is_blocked_at_fetch(desk: Desk) -> None:
    strict = desk.on(desk.settings.model_copy(update={"egress_allow": ()}))
    result = await strict.work("crawl", {"url": "http://localhost:1234/"})
    assert result["pages"] == {"fetched": 0, "unchanged": 0, "failed": 0, "blocked": 1}
    failures = cast("list[dict[str, object]]", result["failures"])
    assert [failure["reason"] for failure in failures] == ["egress"]
