"""The states of a job and of a batch, as users see them (docs/state_machine.md)."""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands. A live job's state is the narrow table that holds its id."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether only `retry` leaves this state."""
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
LIVE_STATES = frozenset(JobState) - TERMINAL_STATES


class ScheduledReason(StrEnum):
    """Why a scheduled job is not queued yet."""

    DELAYED = "delayed"
    BACKOFF = "backoff"
    DEPENDENCY = "dependency"
    LIMIT = "limit"


class BatchState(StrEnum):
    """`open` takes more jobs, `finished` has nothing live left, follow-ups included."""

    OPEN = "open"
    RUNNING = "running"
    FINISHED = "finished"


class OnParentFailure(StrEnum):
    """What becomes of a job when a parent in `depends_on` ends without success."""

    RUN = "run"
    CANCEL = "cancel"
    FAIL = "fail"
