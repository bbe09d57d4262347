"""HTML becomes text, links and cheap metadata, all from one parse. No network, no clock.

The text is markdown-like: headings, lists, tables and code keep their marks, since chunks are cut
on them. Measured: trafilatura's own metadata pass costs as much as the text, so we read ours here.
"""

import re
from urllib.parse import urlsplit

import lxml.html
from lxml import etree
from trafilatura import bare_extraction
from trafilatura.settings import Document
from trafilatura.xml import xmltotxt

from crawl import urls
from crawl.errors import ExtractionError
from crawl.pages import Extracted, Heading, Reason
from crawl.text import clean, content_hash, decode

_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_PERMALINKS = frozenset("¶#§🔗⚓")
_TITLE_MAX = 500
_HEADINGS_MAX = 1000
_LANGUAGE = re.compile(r"[a-zA-Z]{2,3}(-[a-zA-Z0-9]{1,8})*", re.ASCII)
_NOT_PAGES = re.compile(
    r"\.(7z|avi|bmp|bz2|css|deb|dmg|exe|gif|gz|ico|iso|jar|jpe?g|js|m4a|mov|mp[34]|mpe?g|og[agv]|png"
    r"|rpm|svg|tar|tgz|tiff?|ttf|wav|web[mp]|whl|woff2?|xz|zip|zst)$",
    re.IGNORECASE,
)
# A document type or an XML declaration with a charset makes lxml refuse a str: it is text by now.
_DECLARATION = re.compile(r"^\s*<\?xml[^>]{0,200}\?>")
_SHORT = 1000
_KEPT_SHARE = 0.9
_GROWN_SHARE = 1.5
_MARK = "# "
_MARKS = {**{f"h{level}": "#" * level + " " for level in range(1, 7)}, "li": "- "}
_BLOCKS = frozenset(
    {
        "p",
        "div",
        "li",
        "tr",
        "pre",
        "blockquote",
        "section",
        "article",
        "br",
        "dt",
        "dd",
        *_HEADINGS,
    }
)
_ASIDE = ("script", "style", "noscript", "template", "nav", "footer", "aside")


def extract_html(
    body: bytes, *, url: str, charset: str | None = None, links_max: int = 5000
) -> Extracted:
    """Extract one page; raises ExtractionError (empty, not_text, parse_failed)."""
    tree = _parse(decode(body, charset))
    rules = _robots_rules(tree)
    base = _base(tree, url)
    links = () if rules & {"nofollow", "none"} else _links(tree, base, links_max)
    title, headings = _title(tree), _headings(tree)
    canonical = _canonical(tree, base)
    language = _language(tree)
    text = _text(tree)
    if not text and not links:
        raise ExtractionError(Reason.EMPTY, "the page has neither text nor links")
    return Extracted(
        title=title or (headings[0].text if headings else None),
        text=text,
        content_hash=content_hash(f"{title or ''}\n{text}"),
        headings=headings,
        language=language,
        canonical=canonical,
        links=links,
        noindex=bool(rules & {"noindex", "none"}),
    )


