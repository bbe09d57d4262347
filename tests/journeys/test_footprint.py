"""What the stack costs while nobody uses it, and after each kind has run once."""

import time
from collections.abc import Iterator

import psutil
import pytest

from tests.support.stack import Stack, wait_until

MEGABYTE = 1e6
IDLE_PSS_MAX = 600
USED_PSS_MAX = 1100
IDLE_CPU_MAX = 0.05
SETTLE_S = 60.0
WATCH_S = 10.0


@pytest.fixture
def own_stack(
    tmp_path_factory: pytest.TempPathFactory, site_url: str
) -> Iterator[tuple[Stack, str]]:
    allowed = site_url.removeprefix("http://").rstrip("/")
    folder = tmp_path_factory.mktemp("footprint")
    running = Stack(folder, {"XNAI_EGRESS_ALLOW": allowed}, is_covered=False)
    running.start()
    yield running, site_url
    assert running.stop() == 0


def pss_mb(stack: Stack) -> float:
    total = 0.0
    for process in stack.processes():
        try:
            total += process.memory_full_info().pss / MEGABYTE
        except psutil.NoSuchProcess:
            continue
    return total


def all_started(stack: Stack, slots: int) -> bool:
    """Whether every slot has come past its imports: it has its own title then."""
    titles = [" ".join(process.cmdline()) for process in stack.titled("work")]
    return sum(" slot " in title for title in titles) == slots


def cpu_s(stack: Stack) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in stack.processes())


@pytest.mark.timeout(240)
def test_memory_and_idle_cpu_stay_within_their_budget(own_stack: tuple[Stack, str]) -> None:
    stack, site_url = own_stack
    slots = sum(pool.slots for pool in stack.settings.pools.values())
    with stack.api() as api:
        wait_until(
            lambda: len(api.get("/v1/workers")["data"]) == slots, timeout_s=60, what="all slots"
        )
    wait_until(lambda: all_started(stack, slots), timeout_s=60, what="all slots to be pinned")
    # Connections that the start opened go when they have been idle for a while.
    wait_until(lambda: pss_mb(stack) < IDLE_PSS_MAX, timeout_s=SETTLE_S, what="idle memory")
    before, began = cpu_s(stack), time.monotonic()
    wait_until(
        lambda: time.monotonic() - began > WATCH_S, timeout_s=WATCH_S + 1, what="an idle while"
    )
    assert (cpu_s(stack) - before) / (time.monotonic() - began) < IDLE_CPU_MAX
    stack.json(
        "crawl", site_url, "-c", "cost", "--max-pages", "3", "--max-depth", "1", "--scope", "host"
    )
    stack.json("ask", "-c", "cost", "Who climbs the steps?", "--max-tokens", "16")
    stack.json("submit", "probe", "echo=1", "--wait")
    # Idle slots give freed memory back, the parser ends, connections close.
    wait_until(lambda: pss_mb(stack) < USED_PSS_MAX, timeout_s=SETTLE_S, what="used memory")
