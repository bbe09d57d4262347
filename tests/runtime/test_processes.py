"""Who is gone: known for certain, or not at all."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from runtime.processes import Identity, own_bytes, own_identity, starved_s
from tests.support.stack import wait_until

IDENTIFY = (
    "from runtime.processes import own_identity as own; one = own();"
    " print(one.machine, one.pid, one.started_ticks, sep='|', flush=True); input()"
)


@pytest.fixture
def child() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", IDENTIFY], stdin=-1, stdout=-1, text=True
    ) as process:
        yield process
        process.kill()


def identity(child: "subprocess.Popen[str]") -> Identity:
    assert child.stdout is not None
    machine, pid, started = child.stdout.readline().strip().split("|")
    return Identity(machine, int(pid), int(started))


def test_a_living_process_is_not_gone_even_when_it_is_stopped(
    child: "subprocess.Popen[str]",
) -> None:
    found = identity(child)
    assert found.pid == child.pid
    assert not found.is_gone()
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert not found.is_gone()


def test_a_killed_process_is_gone_before_and_after_it_was_reaped(
    child: "subprocess.Popen[str]",
) -> None:
    found = identity(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert found.is_gone()
    child.wait()
    assert found.is_gone()


def test_another_process_under_the_same_pid_is_not_the_one() -> None:
    own = own_identity()
    assert not own.is_gone()
    assert replace(own, started_ticks=own.started_ticks - 1).is_gone()


@pytest.mark.parametrize("machine", ["", "another-boot pid:[4026531836]"])
def test_what_cannot_be_seen_from_here_is_never_gone(machine: str) -> None:
    own = own_identity()
    assert not replace(own, machine=machine, started_ticks=0).is_gone()


def test_memory_of_its_own_is_less_than_all_and_none_of_the_dead() -> None:
    assert own_bytes(os.getpid()) > 1024 * 1024
    assert own_bytes(2**22 + 1) == 0


def test_a_process_that_shares_its_core_is_seen_to_starve() -> None:
    spin = [sys.executable, "-c", "while True: pass"]
    core = min(os.sched_getaffinity(0))
    with subprocess.Popen(spin) as one, subprocess.Popen(spin) as other:
        try:
            for process in (one, other):
                os.sched_setaffinity(process.pid, {core})
            wait_until(
                lambda: min(starved_s(one.pid), starved_s(other.pid)) > 0.01,
                timeout_s=20,
                what="the kernel to count the waits for a core",
            )
        finally:
            one.kill()
            other.kill()
    assert starved_s(other.pid) == 0.0
