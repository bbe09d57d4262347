"""A history with its indexes: who ended when, who ran when. Built once, read by every rule."""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from uuid import UUID

from chaos.history import History, Run, StoredEvent, StoredJob
from jobs.model import TenantId
from jobs.states import TERMINAL_STATES

TERMINAL_EVENTS = frozenset(f"job.{state}" for state in TERMINAL_STATES)
# A key that nobody has limited lets one job run at a time.
UNSET_LIMIT = 1
NEVER = datetime.max.replace(tzinfo=UTC)


class Facts:
    """Everything that rules ask of a history more than once."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.log = history.log

    @cached_property
    def jobs(self) -> Mapping[UUID, StoredJob]:
        """Stored jobs by id; of one that is live and over at once, the end."""
        return {job.id: job for job in sorted(self.history.jobs, key=lambda job: job.is_terminal)}

    @cached_property
    def live(self) -> tuple[StoredJob, ...]:
        """Rows of `jobs`."""
        return tuple(job for job in self.history.jobs if not job.is_terminal)

    @cached_property
    def ended(self) -> tuple[StoredJob, ...]:
        """Rows of `history`."""
        return tuple(job for job in self.history.jobs if job.is_terminal)

    @cached_property
    def retries(self) -> Counter[UUID]:
        """How often each job or batch was asked to run again, answered or not."""
        return Counter(retried.id for retried in self.log.retried)

    def lives_max(self, job: StoredJob) -> int:
        """How often the job may have ended: once, and once more a retry of it or of its batch.

        Who does not know everything that was asked for knows no bound.
        """
        if not self.log.is_complete:
            return sys.maxsize
        batch_retries = self.retries[job.batch_id] if job.batch_id is not None else 0
        return 1 + self.retries[job.id] + batch_retries

    @cached_property
    def ends(self) -> Mapping[UUID, list[StoredEvent]]:
        """Terminal events by job, in order."""
        return _by(self.history.events, _job_of, lambda event: event.type in TERMINAL_EVENTS)

    @cached_property
    def settled(self) -> Counter[UUID]:
        """How often each job was told to be settled."""
        return Counter(
            event.job_id
            for event in self.history.events
            if event.job_id is not None and (event.settled or event.type == "job.settled")
        )

    @cached_property
    def runs(self) -> Mapping[UUID, list[Run]]:
        """The handlers' runs by job, in the order in which they began."""
        ordered = sorted(self.log.runs, key=lambda run: run.began_at)
        return _by(ordered, lambda run: run.job_id)

    def run_end(self, run: Run) -> datetime:
        """When the run was over for everybody: it ended, or its slot was declared dead."""
        died_at = self.history.slots.get(run.slot_id)
        return min(run.ended_at or NEVER, died_at or NEVER)

    @cached_property
    def outcomes(self) -> Mapping[UUID, list[tuple[int, str]]]:
        """Attempts by job, as they ended: number and outcome, `running` for the one held."""
        found: defaultdict[UUID, list[tuple[int, str]]] = defaultdict(list)
        ordered = sorted(self.history.attempts, key=lambda item: (item.finished_at, item.attempt))
        for item in ordered:
            found[item.job_id].append((item.attempt, item.outcome))
        for job in self.history.jobs:
            if job.hold is not None:
                found[job.id].append((job.hold.attempt, "running"))
            elif job.is_terminal and job.started_at is not None:
                found[job.id].append((job.attempt, job.state))
        return found

    def limits_between(
        self, tenant_id: TenantId, key: str, since: datetime, until: datetime
    ) -> list[int]:
        """The values of a limit that may have been in force at some moment of that time."""
        own = [item for item in self.log.limits if (item.tenant_id, item.key) == (tenant_id, key)]
        own.sort(key=lambda item: item.at)
        if not own:
            stored = [item for item in self.history.limits if item.key == key]
            return [item.concurrency for item in stored if item.tenant_id == tenant_id] or [
                UNSET_LIMIT
            ]
        replaced_at = [*(item.at for item in own), NEVER]
        values = [UNSET_LIMIT] if replaced_at[0] >= since else []
        for item, over_at in zip(own, replaced_at[1:], strict=True):
            if item.asked_at <= until and over_at >= since:
                values.append(item.concurrency)
        return values

    @cached_property
    def by_key(self) -> Mapping[tuple[TenantId, str], list[StoredJob]]:
        """Jobs by concurrency key."""
        keyed = [job for job in self.history.jobs if job.concurrency_key is not None]
        return _by(keyed, lambda job: (job.tenant_id, job.concurrency_key or ""))


def _job_of(event: StoredEvent) -> UUID:
    return event.job_id or UUID(int=0)


def _by[K, V](
    items: Iterable[V], key: Callable[[V], K], wanted: Callable[[V], bool] | None = None
) -> defaultdict[K, list[V]]:
    found: defaultdict[K, list[V]] = defaultdict(list)
    for item in items:
        if wanted is None or wanted(item):
            found[key(item)].append(item)
    return found
