"""docs/api.md lists every route of the API, and no other."""

import re
from pathlib import Path

from api.app import create_app
from runtime.settings import load_settings
from tests.support.repository import ROOT

# The page that a browser opens first is no part of the API.
PAGES = {("GET", "/")}


def test_documentation_lists_the_routes_there_are(tmp_path: Path) -> None:
    documented = set(
        re.findall(
            r"`(GET|POST|PUT|PATCH|DELETE) (/[^`]*)`", (ROOT / "docs" / "api.md").read_text()
        )
    )
    paths = create_app(load_settings(data_dir=tmp_path)).openapi()["paths"]
    existing = {(method.upper(), path) for path, item in paths.items() for method in item}
    assert documented == existing - PAGES
