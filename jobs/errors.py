"""Errors of the job life cycle.

LedgerError
├── JobNotFound, BatchNotFound,
│   OperationNotFound               no such id in this tenant
├── JobsRefused                     some of the jobs to enqueue are invalid; names each
├── BatchNotOpen                    appending to a sealed batch
├── StateConflict                   the job's state does not allow the verb
├── StaleToken                      the attempt is no longer held: its write is refused
├── SlotEnded                       the slot was declared dead and must stop
├── CursorPast                      the cursor points to what retention or a restore has taken
├── SpoolsFull, SpoolDiskFull       no room for one more upload at the moment
└── IdempotencyMismatch, IdempotencyInFlight
UnknownKind, InvalidPayload         jobs/kinds.py
JobError                            what a handler may raise: Retry, Cancel, Fail
"""

from dataclasses import dataclass
from uuid import UUID

from jobs.states import BatchState


class LedgerError(Exception):
    """The ledger refused; nothing was written."""


class JobNotFound(LedgerError):
    """No job of this id in this tenant."""

    def __init__(self, job_id: UUID) -> None:
        super().__init__(f"no job {job_id}")
        self.job_id = job_id


class BatchNotFound(LedgerError):
    """No batch of this id in this tenant."""

    def __init__(self, batch_id: UUID) -> None:
        super().__init__(f"no batch {batch_id}")
        self.batch_id = batch_id


class OperationNotFound(LedgerError):
    """No bulk operation of this id in this tenant."""

    def __init__(self, operation_id: UUID) -> None:
        super().__init__(f"no operation {operation_id}")
        self.operation_id = operation_id


@dataclass(frozen=True, slots=True)
class Refusal:
    """One invalid job of a set: its position (0-based), the field as a JSON pointer, and what is
    wrong.
    """

    position: int
    pointer: str
    detail: str


class JobsRefused(LedgerError):
    """Some jobs cannot be enqueued; none was."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        super().__init__("; ".join(f"job {r.position}: {r.pointer}: {r.detail}" for r in refusals))
        self.refusals = refusals


class BatchNotOpen(LedgerError):
    """The batch was sealed and takes no more jobs."""

    def __init__(self, batch_id: UUID, state: BatchState) -> None:
        super().__init__(f"batch {batch_id} is {state} and takes no more jobs: create another")


class StateConflict(LedgerError):
    """The job's state does not allow what was asked."""


class StaleToken(LedgerError):
    """The attempt's token is not the one that holds the job: a zombie's write, refused."""


class SlotEnded(LedgerError):
    """The slot was declared dead; it claims and writes no more."""


class CursorPast(LedgerError):
    """What followed this cursor was dropped by retention or lost by a restore: start again."""


class SpoolsFull(LedgerError):
    """The uploads under way fill what this process keeps for them."""


class SpoolDiskFull(LedgerError):
    """The disk that uploads are spooled to has no room."""


class IdempotencyMismatch(LedgerError):
    """The key was used before with another request."""


class IdempotencyInFlight(LedgerError):
    """The first request with this key is still being answered."""


class JobError(Exception):
    """How a handler ends its attempt other than by returning or by an unexpected exception."""


class Retry(JobError):
    """Run the job again; counts as a failure. `after_s` (`Retry-After`, up to a day) replaces the
    backoff.
    """

    def __init__(self, detail: str, *, type_: str = "retry", after_s: float | None = None) -> None:
        super().__init__(detail)
        self.type = type_
        self.after_s = after_s


class Fail(JobError):
    """Fail the job for good: running it again would not help."""

    def __init__(self, detail: str, *, type_: str) -> None:
        super().__init__(detail)
        self.type = type_


class Cancel(JobError):
    """End the job as cancelled, by the handler's own decision."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
