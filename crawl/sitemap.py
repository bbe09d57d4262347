"""XML sitemaps and their indexes (sitemaps.org), plain or gzipped, read without trusting them."""

import zlib
from dataclasses import dataclass

from lxml import etree

from crawl import urls
from crawl.errors import ExtractionError
from crawl.pages import Reason

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Sitemap:
    """The pages that a sitemap lists, and the sitemaps that an index lists."""

    pages: tuple[str, ...]
    sitemaps: tuple[str, ...]


def parse_sitemap(body: bytes, *, url: str, urls_max: int, bytes_max: int) -> Sitemap:
    """Read a sitemap, an index, or a plain list of URLs; raises ExtractionError.

    Entities are not resolved and nothing is loaded; what comes after a syntax error is lost.
    """
    body = _unpacked(body, bytes_max)
    if not body.strip():
        raise ExtractionError(Reason.EMPTY, "the sitemap has no content")
    if not body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        lines = body.decode("utf-8", "replace").split()
        return Sitemap(_canonical(lines, url, urls_max), ())
    # `recover` keeps the part before an error: sitemaps are often cut short by their generators.
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=True
    )
    root = etree.fromstring(body, parser)
    if root is None:
        raise ExtractionError(Reason.PARSE_FAILED, "the sitemap is not XML")
    pages = _locations(root, "url")
    return Sitemap(
        _canonical(pages, url, urls_max), _canonical(_locations(root, "sitemap"), url, urls_max)
    )


def _unpacked(body: bytes, bytes_max: int) -> bytes:
    if not body.startswith(_GZIP):
        return body
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = inflater.decompress(body, bytes_max)
    except zlib.error as error:
        raise ExtractionError(Reason.ENCODING, f"the sitemap is damaged gzip: {error}") from None
    if inflater.unconsumed_tail:
        detail = f"the sitemap unpacks to more than {bytes_max} bytes"
        raise ExtractionError(Reason.TOO_LARGE, detail)
    return unpacked


def _locations(root: etree._Element, parent: str) -> list[str]:
    found = root.iterfind(f".//{{*}}{parent}/{{*}}loc")
    return [element.text for element in found if element.text]


def _canonical(found: list[str], base: str, urls_max: int) -> tuple[str, ...]:
    pages = (urls.canonical(url, base) for url in found[:urls_max])
    return tuple(dict.fromkeys(page for page in pages if page is not None))
