"""docs/dead_letters.md lists every error type that a job can end with, and no other."""

import ast
import re
from collections.abc import Iterator

from crawl.pages import BLOCKING, Reason
from tests.support.repository import ROOT, sources

DISK = ("disk_full", "disk_error")
# Raised for a page or a segment, and never the end of a job.
NOT_OF_JOBS = {"segment_error", "segment_missing", "segment_damaged"}
# Ends the visit of one page; a crawl that met nothing else has simply found nothing.
OF_PAGES = {
    Reason.HTTP_STATUS,
    Reason.REDIRECT_LOOP,
    Reason.TOO_MANY_REDIRECTS,
    *BLOCKING,
}


def _types() -> Iterator[str]:
    for path in sources("jobs", "workers", "engines"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.keyword(arg="type_", value=ast.Constant(value=str(text))):
                    yield text
                case ast.Call(
                    func=ast.Name(id="Problem"), args=[ast.Constant(value=str(text)), *_]
                ):
                    yield text
                case ast.AnnAssign(target=ast.Name(id="code"), value=ast.Constant(value=str(text))):
                    yield text
                case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(text))):
                    yield text
                case _:
                    pass


def _documented() -> set[str]:
    page = (ROOT / "docs" / "dead_letters.md").read_text()
    table = page.partition("## Which errors are there?")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_error_type_is_documented() -> None:
    found = {*_types(), *(Reason(r).value for r in set(Reason) - OF_PAGES), "embedding_failed"}
    assert _documented() == found - NOT_OF_JOBS | set(DISK)