def _parse(text: str) -> lxml.html.HtmlElement:
    text = _DECLARATION.sub("", text.replace("\x00", ""), count=1)
    # UTF-8 and named as such: libxml2 reads neither the meta's charset nor a str's own width then.
    parser = lxml.html.HTMLParser(encoding="utf-8", huge_tree=True, remove_pis=True)
    try:
        tree = lxml.html.document_fromstring(text.encode("utf-8", "replace"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise ExtractionError(Reason.EMPTY, f"the page has no elements: {error}") from None
    _flatten_code(tree)
    _drop_permalinks(tree)
    return tree


def _flatten_code(tree: lxml.html.HtmlElement) -> None:
    """Leave only text in `pre`: highlighters' spans make trafilatura drop the whole block."""
    for block in list(tree.iter("pre")):
        text, tail = block.text_content(), block.tail
        block.clear()
        block.tail = tail
        code = etree.SubElement(block, "code")
        code.text = text.strip("\n") + "\n"


def _drop_permalinks(tree: lxml.html.HtmlElement) -> None:
    for heading in list(tree.iter(*_HEADINGS)):
        for link in list(heading.iter("a")):
            if link.text_content().strip() in _PERMALINKS:
                link.drop_tree()


def _links(tree: lxml.html.HtmlElement, base: str, links_max: int) -> tuple[str, ...]:
    """Return the canonical URLs to follow, in the order of the page, each once."""
    found: dict[str, None] = {}
    for element in tree.iter("a", "area", "frame", "iframe"):
        if "nofollow" in (element.get("rel") or "").lower().split():
            continue
        link = element.get("href") or element.get("src")
        absolute = urls.canonical(link, base) if link and not link.startswith("#") else None
        if absolute is not None and not _NOT_PAGES.search(urlsplit(absolute).path):
            found[absolute] = None
        if len(found) >= links_max:
            break
    return tuple(found)


def _base(tree: lxml.html.HtmlElement, url: str) -> str:
    element = tree.find(".//base[@href]")
    href = element.get("href") if element is not None else None
    return (urls.canonical(href, url) if href else None) or url


def _canonical(tree: lxml.html.HtmlElement, base: str) -> str | None:
    for element in tree.iterfind(".//link[@rel]"):
        href = element.get("href")
        if href and "canonical" in (element.get("rel") or "").lower().split():
            return urls.canonical(href, base)
    return None


def _robots_rules(tree: lxml.html.HtmlElement) -> set[str]:
    rules: set[str] = set()
    for element in tree.iterfind(".//meta[@name]"):
        if (element.get("name") or "").lower() in {"robots", "xnai"}:
            rules |= {rule.strip() for rule in (element.get("content") or "").lower().split(",")}
    return rules


def _title(tree: lxml.html.HtmlElement) -> str | None:
    element = tree.find(".//title")
    return _one_line(element.text_content())[:_TITLE_MAX] or None if element is not None else None


def _language(tree: lxml.html.HtmlElement) -> str | None:
    language = (tree.get("lang") or tree.get("xml:lang") or "").strip().replace("_", "-")
    return language if _LANGUAGE.fullmatch(language) else None


def _headings(tree: lxml.html.HtmlElement) -> tuple[Heading, ...]:
    found = (
        Heading(int(str(element.tag)[1]), _one_line(element.text_content())[:_TITLE_MAX])
        for element in tree.iter(*_HEADINGS)
    )
    return tuple(heading for heading in found if heading.text)[:_HEADINGS_MAX]


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())


def _text(tree: lxml.html.HtmlElement) -> str:
    """Return the main text; headings decide where chunks are cut, so a text without them is redone.

    Where no element is named as the main part, trafilatura gathers paragraphs alone. Told that the
    body is the article, it keeps the structure; taken unless that brought the page's frame along.
    """
    text = _main_text(tree)
    if _MARK in text or tree.find(".//article") is not None or tree.find(".//main") is not None:
        return text or _plain_text(tree)
    if next(tree.iter(*_HEADINGS), None) is not None:
        _wrap_body(tree)
        structured = _main_text(tree)
        if len(text) * _KEPT_SHARE <= len(structured) <= max(len(text) * _GROWN_SHARE, _SHORT):
            text = structured
    return text or _plain_text(tree)


def _main_text(tree: lxml.html.HtmlElement) -> str:
    document = bare_extraction(
        tree,
        include_comments=False,
        include_formatting=True,
        include_tables=True,
        with_metadata=False,
    )
    if not isinstance(document, Document) or document.body is None:
        return ""
    return clean(xmltotxt(document.body, include_formatting=True))


def _wrap_body(tree: lxml.html.HtmlElement) -> None:
    body = tree.find("body")
    if body is not None:
        children = list(body)
        article = etree.SubElement(body, "article")
        article.text, body.text = body.text, None
        article.extend(children)


def _plain_text(tree: lxml.html.HtmlElement) -> str:
    """Take every visible word, for pages in which trafilatura finds no main part."""
    body = tree.find("body")
    if body is None:
        return ""
    for element in list(body.iter(*_ASIDE)):
        element.drop_tree()
    parts: list[str] = []
    for event, element in etree.iterwalk(body, events=("start", "end")):
        tag = str(element.tag)
        end = "\n" if tag in _BLOCKS else ""
        if event == "start":
            parts += [end, _MARKS.get(tag, ""), element.text or ""]
        else:
            parts += ["\n" if tag in _HEADINGS else "", end, element.tail or ""]
    return clean("".join(parts))
