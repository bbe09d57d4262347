"""Whatever is killed, no accepted job is lost."""

import signal
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from threading import Event, Thread
from urllib.parse import urlsplit

import psutil
import pytest

from jobs.model import JsonObject
from tests.support.stack import Stack, wait_until

JOBS = 60
GRACE_S = 2
LOAD_S, JOBS_A_SECOND = 15, 30


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all of them: each leaves it running."""
    running = Stack(tmp_path_factory.mktemp("crash"), {"XNAI_GRACE_S": str(GRACE_S)})
    running.start()
    yield running
    assert running.stop() == 0
    assert running.processes() == []


def submit(stack: Stack) -> str:
    """A batch of probes that take a while together."""
    jobs = [
        {"kind": "probe", "payload": {"sleep_s": 0.2, "echo": n}, "max_attempts": 8}
        for n in range(JOBS)
    ]
    with stack.api() as api:
        return str(api.post("/v1/batches", {"jobs": jobs})["id"])


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL them all; some die with others that died before."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def wait_finished(stack: Stack, batch_id: str) -> dict[str, int]:
    with stack.api() as api:

        def is_finished() -> bool:
            return bool(api.get(f"/v1/batches/{batch_id}")["state"] == "finished")

        wait_until(is_finished, timeout_s=60, what="the batch to finish")
        counts: dict[str, int] = api.get(f"/v1/batches/{batch_id}")["counts"]
    return counts


@pytest.mark.timeout(240)
def test_sigkill_of_each_process_loses_no_accepted_job(own_stack: Stack) -> None:
    for title in ("work probe slot", "work", "tick", "search-server", "api"):
        batch_id = submit(own_stack)
        kill(own_stack.titled(title))
        own_stack.wait_ready()
        assert wait_finished(own_stack, batch_id)["succeeded"] == JOBS, title


@pytest.mark.timeout(240)
def test_sigkill_of_the_servers_loses_no_accepted_job(own_stack: Stack) -> None:
    for name in ("postgres", "valkey-server"):
        batch_id = submit(own_stack)
        killed = [p for p in own_stack.processes() if p.name().startswith(name[:15])]
        assert killed, name
        kill(killed)
        own_stack.wait_ready()
        assert wait_finished(own_stack, batch_id)["succeeded"] == JOBS, name


@pytest.mark.timeout(240)
def test_sigkill_of_everything_and_a_new_start_loses_no_accepted_job(own_stack: Stack) -> None:
    batch_id = submit(own_stack)
    launcher = own_stack.process
    assert launcher is not None
    launcher.kill()
    kill(own_stack.processes())
    launcher.wait()
    own_stack.start()
    assert wait_finished(own_stack, batch_id)["succeeded"] == JOBS


@pytest.mark.timeout(240)
def test_a_rolling_restart_of_every_process_under_load_fails_nothing(own_stack: Stack) -> None:
    steady: list[JsonObject] = [
        {"kind": "probe", "payload": {"sleep_s": 0.5}, "delay_s": n / JOBS_A_SECOND}
        for n in range(LOAD_S * JOBS_A_SECOND)
    ]
    # They outlast the grace period, and are given back.
    long: list[JsonObject] = [{"kind": "probe", "payload": {"sleep_s": 3 * GRACE_S}}] * 10
    with own_stack.api() as api:
        batch_id = str(api.post("/v1/batches", {"jobs": steady + long})["id"])
        wait_until(
            lambda: api.get(f"/v1/batches/{batch_id}")["counts"]["running"] >= len(long),
            timeout_s=30,
            what="the long jobs to run",
        )
    for title in ("work", "api", "tick", "search-server"):
        (old,) = (p for p in own_stack.titled(title) if "slot" not in " ".join(p.cmdline()))
        old.terminate()
        wait_until(lambda old=old: not old.is_running(), timeout_s=30, what=f"{title} to end")  # type: ignore[misc] # bound now
        own_stack.wait_ready()
    assert wait_finished(own_stack, batch_id)["succeeded"] == len(steady + long)
    with own_stack.api() as api:
        jobs = list(api.pages("/v1/jobs", params={"batch_id": batch_id}, most=1000))
        interrupted = [job for job in jobs if job["attempt"] > 1]
        outcomes = {
            attempt["outcome"]
            for job in interrupted
            for attempt in api.get(f"/v1/jobs/{job['id']}/attempts")["data"]
        }
    assert outcomes == {"released", "succeeded"}


class Visitor(Thread):
    """A client without retries that connects anew for each request, until it is told to leave."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._leaves = Event()
        self.answered = 0
        self.refused: list[OSError] = []
        self.broken: list[Exception] = []

    def run(self) -> None:
        while not self._leaves.is_set():
            connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
            with closing(connection):
                try:
                    connection.connect()
                except OSError as error:
                    self.refused.append(error)
                    continue
                try:
                    connection.request("GET", "/healthz")
                    assert connection.getresponse().read() == b'{"status":"ok"}'
                except (OSError, HTTPException) as error:
                    self.broken.append(error)
                else:
                    self.answered += 1

    def leave(self) -> None:
        self._leaves.set()
        self.join(90)
        assert not self.is_alive()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_api_refuses_no_connection(
    own_stack: Stack, number: signal.Signals
) -> None:
    with own_stack.api() as api:
        port = urlsplit(api.url).port
    assert port is not None
    (old,) = own_stack.titled("api")
    visitors = [Visitor(port) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    old.send_signal(number)
    wait_until(lambda: not old.is_running(), timeout_s=30, what="the API to end")
    before = [visitor.answered for visitor in visitors]
    own_stack.wait_ready()
    for visitor, answered in zip(visitors, before, strict=True):
        wait_until(lambda v=visitor, n=answered: v.answered > n, timeout_s=30, what="an answer")  # type: ignore[misc] # bound now
        visitor.leave()
    assert [visitor.refused for visitor in visitors] == [[]] * len(visitors)
    broken = [len(visitor.broken) for visitor in visitors]
    # Killed, it takes the request in hand of each with it.
    assert max(broken) <= (number == signal.SIGKILL), [visitor.broken for visitor in visitors]


def test_nobody_but_up_and_the_api_holds_the_listening_socket(own_stack: Stack) -> None:
    with own_stack.api() as api:
        port = urlsplit(api.url).port
    holders = [
        process.cmdline()[0]
        for process in own_stack.processes()
        for one in process.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
    ]
    assert sorted(holders) == ["xnai api", "xnai up"]
