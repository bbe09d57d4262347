"""Whole crawls of a real site on loopback: what is visited, handed over, counted and left alone."""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import anyio
import psutil
import pytest

from crawl.extractor import Extractor, Targets
from crawl.limits import CrawlLimits
from crawl.pages import CrawlRequest, Outcome, Reason
from runtime.egress import EgressPolicy
from runtime.processes import Handle
from tests.crawl import local_site
from tests.crawl.local_site import (
    FAST,
    Answers,
    Crawl,
    Reply,
    Site,
    html,
    links,
    redirect,
    remember,
    serving,
)

pytestmark = pytest.mark.anyio

_WORDS = "<p>Some words that make a paragraph of this page, enough of them to be its text.</p>"


def site_request(site: Site, path: str = "/", **changes: object) -> CrawlRequest:
    whole = CrawlRequest(urls=(site.url(path),), max_pages=100, max_depth=10, scope="host")
    return replace(whole, **changes)  # type: ignore[arg-type] # names are checked by replace


def counts(pages: Mapping[Outcome, int]) -> tuple[int, int, int, int]:
    return (
        pages[Outcome.FETCHED],
        pages[Outcome.UNCHANGED],
        pages[Outcome.FAILED],
        pages[Outcome.BLOCKED],
    )


async def test_single_page_is_the_default(extractor: Extractor) -> None:
    async with serving({"/": html(f"<h1>Hello</h1>{_WORDS}{links('/a')}")}) as site:
        crawl = Crawl(CrawlRequest(urls=(site.url("/"),)))
        report = await crawl.run(extractor)
        assert counts(report.pages) == (1, 0, 0, 0)
        assert site.paths() == ["/"]
    (page,) = crawl.pages
    assert page.text.startswith("# Hello\n\nSome words")
    assert (page.title, page.language, page.status) == ("A page", "en", 200)
    assert page.links == (site.url("/a"),)
    assert crawl.progress[-1] == (1, 1, site.url("/"))


async def test_site_is_walked_breadth_first_each_page_once(extractor: Extractor) -> None:
    pages = {
        "/": html(_WORDS + links("/a", "/b", "/#top", "/a?utm_source=x")),
        "/a": html(_WORDS + links("/a/deep", "/", "/b")),
        "/b": html(_WORDS + links("/a/deep")),
        "/a/deep": html(_WORDS + links("/a/deep/er")),
        "/a/deep/er": html(_WORDS),
    }
    async with serving(dict(pages)) as site:
        crawl = Crawl(site_request(site), limits=replace(FAST, fetchers=1))
        report = await crawl.run(extractor)
        assert site.paths() == ["/", "/a", "/b", "/a/deep", "/a/deep/er"]
    assert counts(report.pages) == (5, 0, 0, 0)
    assert [done for done, _, _ in crawl.progress] == [1, 2, 3, 4, 5]


async def test_depth_and_number_of_pages_are_kept(extractor: Extractor) -> None:
    chain = {f"/{n}": html(_WORDS + links(f"/{n + 1}")) for n in range(9)}
    async with serving(dict(chain)) as site:
        deep = Crawl(site_request(site, "/0", max_depth=3))
        assert (await deep.run(extractor)).pages[Outcome.FETCHED] == 4
        few = Crawl(site_request(site, "/0", max_pages=2))
        assert (await few.run(extractor)).pages[Outcome.FETCHED] == 2


async def test_scope_and_patterns_decide_what_is_followed(extractor: Extractor) -> None:
    async with serving({}) as other, serving({}) as site:
        found = links("/docs/b", "/docs/private/c", "/blog/d", "/docs/e.pdf?x", other.url("/"))
        site.pages["/docs/a"] = html(_WORDS + found)
        site.pages["/docs/b"] = html(_WORDS)
        crawl = Crawl(site_request(site, "/docs/a", scope="prefix", exclude=("/docs/private/*",)))
        await crawl.run(extractor)
        assert sorted(site.paths()) == ["/docs/a", "/docs/b", "/docs/e.pdf?x"]
        assert not other.requests
        site.requests.clear()
        await Crawl(site_request(site, "/docs/a", include=("*/blog/*",))).run(extractor)
        assert sorted(site.paths()) == ["/blog/d", "/docs/a"]


