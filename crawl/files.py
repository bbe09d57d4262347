"""Files become text: markdown, HTML, plain text and PDF, cleaned alike, failures typed alike."""

import io
import re
from itertools import islice
from pathlib import PurePath

from pypdf import PdfReader
from pypdf.errors import PyPdfError

from crawl.errors import ExtractionError
from crawl.extract import extract_html
from crawl.pages import Extracted, Heading, Reason
from crawl.text import clean, content_hash, decode

_TYPES = {
    "application/pdf": "pdf",
    "application/xhtml+xml": "html",
    "text/html": "html",
    "text/markdown": "md",
    "text/x-markdown": "md",
    "text/plain": "txt",
}
_SUFFIXES = {
    ".pdf": "pdf",
    ".htm": "html",
    ".html": "html",
    ".xhtml": "html",
    ".md": "md",
    ".markdown": "md",
    ".txt": "txt",
    ".text": "txt",
}
_PDF_PAGES_MAX = 5000
_TITLE_MAX = 500
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:\s*(.+)$", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_HEADING = re.compile(r"^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")


def extract_file(
    body: bytes, *, name: str = "", media_type: str | None = None, charset: str | None = None
) -> Extracted:
    """Extract a file by its media type, else by its name; raises ExtractionError.

    The title is the document's own, else the file's name without its suffix.
    """
    kind = _kind(body, name, media_type)
    if not body:
        raise ExtractionError(Reason.EMPTY, "the file has no content")
    if kind == "html":
        found = extract_html(body, url=f"http://localhost/{PurePath(name).name}", charset=charset)
        title, text, headings, language = found.title, found.text, found.headings, found.language
    elif kind == "pdf":
        (title, text), headings, language = _pdf(body), (), None
    else:
        (title, text), language = _markdown_or_text(decode(body, charset), kind), None
        headings = _headings(text) if kind == "md" else ()
    if not text:
        raise ExtractionError(Reason.EMPTY, f"the {kind} file holds no text")
    title = title or (headings[0].text if headings else None) or PurePath(name).stem or None
    return Extracted(
        title=title,
        text=text,
        content_hash=content_hash(f"{title or ''}\n{text}"),
        headings=headings,
        language=language,
    )


def _kind(body: bytes, name: str, media_type: str | None) -> str:
    if body.startswith(b"%PDF-"):
        return "pdf"
    by_type = _TYPES.get((media_type or "").partition(";")[0].strip().lower())
    by_name = _SUFFIXES.get(PurePath(name).suffix.lower())
    # Browsers and tools label markdown as plain text, so a telling name beats that.
    kind = by_name if by_type in {None, "txt"} and by_name else by_type
    if kind is None:
        what = media_type or PurePath(name).suffix or "a file without a name"
        detail = f"{what} is not understood: md, html, txt and pdf are"
        raise ExtractionError(Reason.UNSUPPORTED_TYPE, detail)
    return kind


def _markdown_or_text(text: str, kind: str) -> tuple[str | None, str]:
    text = clean(text)
    front = _FRONT_MATTER.match(text) if kind == "md" else None
    if front is None:
        return None, text
    title = _FRONT_TITLE.search(front[1])
    return (title[1].strip().strip("\"'") if title else None), text[front.end() :].strip()


def _headings(text: str) -> tuple[Heading, ...]:
    """Return markdown's ATX headings, those inside fenced code left out."""
    found: list[Heading] = []
    fence: str | None = None
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if mark and (fence is None or mark[1].startswith(fence)):
            fence = mark[1] if fence is None else None
        heading = _HEADING.match(line) if fence is None else None
        if heading and heading[2]:
            found.append(Heading(len(heading[1]), heading[2]))
    return tuple(found)


def _pdf(body: bytes) -> tuple[str | None, str]:
    try:
        reader = PdfReader(io.BytesIO(body))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ExtractionError(Reason.ENCRYPTED, "the PDF needs a password")
        pages = (page.extract_text() for page in islice(reader.pages, _PDF_PAGES_MAX))
        text = clean("\n\n".join(pages))
        title = reader.metadata.title if reader.metadata else None
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # pypdf meets damaged files with whatever its code happens to trip over.
        raise ExtractionError(Reason.PARSE_FAILED, f"the PDF is damaged: {error}") from error
    return (" ".join(clean(title).split())[:_TITLE_MAX] or None if title else None), text
