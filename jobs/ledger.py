"""The ledger: the one door to a job's durable life. It never announces; its callers do, after the
commit.

    enqueue ─► ready ─claim─► held ─record─► history
       └─► parked ─promote_due─► ready           └─► parked (backoff), ready (released)

Every verb takes a connection and joins the caller's transaction; outside of one it commits by
itself. Locks are taken in one order everywhere: slot, jobs by id, families, keys, batches
(docs/decisions/0006).
"""

from jobs.cancel import cancel
from jobs.change import change
from jobs.claim import Head, assert_held, claim
from jobs.discard import discard
from jobs.enqueue import enqueue, enqueue_follow_ups
from jobs.promote import expire, promote_due
from jobs.record import record
from jobs.results import (
    CancelResult,
    DiscardResult,
    Ended,
    Expired,
    Ready,
    Recorded,
    Rescued,
    RetryResult,
)
from jobs.retry import retry

__all__ = [
    "CancelResult",
    "DiscardResult",
    "Ended",
    "Expired",
    "Head",
    "Ready",
    "Recorded",
    "Rescued",
    "RetryResult",
    "assert_held",
    "cancel",
    "change",
    "claim",
    "discard",
    "enqueue",
    "enqueue_follow_ups",
    "expire",
    "promote_due",
    "record",
    "retry",
]