async def test_robots_txt_is_obeyed_also_after_a_redirect(extractor: Extractor) -> None:
    pages = {
        "/robots.txt": Reply(b"User-agent: *\nDisallow: /private\n", type="text/plain"),
        "/": html(_WORDS + links("/private/a", "/way")),
        "/way": redirect("/private/b"),
        "/private/a": html(_WORDS),
        "/private/b": html(_WORDS),
    }
    async with serving(dict(pages)) as site:
        report = await Crawl(site_request(site)).run(extractor)
        assert site.paths() == ["/", "/way"]
        assert len(site.asked("/robots.txt")) == 1
    assert counts(report.pages) == (1, 0, 0, 2)
    assert {failure.reason for failure in report.failures} == {Reason.ROBOTS}


async def test_crawl_delay_parts_the_requests(extractor: Extractor) -> None:
    pages = {
        "/robots.txt": Reply(b"User-agent: xnai\nCrawl-delay: 0.2\n", type="text/plain"),
        "/": html(_WORDS + links("/a", "/b")),
        "/a": html(_WORDS),
        "/b": html(_WORDS),
    }
    async with serving(dict(pages)) as site:
        await Crawl(site_request(site)).run(extractor)
        times = [request.at for request in site.requests if request.path != "/robots.txt"]
    pauses = [after - before for before, after in pairwise(times)]
    assert len(pauses) == 2
    # The delay is between starts; a request may reach the server a little early or late.
    assert min(pauses) > 0.15


async def test_slow_host_does_not_hold_up_another(extractor: Extractor) -> None:
    waiting, over = anyio.Event(), anyio.Event()

    async def wait(stream: anyio.abc.SocketStream) -> None:
        waiting.set()
        await over.wait()
        await local_site.reset(stream)

    async def on_progress(done: int, total: int, message: str) -> None:
        if message == quick.url("/9"):
            assert waiting.is_set()
            over.set()

    quick_pages = {f"/{n}": html(_WORDS + links(f"/{n + 1}")) for n in range(10)}
    async with serving({"/": wait}) as slow, serving(dict(quick_pages)) as quick:
        starts = (slow.url("/"), quick.url("/0"))
        crawl = Crawl(CrawlRequest(starts, max_pages=11, max_depth=20, scope="host"))
        crawl.limits = replace(FAST, first_byte_s=30.0, page_s=30.0, retries=0)
        crawl.on_progress = on_progress  # type: ignore[method-assign]
        report = await crawl.run(extractor)
    assert counts(report.pages) == (10, 0, 1, 0)


async def test_known_page_is_asked_for_conditionally(extractor: Extractor) -> None:
    page = replace(html(_WORDS), headers=(("ETag", '"v1"'),))
    async with serving({"/": page}) as site:
        first = Crawl(CrawlRequest((site.url("/"),)))
        await first.run(extractor)
        kept = {page.url: remember(page) for page in first.pages}
        second = Crawl(first.request, kept)
        report = await second.run(extractor)
        assert site.asked("/")[1].headers["if-none-match"] == '"v1"'
    assert counts(report.pages) == (0, 1, 0, 0)
    assert not second.pages
    assert second.unchanged == kept


@pytest.mark.parametrize("with_links", [True, False])
async def test_recrawl_of_an_unchanged_start_still_finds_what_is_new(
    extractor: Extractor, *, with_links: bool
) -> None:
    """A 304 has no links: without care the second crawl of a site ends at its first page."""
    start = replace(html(_WORDS + links("/a")), headers=(("ETag", '"v1"'),))
    async with serving({"/": start, "/a": html(_WORDS)}) as site:
        first = Crawl(site_request(site))
        await first.run(extractor)
        site.pages["/a"] = html(_WORDS + "<p>News, which were not here before.</p>")
        kept = {page.url: remember(page, with_links=with_links) for page in first.pages}
        second = Crawl(first.request, kept)
        report = await second.run(extractor)
    assert counts(report.pages) == (1, 1, 0, 0)
    assert [page.url for page in second.pages] == [site.url("/a")]


async def test_same_content_with_a_new_etag_is_unchanged_and_the_new_etag_told(
    extractor: Extractor,
) -> None:
    page = replace(html(_WORDS), headers=(("ETag", '"v1"'),))
    async with serving({"/": page}) as site:
        first = Crawl(CrawlRequest((site.url("/"),)))
        await first.run(extractor)
        site.pages["/"] = replace(page, headers=(("ETag", '"v2"'),))
        second = Crawl(first.request, {page.url: remember(page) for page in first.pages})
        assert (await second.run(extractor)).pages[Outcome.UNCHANGED] == 1
    assert second.unchanged[site.url("/")].etag == '"v2"'


