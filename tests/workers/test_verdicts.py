"""What a supervisor does about what it sees: kill, give up, renew, or forgive."""

import socket
import time
from collections.abc import AsyncIterator
from typing import cast
from uuid import UUID

import pytest
from anyio.abc import Process

from jobs.model import SlotId
from workers.board import Board, Started
from workers.slot_process import SlotProcess
from workers.topology import SlotPlan
from workers.verdicts import KILL_AFTER_S, STALL_S, START_S, STOPPED_S, Kill, is_lost, overdue

pytestmark = pytest.mark.anyio

JOB = UUID(int=7)


@pytest.fixture
async def slot() -> AsyncIterator[SlotProcess]:
    """A slot whose loop turned just now; nothing here looks at its process."""
    ours, theirs = socket.socketpair()
    board = Board.create()
    board.turn()
    with theirs:
        made = SlotProcess(
            SlotPlan("probe", 0, (0,)), SlotId(1), cast("Process", None), board, ours
        )
        yield made
        made.close()


def start(slot: SlotProcess, *, for_s: float, exclusive: bool) -> float:
    """Show a job with this deadline; answers when it began."""
    now_ns = time.monotonic_ns()
    slot.board.put(Started(JOB, 1, now_ns, now_ns + int(for_s * 1e9), exclusive))
    return now_ns / 1e9


async def test_a_job_gets_its_grace_after_the_deadline_and_no_more(slot: SlotProcess) -> None:
    began = start(slot, for_s=10, exclusive=True)
    assert overdue(slot, began + 10 + KILL_AFTER_S - 0.1) is None
    assert overdue(slot, began + 10 + KILL_AFTER_S + 0.1) == Kill(
        f"job {JOB} overstayed its timeout"
    )


async def test_a_cancelled_job_gets_its_grace_and_no_more(slot: SlotProcess) -> None:
    began = start(slot, for_s=100, exclusive=True)
    slot.cancels = {JOB: began + 1}
    assert overdue(slot, began + 1 + KILL_AFTER_S - 0.1) is None
    assert overdue(slot, began + 1 + KILL_AFTER_S + 0.1) == Kill(
        f"job {JOB} did not stop when cancelled"
    )


async def test_a_loop_that_stands_still_is_blamed_on_shared_jobs_only(slot: SlotProcess) -> None:
    began = start(slot, for_s=100, exclusive=True)
    assert overdue(slot, began + STALL_S + 1) is None
    start(slot, for_s=100, exclusive=False)
    assert overdue(slot, began + STALL_S + 1) == Kill("event loop stood still", is_to_blame=True)


async def test_what_was_not_done_while_all_stood_still_is_forgiven(slot: SlotProcess) -> None:
    began = start(slot, for_s=1, exclusive=False)
    slot.cancels = {JOB: began}
    slot.awake_since = began + 60
    assert overdue(slot, began + 61) is None
    assert overdue(slot, began + 60 + KILL_AFTER_S + 0.1) is not None


async def test_a_slot_that_never_turns_did_not_start(slot: SlotProcess) -> None:
    unborn = SlotProcess(
        slot.plan, slot.slot_id, slot.process, Board.create(), slot.control, started_at=100.0
    )
    assert overdue(unborn, 100 + START_S - 1) is None
    assert overdue(unborn, 100 + START_S + 1) == Kill("did not start")
    unborn.starved_s = 60.0
    assert overdue(unborn, 100 + START_S + 59) is None
    assert overdue(unborn, 100 + START_S + 61) == Kill("did not start")
    unborn.board.close()


async def test_only_a_long_stop_is_a_loss(slot: SlotProcess) -> None:
    assert not is_lost(slot, 1e9)
    slot.stopped_since = 100.0
    assert not is_lost(slot, 100 + STOPPED_S - 0.1)
    assert is_lost(slot, 100 + STOPPED_S + 0.1)
