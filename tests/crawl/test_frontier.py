"""What a URL is, what belongs to a crawl, whose turn it is: no network, the clock given."""

import time
from dataclasses import replace

import pytest

from crawl.frontier import Frontier
from crawl.limits import CrawlLimits
from crawl.pages import CrawlRequest
from crawl.patterns import Patterns
from crawl.scope import Area
from crawl.urls import canonical, host, origin

_LIMITS = CrawlLimits(host_delay_s=1.0, host_connections=2, crawl_delay_max_s=5.0)
_REQUEST = CrawlRequest(("http://a.example/",), max_pages=10, max_depth=3, scope="host")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTP://Example.COM:80", "http://example.com/"),
        ("https://example.com:443/a", "https://example.com/a"),
        ("http://example.com:8080/a#part", "http://example.com:8080/a"),
        ("http://example.com./a", "http://example.com/a"),
        ("http://example.com/a/../b/./c/..", "http://example.com/b/"),
        ("http://example.com/../../a", "http://example.com/a"),
        ("http://example.com/a/%2e%2E/b", "http://example.com/b"),
        ("http://example.com/%7euser/%c3%a4", "http://example.com/~user/%C3%A4"),
        ("http://example.com/ä ö", "http://example.com/%C3%A4%20%C3%B6"),
        ("http://example.com/100%", "http://example.com/100%25"),
        ("http://example.com/a%2Fb", "http://example.com/a%2Fb"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://example.com/?b=2&a=1&utm_source=x&fbclid=y", "http://example.com/?b=2&a=1"),
        ("http://example.com/?gclid=1", "http://example.com/"),
        ("http://example.com/\n\ta", "http://example.com/a"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
        ("mailto:x@example.com", None),
        ("javascript:void(0)", None),
        ("http://", None),
        ("http://user@example.com/", None),
        ("http://example.com/" + "a" * 3000, None),
        ("http://[::1", None),
        ("http://example.com:99999/", None),
    ],
)
def test_url_has_one_spelling(url: str, expected: str | None) -> None:
    assert canonical(url) == expected
    if expected is not None:
        assert canonical(expected) == expected, "not stable"


def test_parts_of_a_url() -> None:
    assert origin("https://a.example:8443/x?y") == "https://a.example:8443"
    assert host("https://a.example:8443/x?y") == "a.example:8443"


@pytest.mark.parametrize(
    ("scope", "start", "url", "inside"),
    [
        ("page", "http://a.example/x", "http://a.example/x", True),
        ("page", "http://a.example/x", "http://a.example/y", False),
        ("prefix", "http://a.example/docs/x", "http://a.example/docs/y/z", True),
        ("prefix", "http://a.example/docs/", "http://a.example/docs", True),
        ("prefix", "http://a.example/docs/x", "http://a.example/docs-old/y", False),
        ("prefix", "http://a.example/docs/x", "http://b.example/docs/y", False),
        ("host", "http://a.example/docs/x", "https://a.example/", True),
        ("host", "http://a.example/", "http://www.a.example/", False),
        ("host", "http://a.example/", "http://a.example:8080/", False),
        ("domain", "http://www.a.co.uk/", "http://docs.a.co.uk/x", True),
        ("domain", "http://a.co.uk/", "http://b.co.uk/", False),
        ("domain", "http://one.github.io/", "http://two.github.io/", False),
        ("domain", "http://10.0.0.1/", "http://10.0.0.2/", False),
        ("domain", "http://127.0.0.1:1/", "http://127.0.0.1:2/", True),
        ("domain", "http://localhost/", "http://localhost:81/", True),
    ],
)
def test_scope_says_how_far(scope: str, start: str, url: str, *, inside: bool) -> None:
    assert Area(scope, start).holds(url) is inside  # type: ignore[arg-type] # a literal each