async def test_throttled_page_comes_when_the_server_says(extractor: Extractor) -> None:
    busy = Reply(b"busy", 503, headers=(("Retry-After", "1"),))
    async with serving({"/": [busy, html(_WORDS)]}) as site:
        report = await Crawl(CrawlRequest((site.url("/"),))).run(extractor)
        before, after = site.asked("/")
    assert counts(report.pages) == (1, 0, 0, 0)
    assert after.at - before.at >= 0.95


async def test_page_throttled_for_too_long_is_given_up(extractor: Extractor) -> None:
    busy = Reply(b"busy", 429, headers=(("Retry-After", "3600"),))
    async with serving({"/": busy}) as site:
        report = await Crawl(CrawlRequest((site.url("/"),))).run(extractor)
        assert len(site.asked("/")) == 1
    assert report.failures[0].reason is Reason.THROTTLED


async def test_broken_connection_is_tried_again(extractor: Extractor) -> None:
    async with serving({"/": [local_site.reset, html(_WORDS)]}) as site:
        report = await Crawl(CrawlRequest((site.url("/"),))).run(extractor)
    assert counts(report.pages) == (1, 0, 0, 0)


async def test_start_may_redirect_and_opens_the_scope_there(extractor: Extractor) -> None:
    async with serving({}) as new, serving({}) as old:
        old.pages["/"] = redirect(new.url("/home"))
        new.pages["/home"] = html(_WORDS + links("/a", "/out"))
        new.pages["/a"] = html(_WORDS)
        new.pages["/out"] = redirect("http://127.0.0.9:1/")
        report = await Crawl(site_request(old)).run(extractor)
    # /a has the text of /home but is a page of its own; /out leads out of the scope.
    assert counts(report.pages) == (2, 0, 0, 1)
    assert report.failures[0].reason is Reason.SCOPE


async def test_two_ways_to_one_page_give_one_page(extractor: Extractor) -> None:
    canonical = '<link rel="canonical" href="/a">'
    pages = {
        "/": html(links("/a", "/way", "/a?print=1") + _WORDS),
        "/way": redirect("/a"),
        "/a": html(_WORDS, head=canonical),
        "/a?print=1": html(_WORDS, head=canonical),
    }
    async with serving(dict(pages)) as site:
        crawl = Crawl(site_request(site), limits=replace(FAST, fetchers=1))
        report = await crawl.run(extractor)
    assert [page.final_url for page in crawl.pages] == [site.url("/"), site.url("/a")]
    assert report.duplicates == 2


async def test_canonical_that_names_the_home_page_everywhere_loses_nothing(
    extractor: Extractor,
) -> None:
    head = '<link rel="canonical" href="/">'
    pages = {
        "/": html(_WORDS + links("/a"), head=head),
        "/a": html("<p>Quite other words, of a page of its own.</p>", head=head),
    }
    async with serving(dict(pages)) as site:
        assert (await Crawl(site_request(site)).run(extractor)).pages[Outcome.FETCHED] == 2


async def test_nofollow_and_noindex_are_respected(extractor: Extractor) -> None:
    pages = {
        "/": html(_WORDS + links("/noindex", "/nofollow") + '<a rel="nofollow" href="/no1">x</a>'),
        "/noindex": html(_WORDS + links("/b"), head='<meta name="robots" content="noindex">'),
        "/nofollow": html(_WORDS + links("/no2"), head='<meta name="ROBOTS" content="NoFollow">'),
        "/b": replace(html(_WORDS + links("/no3")), headers=(("X-Robots-Tag", "nofollow"),)),
    }
    async with serving(dict(pages)) as site:
        crawl = Crawl(site_request(site))
        report = await crawl.run(extractor)
        assert sorted(site.paths()) == ["/", "/b", "/nofollow", "/noindex"]
    assert [failure.reason for failure in report.failures] == [Reason.NOINDEX]


