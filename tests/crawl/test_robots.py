"""robots.txt by RFC 9309: what each answer means, fetched once, bounded, redirected."""

from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import httpx
import pytest

from crawl.errors import PageError
from crawl.fetch import crawl_client
from crawl.pages import Reason
from crawl.robots import Robots
from tests.crawl import local_site
from tests.crawl.local_site import AGENT, FAST, LOCAL, Fault, Reply, Site, redirect, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with crawl_client(LOCAL, user_agent=AGENT, limits=FAST) as found:
        yield found


def robots_txt(*lines: str) -> Reply:
    return Reply("\n".join(lines).encode(), type="text/plain")


async def permits(robots: Robots, url: str) -> bool:
    try:
        await robots.check(url)
    except PageError as error:
        return error.reason is not Reason.ROBOTS
    return True


@pytest.mark.parametrize(
    ("reply", "permitted"),
    [
        (robots_txt("User-agent: *", "Disallow: /"), False),
        (robots_txt("User-agent: *", "Disallow:"), True),
        (robots_txt("User-agent: xnai", "Disallow: /", "User-agent: *", "Allow: /"), False),
        (robots_txt("User-agent: other", "Disallow: /"), True),
        (robots_txt("User-agent: *", "Disallow: /", "Allow: /page$"), True),
        (robots_txt("User-agent: *", "Disallow: /*ge"), False),
        (Reply(b""), True),
        (Reply(b"\x00\xff\xfe binary \x80" * 100), True),
        (Reply(b"x", 401), True),
        (Reply(b"x", 403), True),
        (Reply(b"x", 404), True),
        (Reply(b"x", 429), False),
        (Reply(b"x", 500), False),
        (Reply(b"x", 503), False),
        (local_site.hang, False),
        (local_site.drip_body, False),
        (local_site.garbage, False),
        (redirect("/robots.txt"), True),
    ],
)
async def test_answer_means(
    client: httpx.AsyncClient, reply: Reply | Fault, *, permitted: bool
) -> None:
    async with serving({"/robots.txt": reply}) as site:
        assert await permits(Robots(client, FAST), site.url("/page")) is permitted


async def test_rules_are_fetched_once_for_many_askers(client: httpx.AsyncClient) -> None:
    async with serving({"/robots.txt": robots_txt("User-agent: *", "Disallow: /b")}) as site:
        robots = Robots(client, FAST)
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(robots.check, site.url("/a"))
        assert not await permits(robots, site.url("/b"))
        assert len(site.requests) == 1


async def test_rules_are_fetched_again_when_old_and_forgotten_when_many(
    client: httpx.AsyncClient,
) -> None:
    async with serving({}) as site, serving({}) as other:
        old = Robots(client, replace(FAST, robots_age_s=0.0))
        await old.check(site.url("/"))
        await old.check(site.url("/"))
        assert len(site.requests) == 2
        small = Robots(client, replace(FAST, robots_cached=1))
        for place in (site, other, site):
            await small.check(place.url("/"))
        assert (len(site.requests), len(other.requests)) == (4, 1)


async def test_redirected_rules_hold_for_the_origin_that_was_asked(
    client: httpx.AsyncClient,
) -> None:
    async with serving({}) as away, serving({}) as site:
        site.pages["/robots.txt"] = redirect(away.url("/rules"))
        away.pages["/rules"] = robots_txt("User-agent: *", "Disallow: /")
        assert not await permits(Robots(client, FAST), site.url("/"))
        assert await permits(Robots(client, FAST), away.url("/"))


async def test_only_the_first_500_kib_are_read(client: httpx.AsyncClient) -> None:
    lines = b"User-agent: *\nDisallow: /early\n" + b"# filler\n" * 60_000 + b"Disallow: /late\n"
    async with serving({"/robots.txt": Reply(lines, type="text/plain")}) as site:
        robots = Robots(client, FAST)
        assert not await permits(robots, site.url("/early"))
        assert await permits(robots, site.url("/late"))


async def test_delay_and_sitemaps_are_told(client: httpx.AsyncClient) -> None:
    async with serving({}) as site:
        site.pages["/robots.txt"] = robots_txt(
            "User-agent: *",
            "Crawl-delay: 2.5",
            f"Sitemap: {site.url('/s.xml')}",
            "Sitemap: ftp://x",
        )
        rules = await Robots(client, FAST).rules(site.url("/"))
        assert rules.crawl_delay_s == 2.5
        assert rules.sitemaps == (site.url("/s.xml"),)


async def down(site: Site, client: httpx.AsyncClient) -> Reason:
    with pytest.raises(PageError) as caught:
        await Robots(client, FAST).check(site.url("/"))
    return caught.value.reason


async def test_host_that_is_down_or_private_is_told_as_such(client: httpx.AsyncClient) -> None:
    async with serving({}) as site:
        pass
    assert await down(site, client) is Reason.UNREACHABLE
    assert await down(Site("http://10.0.0.1"), client) is Reason.EGRESS


async def test_rules_that_redirect_to_a_private_address_are_not_read(
    client: httpx.AsyncClient,
) -> None:
    async with serving({"/robots.txt": redirect("http://169.254.169.254/")}) as site:
        assert await down(site, client) is Reason.EGRESS
