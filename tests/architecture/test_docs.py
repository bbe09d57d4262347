"""The documentation names files that exist, links to pages that exist, loads nothing from afar."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.repository import ROOT, pages, sources

FILE = re.compile(
    r"`((?:\.?[\w-]+/)*[\w.-]+\.(?:py|sql|toml|yaml|yml|txt|md|sh)|Makefile|Caddyfile|Containerfile)`"
)
DECISION = re.compile(r"(?:docs/)?decisions/(\d{4})")
# Files of the user's, or of another program, that a page may speak of.
OF_OTHERS = {"xnai.toml", "robots.txt", "convert_torch.py", "pyvenv.cfg"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make check` builds it: strictly, so that dead links and anchors fail.

    Not with --quiet, which hides the warnings from --strict as well.
    """
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = {match[1] for match in FILE.finditer(page.read_text())} - OF_OTHERS
    missing = [
        name
        for name in sorted(named)
        if not (ROOT / name).exists() and not ("/" not in name and (page.parent / name).exists())
        and not ("/" not in name and any(ROOT.glob(f"*/{name}")))
    ]  # fmt: skip
    assert missing == []


def test_decisions_that_sources_name_exist() -> None:
    existing = {path.name[:4] for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md")}
    files = [
        *sources(),
        *(ROOT / "migrations").glob("*.sql"),
        *ROOT.glob("[a-z]*/*.sql"),
        ROOT / "pyproject.toml",
    ]
    named = {number: path for path in files for number in DECISION.findall(path.read_text())}
    assert {number: path for number, path in named.items() if number not in existing} == {}


def test_every_decision_is_listed_once_and_numbered_alone() -> None:
    folder = ROOT / "docs" / "decisions"
    files = sorted(path.name for path in folder.glob("[0-9]*.md"))
    listed = re.findall(r"\]\((\d{4}[\w.-]+\.md)\)", (folder / "index.md").read_text())
    assert sorted(listed) == files
    assert len({name[:4] for name in files}) == len(files)


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    remote = {
        (page.relative_to(site).as_posix(), address)
        for page in site.rglob("*.html")
        for address in _loaded_by(page)
        if urlsplit(address).netloc
    }
    assert remote == set()


class _Loads(HTMLParser):
    """Collects what a browser fetches by itself: not the links that a reader may click."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in {"script", "img", "iframe", "source", "video", "audio"}:
            self.addresses.append(found.get("src") or "")
        elif tag == "link" and (found.get("rel") or "") not in {"canonical", "next", "prev"}:
            self.addresses.append(found.get("href") or "")


def _loaded_by(page: Path) -> list[str]:
    parser = _Loads()
    parser.feed(page.read_text())
    return parser.addresses