async def test_sitemaps_are_walked_as_robots_txt_names_them(extractor: Extractor) -> None:
    async with serving({}) as site:
        robots = f"Sitemap: {site.url('/index.xml')}\n".encode()
        site.pages["/robots.txt"] = Reply(robots, type="text/plain")
        index = (
            f"<sitemapindex><sitemap><loc>{site.url('/pages.xml')}</loc></sitemap></sitemapindex>"
        )
        site.pages["/index.xml"] = Reply(index.encode(), type="application/xml")
        listed = "".join(f"<url><loc>{site.url(f'/{n}')}</loc></url>" for n in range(3))
        pages = f"<urlset xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'>{listed}</urlset>"
        site.pages["/pages.xml"] = Reply(pages.encode(), type="text/xml")
        site.pages |= {f"/{n}": html(f"<p>Page number {n} of the sitemap.</p>") for n in range(3)}
        site.pages["/"] = html(_WORDS)
        request = CrawlRequest((site.url("/"),), max_pages=10, sitemap=True)
        report = await Crawl(request).run(extractor)
    assert counts(report.pages) == (4, 0, 0, 0)


async def test_failures_are_counted_and_told(extractor: Extractor) -> None:
    pages: Answers = {
        "/": html(_WORDS + links("/gone", "/empty", "/png", "/hang", "/none")),
        "/empty": Reply(b""),
        "/png": Reply(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9),
        "/hang": local_site.hang,
        "/none": Reply(b"<html></html>"),
    }
    async with serving(dict(pages)) as site:
        report = await Crawl(site_request(site)).run(extractor)
    assert counts(report.pages) == (1, 0, 5, 0)
    reasons = {failure.url.rpartition("/")[2]: failure.reason for failure in report.failures}
    assert reasons == {
        "gone": Reason.HTTP_STATUS,
        "empty": Reason.EMPTY,
        "png": Reason.NOT_TEXT,
        "hang": Reason.FIRST_BYTE_TIMEOUT,
        "none": Reason.EMPTY,
    }


async def test_list_of_failures_is_bounded(extractor: Extractor) -> None:
    async with serving({"/": html(_WORDS + links(*(f"/{n}" for n in range(20))))}) as site:
        crawl = Crawl(site_request(site), limits=replace(FAST, failures_reported=5))
        report = await crawl.run(extractor)
    assert (len(report.failures), report.failures_omitted) == (5, 15)
    assert report.pages[Outcome.FAILED] == 20


async def test_private_address_is_blocked_with_the_entry(extractor: Extractor) -> None:
    async with serving({"/": html(_WORDS)}) as site:
        crawl = Crawl(CrawlRequest((site.url("/"), "http://[::1]:9/")), policy=EgressPolicy())
        report = await crawl.run(extractor)
        assert not site.requests
    assert counts(report.pages) == (0, 0, 0, 2)
    assert {failure.reason for failure in report.failures} == {Reason.EGRESS}
    assert "EGRESS_ALLOW entry '127.0.0.1'" in report.failures[0].detail


async def test_bad_start_is_blocked_and_the_others_go_on(extractor: Extractor) -> None:
    async with serving({"/": html(_WORDS)}) as site:
        request = CrawlRequest(("file:///etc/passwd", site.url("/"), "http://"), max_pages=3)
        report = await Crawl(request).run(extractor)
    assert counts(report.pages) == (1, 0, 0, 2)


async def test_error_of_the_caller_ends_the_crawl_as_it_is(extractor: Extractor) -> None:
    class Fenced(Exception):
        pass

    async def refuse(page: object) -> None:
        raise Fenced(page)

    pages: Answers = {
        "/": html(_WORDS + links("/a", "/hang")),
        "/a": html(_WORDS),
        "/hang": local_site.hang,
    }
    async with serving(dict(pages)) as site:
        crawl = Crawl(site_request(site))
        crawl.on_page = refuse  # type: ignore[method-assign]
        with pytest.raises(Fenced):
            await crawl.run(extractor)


async def test_cancelled_crawl_leaves_nothing_running(extractor: Extractor) -> None:
    hanging = anyio.Event()

    async def hang(stream: anyio.abc.SocketStream) -> None:
        hanging.set()
        await local_site.hang(stream)

    async with serving({"/": html(_WORDS + links("/hang")), "/hang": hang}) as site:
        crawl = Crawl(site_request(site), limits=replace(FAST, first_byte_s=60.0, page_s=60.0))
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                group.start_soon(crawl.run, extractor)
                await hanging.wait()
                group.cancel_scope.cancel()
        again = Crawl(CrawlRequest((site.url("/"),)))
        assert (await again.run(extractor)).pages[Outcome.FETCHED] == 1


