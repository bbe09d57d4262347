"""What a supervisor decides about a slot from what it sees: leave it, abandon it, kill it, renew
it.

Reads the board and /proc, changes nothing. All times are of the monotonic clock, so that setting a
clock is nobody's death.
"""

from dataclasses import dataclass
from uuid import UUID

from runtime.processes import own_bytes
from runtime.settings import Settings
from workers.slot_process import SlotProcess

# Cooperative first: what has not stopped by itself after this long is stopped with its slot.
KILL_AFTER_S = 2.0
STALL_S = 2.0
# Of time in which it could run: six slots that start at once on a busy machine take longer.
START_S = 30.0
# A process stopped for longer is taken for dead; shorter stops (a snapshot) are waited out.
STOPPED_S = 3.0

_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kill:
    """Why a slot must be killed. `is_to_blame`: any of its started jobs may be the cause."""

    reason: str
    is_to_blame: bool = False


def is_lost(slot: SlotProcess, now: float) -> bool:
    """Whether the slot has been stopped for so long that somebody else must do its work."""
    return slot.stopped_since is not None and now - slot.stopped_since > STOPPED_S


def overdue(slot: SlotProcess, now: float) -> Kill | None:
    """Whether a job outstays its deadline or its cancellation, or the loop stands still."""
    turned_at = slot.board.turned_ns / 1e9
    if turned_at == 0:
        since = max(slot.started_at, slot.awake_since)
        return Kill("did not start") if now - since > START_S + slot.starved_s else None
    started = slot.board.read()
    for job in started:
        if now - max(job.deadline_ns / 1e9, slot.awake_since) > KILL_AFTER_S:
            return Kill(f"job {job.job_id} overstayed its timeout")
        if _ignores_cancel(slot, job.job_id, now):
            return Kill(f"job {job.job_id} did not stop when cancelled")
    has_shared = any(not job.exclusive for job in started)
    if has_shared and now - max(turned_at, slot.awake_since) > STALL_S:
        return Kill("event loop stood still", is_to_blame=True)
    return None


def _ignores_cancel(slot: SlotProcess, job_id: UUID, now: float) -> bool:
    asked_at = slot.cancels.get(job_id)
    return asked_at is not None and now - max(asked_at, slot.awake_since) > KILL_AFTER_S


def worn_out(slot: SlotProcess, settings: Settings, now: float) -> str | None:
    """Whether the slot has grown too big or too old, or has run enough jobs; 0 sets no limit."""
    limit_bytes = settings.recycle_rss_mb * _MEBIBYTE
    if limit_bytes and own_bytes(slot.process.pid) > limit_bytes:
        return "rss"
    if settings.recycle_jobs and slot.board.ended >= settings.recycle_jobs:
        return "jobs"
    if settings.recycle_age_s and now - slot.started_at > settings.recycle_age_s:
        return "age"
    return None
