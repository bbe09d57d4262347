"""One stack and one site for all journeys, so that a run pays for them once."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.stack import Stack

PAGES = {
    "index.html": ("The lighthouse", "The lighthouse of Vardø was built in 1896 from cast iron."),
    "keeper.html": ("The keeper", "The keeper climbs 143 steps every evening to light the lamp."),
    "birds.html": (
        "The birds",
        "Puffins and kittiwakes nest on the cliffs below the tower. 灯台 🐦",
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All journeys of a run go to one xdist worker, which owns the stack."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("journeys"))
            item.add_marker(pytest.mark.journey)


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def site_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    names = {name: name.replace("index.html", "./") for name in PAGES}
    links = "".join(f'<a href="{names[name]}">{PAGES[name][0]}</a> ' for name in PAGES)
    for name, (title, text) in PAGES.items():
        head = f"<html><head><title>{title}</title></head>"
        page = f"{head}<body><nav>{links}</nav><main><h1>{title}</h1><p>{text}</p></main></body>"
        (folder / name).write_text(page, encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, site_url: str) -> Iterator[Stack]:
    allowed = site_url.removeprefix("http://").rstrip("/")
    running = Stack(tmp_path_factory.mktemp("stack"), {"XNAI_EGRESS_ALLOW": allowed})
    running.start()
    yield running
    assert running.stop() == 0
    assert running.processes() == []