_SPINNING = """
import os, signal
from crawl.extract import extract_html

def parse(body, **arguments):
    if b"<p>spin" in body:
        while True:
            pass
    if b"<p>crash" in body:
        os.kill(os.getpid(), signal.SIGSEGV)
    return extract_html(body, **arguments)
"""


async def test_page_that_hangs_or_crashes_its_parser_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spinning_parser.py").write_text(_SPINNING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    limits = replace(FAST, parse_s=1.0)
    pages = {f"/{n}": html(f"<p>Fine page number {n} with some words.</p>") for n in range(8)}
    pages |= {"/spin": html("<p>spin</p>"), "/crash": html("<p>crash</p>")}
    async with serving({"/": html(_WORDS + links(*pages)), **pages}) as site:
        crawl = Crawl(site_request(site), limits=limits)
        async with Extractor(limits, Targets(html="spinning_parser:parse")) as extractor:
            report = await crawl.run(extractor)
    assert counts(report.pages) == (9, 0, 2, 0)
    assert {failure.reason for failure in report.failures} == {
        Reason.PARSE_TIMEOUT,
        Reason.PARSER_CRASHED,
    }


def _parsers() -> list[int]:
    return [
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "crawl parser" in " ".join(child.cmdline())
    ]


async def _death(pid: int) -> None:
    handle = Handle(pid)
    with anyio.fail_after(20):
        await handle.wait_death()
    handle.close()
    await anyio.wait_all_tasks_blocked()


async def test_parser_starts_on_need_and_ends_when_idle_or_left() -> None:
    async with Extractor(CrawlLimits(parser_idle_s=0.05)) as extractor:
        assert not _parsers()
        await extractor.html(html(_WORDS).body, url="http://a.example/")
        for pid in _parsers():
            await _death(pid)
        assert (await extractor.html(html(_WORDS).body, url="http://a.example/")).text
    async with Extractor() as extractor:
        await extractor.html(html(_WORDS).body, url="http://a.example/")
        assert len(_parsers()) == 1
    assert not _parsers()


async def test_parser_killed_while_idle_is_replaced(extractor: Extractor) -> None:
    await extractor.html(html(_WORDS).body, url="http://a.example/")
    (pid,) = _parsers()
    os.kill(pid, signal.SIGKILL)
    await _death(pid)
    assert (await extractor.html(html(_WORDS).body, url="http://a.example/")).text


async def test_cancelled_document_kills_its_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spinning_parser.py").write_text(_SPINNING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with Extractor(targets=Targets(html="spinning_parser:parse")) as extractor:
        await extractor.html(b"<p>fine words", url="http://a.example/")
        with anyio.move_on_after(0.2) as scope:
            await extractor.html(b"<p>spin", url="http://a.example/")
        assert scope.cancelled_caught
        assert not _parsers()
        assert (await extractor.html(b"<p>fine words", url="http://a.example/")).text


async def test_parser_dies_with_its_parent(tmp_path: Path) -> None:
    """Also while it spins, when nobody reads its stdin: the kernel sees to it."""
    (tmp_path / "spinning_parser.py").write_text(_SPINNING)
    script = """
import anyio, sys
from crawl.extractor import Extractor, Targets

async def main():
    async with Extractor(targets=Targets(html="spinning_parser:parse")) as extractor:
        await extractor.html(b"<p>fine", url="http://a.example/")
        print("ready", flush=True)
        await extractor.html(b"<p>spin", url="http://a.example/")

anyio.run(main)
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-c", script]
    async with await anyio.open_process(command, stdin=None, env=environment) as parent:
        assert parent.stdout is not None
        assert b"ready" in await parent.stdout.receive()
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
        await _death(child.pid)


async def test_parser_gets_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XNAI_DATABASE_URL", "postgresql://secret")
    (tmp_path / "telling_parser.py").write_text(
        "import os\nfrom crawl.pages import Extracted\n"
        "def parse(body, **arguments):\n"
        "    return Extracted(title=None, text=repr(sorted(os.environ)), content_hash='')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with Extractor(targets=Targets(html="telling_parser:parse")) as extractor:
        found = await extractor.html(b"x", url="http://a.example/")
    assert "PATH" in found.text
    assert "XNAI" not in found.text
