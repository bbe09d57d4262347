"""One slot's process as its supervisor holds it: started, told, looked at, killed.

Holds no job and no connection; what to do about what is seen is decided in `workers.verdicts`.
"""

import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import anyio
from anyio.abc import Process

from jobs.model import SlotId
from jobs.slots import SlotState
from runtime.logs import logger
from runtime.processes import read_process, starved_s
from runtime.settings import Settings
from workers.board import Board
from workers.slots import READY, SlotConfig
from workers.topology import SlotPlan, thread_environment

log = logger("supervisor")


@dataclass(slots=True)
class SlotProcess:
    """A slot's process and the supervisor's ends of what the two share.

    Times are monotonic seconds. Before `awake_since` the slot, or the supervisor itself, stood
    still: nothing that it did not do until then is its fault. Nor is what it waited for a core in
    its start, `starved_s`: killed for that, it would begin anew and never be done.
    """

    plan: SlotPlan
    slot_id: SlotId
    process: Process
    board: Board
    control: socket.socket
    started_at: float = field(default_factory=time.monotonic)
    awake_since: float = 0.0
    stopped_since: float | None = None
    starved_s: float = 0.0
    is_ready: bool = False
    is_draining: bool = False
    recycled_for: str | None = None
    cancels: dict[UUID, float] = field(default_factory=dict)
    # Why the supervisor killed or abandoned it, and whether a job that it had started may be why.
    ended_for: str | None = None
    is_to_blame: bool = False
    waiting: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def state(self) -> SlotState:
        """What others are told of it."""
        if self.stopped_since is not None:
            return SlotState.STOPPED
        if self.is_draining:
            return SlotState.DRAINING
        return SlotState.LIVE if self.is_ready else SlotState.STARTING

    @property
    def is_abandoned(self) -> bool:
        """Declared dead while its process lives."""
        return self.waiting.cancel_called

    def look(self, now: float) -> None:
        """See whether the process is stopped, and how long its start was held up."""
        if not self.is_ready:
            self.starved_s = starved_s(self.process.pid)
        found = read_process(self.process.pid)
        if found is not None and found.is_stopped:
            self.awake_since = now
            if self.stopped_since is None:
                self.stopped_since = now
        else:
            self.stopped_since = None

    async def wait_ready(self) -> bool:
        """Tell whether it became ready: it may end before, too."""
        await anyio.wait_readable(self.control)
        with suppress(ConnectionResetError):
            self.is_ready = self.control.recv(len(READY)) == READY
        return self.is_ready

    def drain(self) -> None:
        """Let it end what it has begun, within the grace period. One that has not begun is killed:
        it holds nothing.
        """
        self.is_draining = True
        if self.is_ready:
            self.order("drain")
        else:
            self.kill("stopped before it was ready")

    def recycle(self, reason: str) -> None:
        """Let it end what it has begun, however long that takes, and be replaced."""
        self.is_draining = True
        self.recycled_for = reason
        log.info("slot_recycled", slot_id=self.slot_id, pool=self.plan.pool, reason=reason)
        self.order("retire")

    def cancel(self, job_ids: Sequence[UUID], now: float) -> None:
        """Pass cancellations on, again each time: a job may have been on its way to the slot."""
        self.cancels = {job_id: self.cancels.get(job_id, now) for job_id in job_ids}
        for job_id in job_ids:
            self.order(f"cancel {job_id}")

    def abandon(self, reason: str) -> None:
        """Wait no longer for a process that is stopped: it is as good as dead. Should it go on, it
        ends itself.
        """
        self.ended_for = reason
        log.warning("slot_abandoned", slot_id=self.slot_id, pool=self.plan.pool, reason=reason)
        self.waiting.cancel()

    def kill(self, reason: str, *, is_to_blame: bool = False) -> None:
        """SIGKILL it; its jobs are rescued when its exit is seen."""
        if self.process.returncode is None and self.ended_for is None:
            self.ended_for, self.is_to_blame = reason, is_to_blame
            log.warning("slot_killed", slot_id=self.slot_id, pool=self.plan.pool, reason=reason)
            self.process.kill()

    def order(self, line: str) -> None:
        """Send a line; a slot that is gone or does not read is left to the watch."""
        try:
            self.control.send(f"{line}\n".encode(), socket.MSG_DONTWAIT)
        except OSError as error:
            log.warning("slot_unreachable", slot_id=self.slot_id, error=str(error))

    def close(self) -> None:
        """Let go of what was shared with it."""
        self.board.close()
        self.control.close()


async def spawn(settings: Settings, plan: SlotPlan, slot_id: SlotId) -> SlotProcess:
    """Start the process of a registered slot: by exec, so that it inherits nothing but its two
    descriptors.
    """
    board = Board.create()
    ours, theirs = socket.socketpair()
    config = SlotConfig(
        plan.pool, plan.number, slot_id, plan.cpus, os.getpid(), board.fd, theirs.fileno()
    )
    with theirs:
        process = await anyio.open_process(
            [sys.executable, "-m", "workers.slots", config.encode()],
            stdin=None,
            stdout=None,
            stderr=None,
            pass_fds=(board.fd, theirs.fileno()),
            env=_environment(settings, len(plan.cpus)),
        )
    return SlotProcess(plan, slot_id, process, board, ours)


def _environment(settings: Settings, cores: int) -> dict[str, str]:
    """The environment of a slot: ours, the resolved addresses, and its thread limits."""
    return {
        **os.environ,
        "XNAI_DATA_DIR": str(settings.data_dir),
        "XNAI_DATABASE_URL": settings.database_url or "",
        "XNAI_REDIS_URL": settings.redis_url or "",
        **thread_environment(cores),
    }
