"""`make demo` and `make run`: the main job, for real, on the site that ships with the project.

Builds the documentation, serves it on loopback, starts the whole stack on servers of its own,
crawls the site, asks a question about the project, and fails unless the right page is cited. Leaves
no process behind.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cli.client import Api, Document
from cli.knowledge import show_citations, show_hits, submit_question
from cli.output import console, errors
from cli.watching import follow_job
from runtime.errors import EXIT_FAILED, XnaiError
from runtime.settings import Settings, load_settings
from runtime.stack import local_api_url

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "What happens to accepted jobs when Redis is flushed?"
EXPECTED_PAGE = "operations"
COLLECTION = "xnai-docs"
PAGES_MAX = 60
SERVE_PORT = 8000
START_S = 60.0
STOP_S = 40.0


class DemoFailed(XnaiError):
    """The demo did not do what it is to show."""


def main() -> None:
    """Run the demo; `--serve` goes on serving until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m cli.demo", description=__doc__)
    parser.add_argument(
        "--serve", action="store_true", help="keep serving on port 8000 until Ctrl-C"
    )
    serve = parser.parse_args().serve
    try:
        with _data_dir(keep=serve) as data_dir:
            _demo(data_dir, serve=serve)
    except XnaiError as error:
        errors.print(f"[red]demo failed:[/] {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_FAILED)


def _demo(data_dir: Path, *, serve: bool) -> None:
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="xnai-site-") as folder,
        _site(Path(folder)) as site_url,
        _stack(data_dir, site_url, port=SERVE_PORT if serve else 0) as (stack, settings),
    ):
        _say(f"the stack is up after {time.monotonic() - began:.1f} s")
        with Api(settings) as api:
            _crawl(api, site_url)
            _ask(api)
        _say(f"done in {time.monotonic() - began:.1f} s")
        if serve:
            _keep_serving(stack, settings)


def _say(text: str) -> None:
    console.print(f"[bold cyan]»[/] {text}")


@contextmanager
def _data_dir(*, keep: bool) -> Iterator[Path]:
    """A fresh directory in the checkout, or the one that `xnai` finds by itself when it is kept."""
    if keep:
        folder = ROOT / ".xnai"
        folder.mkdir(mode=0o700, exist_ok=True)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix=".demo-", dir=ROOT))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _site(folder: Path) -> Iterator[str]:
    """Build the documentation and serve it on a free loopback port."""
    _say("building the documentation")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if built.returncode:
        raise DemoFailed(f"mkdocs could not build docs/: {built.stderr.strip()}")
    handler = partial(_QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing: the demo prints its own progress."""


@contextmanager
def _stack(
    data_dir: Path, site_url: str, *, port: int
) -> Iterator[tuple[subprocess.Popen[bytes], Settings]]:
    """Run `xnai up` on a data directory, ready to be used; stopped by SIGTERM at the end."""
    allowed = site_url.removeprefix("http://").rstrip("/")
    os.environ["XNAI_DATA_DIR"] = str(data_dir)
    os.environ["XNAI_EGRESS_ALLOW"] = ",".join(
        filter(None, (os.environ.get("XNAI_EGRESS_ALLOW"), allowed))
    )
    os.environ.setdefault("XNAI_LOG_LEVEL", "warning")
    _say("starting Postgres, Valkey and all roles")
    command = [sys.executable, "-m", "cli.main", "up", "--port", str(port)]
    stack = subprocess.Popen(command, cwd=ROOT)
    try:
        settings = load_settings()
        _wait_ready(stack, settings)
        yield stack, settings
    finally:
        _stop(stack)


def _wait_ready(stack: subprocess.Popen[bytes], settings: Settings) -> None:
    """Poll /readyz until the stack answers, exits, or START_S have passed."""
    deadline = time.monotonic() + START_S
    while True:
        if stack.poll() is not None:
            raise DemoFailed(f"the stack ended with exit code {stack.returncode}")
        if _is_ready(settings):
            return
        if time.monotonic() > deadline:
            raise DemoFailed(f"the stack was not ready after {START_S:.0f} s: its log is above")
        threading.Event().wait(0.1)


def _is_ready(settings: Settings) -> bool:
    """Whether this stack, and no stranger on the default port, answers."""
    if local_api_url(settings) is None:
        return False
    try:
        with Api(settings) as api:
            api.get("/readyz")
    except XnaiError:
        return False
    return True


def _stop(stack: subprocess.Popen[bytes]) -> None:
    """Drain the stack; a stack that does not end is a failure of the demo."""
    stack.send_signal(signal.SIGTERM)
    try:
        code = stack.wait(STOP_S)
    except subprocess.TimeoutExpired:
        stack.kill()
        raise DemoFailed(f"the stack did not stop within {STOP_S:.0f} s") from None
    if code:
        raise DemoFailed(f"the stack stopped with exit code {code}")


def _crawl(api: Api, site_url: str) -> None:
    _say(f"crawling {site_url}")
    payload = {
        "url": site_url,
        "collection": COLLECTION,
        "max_pages": PAGES_MAX,
        "max_depth": 5,
        "scope": "prefix",
    }
    job = api.post("/v1/jobs", {"kind": "crawl", "payload": payload})
    job = follow_job(api, job["id"])
    if job["state"] != "succeeded" or job["follow_ups"]["failed"]:
        raise DemoFailed(f"the crawl did not succeed: {json.dumps(job)}")
    pages = job["result"]["pages"]
    over = job["follow_ups"]["succeeded"]
    _say(f"{pages['fetched']} pages fetched, {pages['unchanged']} unchanged")
    _say(f"{over} jobs embedded and indexed them")


def _ask(api: Api) -> None:
    _say(f"asking: {QUESTION}")
    found = api.post("/v1/search", {"query": QUESTION, "collection": COLLECTION, "k": 4})
    show_hits(found["hits"])
    job = submit_question(api, QUESTION, collection=COLLECTION, k=1, mode="hybrid", max_tokens=96)
    job = follow_job(api, job["id"])
    if job["state"] != "succeeded":
        raise DemoFailed(f"the answer did not succeed: {json.dumps(job.get('error'))}")
    console.print(job["result"]["text"].strip(), markup=False)
    show_citations(job["result"])
    _check(job["result"])


def _check(result: Document) -> None:
    cited = [str(citation["url"]) for citation in result["citations"]]
    if not result["text"].strip():
        raise DemoFailed("the model wrote nothing")
    if not any(EXPECTED_PAGE in url for url in cited):
        raise DemoFailed(
            f"no page about {EXPECTED_PAGE!r} is cited, only {', '.join(cited) or 'none'}"
        )


def _keep_serving(stack: subprocess.Popen[bytes], settings: Settings) -> None:
    with Api(settings) as api:
        url = api.url
    _say(f"serving on {url} until Ctrl-C. Try, in another terminal:")
    console.print(
        f'   xnai ask -c {COLLECTION} "How are late writes of a zombie refused?"', markup=False
    )
    try:
        stack.wait()
    except KeyboardInterrupt:
        _say("draining")


if __name__ == "__main__":
    main()
