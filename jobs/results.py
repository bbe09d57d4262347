"""What the ledger's verbs answer. Plain data: no SQL, no HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from jobs.model import ClaimedJob, SlotId
from jobs.outcomes import Ending
from jobs.states import JobState

# What became claimable, by pool: announce it after the commit.
type Ready = Mapping[str, tuple[UUID, ...]]


class Ended(NamedTuple):
    """An attempt that ended. `waited_s` lies between claim and start, by the slot's monotonic
    clock.

    `text` is its result as JSON, if that was serialised already, and `size` how many bytes it will
    write, where they are many (`jobs.rulings.pack`).
    """

    job: ClaimedJob
    ending: Ending
    waited_s: float = 0.0
    text: bytes | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What `record` did.

    `stale` ids were no longer held by their token: nothing of them was written. `settled` are jobs
    whose last descendant ended, ancestors included. `batches` may be finished: pass them to
    `batches.finish_due` after the commit. `has_returned`: there are permits for
    `limits.count_returned`, soon.
    """

    stale: frozenset[UUID] = frozenset()
    ready: Ready = field(default_factory=dict)
    settled: tuple[UUID, ...] = ()
    batches: tuple[UUID, ...] = ()
    has_returned: bool = False


@dataclass(frozen=True, slots=True)
class CancelResult:
    """What became of each id: over at once, asked of its slot, over before, or unknown in this
    tenant.

    `ready` jobs took over a permit; `batches` may be finished.
    """

    cancelled: tuple[UUID, ...] = ()
    requested: Mapping[SlotId, tuple[UUID, ...]] = field(default_factory=dict)
    terminal: tuple[UUID, ...] = ()
    missing: tuple[UUID, ...] = ()
    ready: Ready = field(default_factory=dict)
    batches: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class RetryResult:
    """What became of each id: live again, live before, key held by another, or unknown."""

    retried: tuple[UUID, ...] = ()
    live: tuple[UUID, ...] = ()
    key_taken: tuple[UUID, ...] = ()
    missing: tuple[UUID, ...] = ()
    ready: Ready = field(default_factory=dict)
    batches: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class DiscardResult:
    """What became of each id: discarded now, discarded before, no dead letter, or unknown."""

    discarded: tuple[UUID, ...] = ()
    before: tuple[UUID, ...] = ()
    not_failed: Mapping[UUID, JobState] = field(default_factory=dict)
    missing: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class Expired:
    """Jobs that were not started before `expires_at`: now failed, type `expired`."""

    expired: tuple[UUID, ...] = ()
    ready: Ready = field(default_factory=dict)
    batches: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class Rescued:
    """What became of a dead slot's jobs: queued again (suspects of the second loss alone), failed
    (`worker_lost`, the third loss), or cancelled because that was already asked.
    """

    requeued: tuple[UUID, ...] = ()
    failed: tuple[UUID, ...] = ()
    cancelled: tuple[UUID, ...] = ()
    ready: Ready = field(default_factory=dict)
    batches: tuple[UUID, ...] = ()

    @property
    def total(self) -> int:
        """Jobs that were taken back."""
        return len(self.requeued) + len(self.failed) + len(self.cancelled)