def test_patterns_choose_by_path_or_whole_url() -> None:
    patterns = Patterns.compile(["/docs/*", "*.example/a?"], ["*/private/*", "/docs/[xy]"])
    assert patterns.wants("http://a.example/docs/a")
    assert patterns.wants("http://a.example/a1")
    assert not patterns.wants("http://a.example/docs/private/x")
    assert not patterns.wants("http://a.example/docs/x")
    assert not patterns.wants("http://a.example/blog")


def test_hostile_pattern_takes_no_time() -> None:
    patterns = Patterns.compile(["*" + "a*" * 200 + "b"], ["*(a+)+$*"])
    started = time.monotonic()
    assert not patterns.wants("http://a.example/" + "a" * 1900)
    assert time.monotonic() - started < 1.0


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 100"):
        Patterns.compile(["*"] * 101, [])


def _frontier(**changes: object) -> Frontier:
    frontier = Frontier(replace(_REQUEST, **changes), _LIMITS)  # type: ignore[arg-type]
    frontier.add_start("http://a.example/")
    return frontier


def test_host_is_asked_alone_until_its_rules_are_known_then_by_its_delay() -> None:
    frontier = _frontier()
    frontier.add_links(tuple(f"http://a.example/{n}" for n in range(5)), 1)
    assert frontier.take(0.0) is not None
    assert frontier.take(100.0) is None
    frontier.set_delay("http://a.example/", 3.0)
    assert frontier.take(2.9) is None
    assert frontier.wait_s(2.0) == pytest.approx(1.0)
    assert frontier.take(3.0) is not None
    assert frontier.take(100.0) is None, "two connections at most"
    frontier.release("http://a.example/")
    assert frontier.take(100.0) is not None


def test_delay_asked_for_has_a_limit_and_ours_is_the_least() -> None:
    frontier = _frontier()
    frontier.add_links(("http://a.example/1",), 1)
    frontier.take(0.0)
    frontier.set_delay("http://a.example/", 86_400.0)
    assert frontier.wait_s(0.0) == _LIMITS.crawl_delay_max_s
    other = _frontier()
    other.add_links(("http://a.example/1",), 1)
    other.take(0.0)
    other.set_delay("http://a.example/", 0.0)
    assert other.wait_s(0.0) == _LIMITS.host_delay_s


def test_each_url_is_taken_once() -> None:
    frontier = _frontier()
    frontier.add_links(("http://a.example/1", "http://a.example/1", "http://a.example/"), 1)
    frontier.set_delay("http://a.example/", 0.0)
    taken = [entry.url for now in range(5) if (entry := frontier.take(float(now)))]
    frontier.release("http://a.example/")
    assert taken == ["http://a.example/", "http://a.example/1"]
    assert frontier.take(99.0) is None
    assert frontier.wait_s(99.0) is None


def test_url_claimed_by_a_redirect_is_not_visited_again() -> None:
    frontier = _frontier()
    frontier.add_links(("http://a.example/1",), 1)
    assert frontier.take(0.0) is not None
    frontier.set_delay("http://a.example/", 0.0)
    frontier.release("http://a.example/")
    assert frontier.claim("http://a.example/1")
    assert not frontier.claim("http://a.example/1")
    assert frontier.take(99.0) is None


def test_number_of_urls_kept_is_bounded() -> None:
    frontier = Frontier(replace(_REQUEST, max_pages=10**6), replace(_LIMITS, urls_seen=10))
    frontier.add_start("http://a.example/")
    frontier.add_links(tuple(f"http://a.example/{n}" for n in range(100)), 1)
    assert frontier.total == 10


def test_links_beyond_the_depth_are_not_added() -> None:
    frontier = _frontier()
    frontier.add_links(("http://a.example/4",), 4)
    assert frontier.total == 1


def test_retry_goes_first_and_waits() -> None:
    frontier = _frontier()
    frontier.add_links(("http://a.example/1",), 1)
    entry = frontier.take(0.0)
    assert entry is not None
    frontier.set_delay("http://a.example/", 0.0)
    frontier.release(entry.url)
    frontier.retry(entry, 50.0)
    assert frontier.take(49.0) is None
    again = frontier.take(50.0)
    assert again == replace(entry, tries=1)
