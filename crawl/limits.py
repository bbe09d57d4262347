"""Every bound of a crawl in one place: time, size, number. Defaults suit other people's sites."""

from dataclasses import dataclass

_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CrawlLimits:
    """What a crawl may cost this machine and the sites that it visits."""

    connect_s: float = 10.0
    first_byte_s: float = 20.0  # from the request to the end of the response's head
    stall_s: float = 15.0  # between two parts of a body
    page_s: float = 60.0  # all hops and the body together
    page_bytes: int = 10 * _MEBIBYTE  # decompressed
    redirects: int = 10

    robots_bytes: int = 500 * 1024  # RFC 9309 §2.5
    robots_age_s: float = 3600.0
    robots_cached: int = 1000
    crawl_delay_max_s: float = 30.0

    host_delay_s: float = 0.1  # between two requests' starts at one host
    host_connections: int = 2
    connections: int = 200  # of one client, which many crawls may share
    fetchers: int = 8  # pages in hand at once: fetched, or waiting to be parsed
    retries: int = 2  # of a page that is throttled or whose connection broke
    retry_after_max_s: float = 30.0

    url_length: int = 2000
    urls_seen: int = 100_000
    page_links: int = 5000
    sitemaps: int = 50
    sitemap_urls: int = 50_000
    failures_reported: int = 100

    parse_s: float = 20.0
    parser_start_s: float = 30.0
    parser_idle_s: float = 10.0
    parser_bytes: int = 1536 * _MEBIBYTE  # address space of the process that parses
    parsers: int = 1
    text_bytes: int = 20 * _MEBIBYTE  # of one parsed document, as the parser hands it over
