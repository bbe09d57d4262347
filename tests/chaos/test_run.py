"""Whole runs: a sound stack ends clean, a broken kind is found, and an interrupt leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from chaos import report
from chaos.plan import Fault
from chaos.run import Order, run_chaos
from tests.support.repository import ROOT
from tests.support.stack import wait_until

pytestmark = pytest.mark.crash

FAULTS = (Fault.KILL_SLOT, Fault.STOP_SLOT, Fault.KILL_API, Fault.REDIS_FLUSH)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a server's socket, whose path may have 107 bytes, must fit below it."""
    with tempfile.TemporaryDirectory(prefix="xnai-t-") as name:
        yield Path(name)


@pytest.fixture
def run_command(folder: Path) -> "Callable[..., subprocess.Popen[str]]":
    """Start `xnai chaos …`, its folder below this test's own."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cli.main", "chaos", *arguments],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def left_in(folder: Path) -> list[str]:
    """Processes that work in this folder, or were told of it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(str(folder)):
                found.append(" ".join(process.cmdline()))
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.timeout(240)
def test_sound_stack_keeps_every_promise(
    run_command: "Callable[..., subprocess.Popen[str]]", folder: Path
) -> None:
    faults = ",".join(FAULTS)
    process = run_command(
        "--seed", "5", "--jobs", "200", "--minutes", "0.25", "--faults", faults,
        "--no-rates", "--json",
    )  # fmt: skip
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr + stdout
    found = json.loads(stdout)
    assert found["is_clean"] is True
    assert found["violations"] == []
    assert found["seed"] == 5
    struck = {fault["fault"] for fault in found["faults"] if fault["not_injected"] is None}
    assert struck == set(FAULTS)
    assert found["counts"]["effects"] > 50
    assert found["counts"]["jobs"] > 200
    assert found["counts"]["webhooks_received"] > 0
    assert left_in(folder) == []
    assert list(folder.glob(f"xnai-chaos-{os.getuid()}-*")) == []
    (written,) = folder.glob("xnai-chaos-report-*.json")
    assert json.loads(written.read_text()) == found


@pytest.mark.timeout(240)
def test_kind_without_a_fence_is_named(folder: Path) -> None:
    order = Order(
        seed=6,
        jobs=150,
        minutes=0.2,
        faults=(Fault.KILL_SLOT,),
        with_documents=False,
        with_rates=False,
        kinds="tests.chaos.broken_kinds",
    )
    outcome = anyio.run(run_chaos, order, folder, lambda _: None)
    assert not outcome.is_clean
    twice = [found for found in outcome.violations if found.code == "effect-twice"]
    assert twice
    text = report.as_text(outcome)
    assert f"Job {outcome.violations[0].ids[0]}" in text
    assert "handler began" in text
    assert report.as_json(outcome)["is_clean"] is False
    assert left_in(folder) == []


@pytest.mark.timeout(120)
def test_interrupt_stops_and_removes_everything(
    run_command: "Callable[..., subprocess.Popen[str]]", folder: Path
) -> None:
    process = run_command("--seed", "7", "--jobs", "100", "--minutes", "1")
    wait_until(
        lambda: bool(list(folder.glob("xnai-chaos-*/first.log"))),
        timeout_s=60,
        what="the stack to start",
    )
    assert left_in(folder) != []
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert left_in(folder) == []
    assert list(folder.glob("xnai-chaos-*")) == []


def test_unknown_fault_is_wrong_usage(
    run_command: "Callable[..., subprocess.Popen[str]]", folder: Path
) -> None:
    process = run_command("--faults", "kill-everything")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "help" in stderr
    assert list(folder.iterdir()) == []
