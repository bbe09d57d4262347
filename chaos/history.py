"""What was seen and what is left after a run: plain facts, which `chaos.checker` judges.

`chaos.collect` reads those of the stores. A client keeps its own log, since a store cannot tell
what it has lost. No SQL and no verdicts here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

from jobs.model import DEFAULT_TENANT, Counts, SlotId, TenantId, Token
from jobs.states import BatchState, JobState

type Place = Literal["ready", "parked", "held"]
type CallbackPlace = Literal["outbox", "delivered", "dead"]


@dataclass(frozen=True, slots=True)
class AcceptedJob:
    """A job that was answered with 202 (or 200, deduplicated); `at`: when the answer was read.

    `has_effect`: its success must have left an Effect.
    """

    id: UUID
    at: datetime
    idempotency_key: str | None = None
    depends_on: tuple[UUID, ...] = ()
    has_effect: bool = False


@dataclass(frozen=True, slots=True)
class AcceptedBatch:
    """A batch that was answered with 202, and how many jobs it holds by its answers."""

    id: UUID
    at: datetime
    jobs: int
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A submit whose answer was never read: its `jobs` may exist, all or none."""

    asked_at: datetime
    jobs: int = 1
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A cancel that was answered. `was_waiting`: the answer said that the job is over already."""

    id: UUID
    asked_at: datetime
    at: datetime
    was_waiting: bool


@dataclass(frozen=True, slots=True)
class Retried:
    """A request to retry a job or a whole batch that was not refused, each repeat of it a request
    of its own; `at`: when its answer was read, None if it may still have come into force later.
    """

    id: UUID
    asked_at: datetime
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LimitSet:
    """A limit that was set; it came into force between `asked_at` and `at`."""

    key: str
    concurrency: int
    asked_at: datetime
    at: datetime
    tenant_id: TenantId = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class ReceivedWebhook:
    """A request that reached the receiver.

    `subject` is the id of the job or batch that it tells of.
    """

    webhook_id: UUID
    type: str
    subject: UUID | None
    is_signed: bool


@dataclass(frozen=True, slots=True)
class Run:
    """A handler began, and ended unless it was killed; stamped by the handler's own process."""

    job_id: UUID
    token: Token
    attempt: int
    slot_id: SlotId
    began_at: datetime
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """What a successful attempt did for good, written in the transaction that recorded it.

    What is written before that is no effect by this word: the attempt may yet be lost.
    """

    job_id: UUID
    token: Token
    attempt: int


@dataclass(frozen=True, slots=True)
class ClientLog:
    """What the clients, the receiver of webhooks and the handlers noted, each for itself.

    `receiver` is what the urls of webhooks that we receive begin with. `is_complete`: nobody else
    submitted or retried anything, so that an unknown job is an invention.
    """

    accepted: tuple[AcceptedJob, ...] = ()
    batches: tuple[AcceptedBatch, ...] = ()
    unanswered: tuple[Unanswered, ...] = ()
    cancelled: tuple[Cancelled, ...] = ()
    retried: tuple[Retried, ...] = ()
    limits: tuple[LimitSet, ...] = ()
    webhooks: tuple[ReceivedWebhook, ...] = ()
    runs: tuple[Run, ...] = ()
    effects: tuple[Effect, ...] = ()
    receiver: str | None = None
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class Hold:
    """Who runs a job by the ledger's word."""

    slot_id: SlotId
    token: Token
    attempt: int


@dataclass(frozen=True, slots=True)
class StoredJob:
    """One row of `jobs` or of `history`; a job that is in both comes twice.

    `places` are the narrow tables that hold a live job's id, each as often as it holds it.
    """

    id: UUID
    tenant_id: TenantId
    state: JobState
    created_at: datetime
    max_attempts: int
    attempt: int
    failures: int
    places: tuple[Place, ...] = ()
    hold: Hold | None = None
    parked_for: str | None = None
    pending_parents: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    xid: int | None = None
    unique_key: str | None = None
    unique_until: str | None = None
    concurrency_key: str | None = None
    batch_id: UUID | None = None
    parent_id: UUID | None = None
    lineage: tuple[UUID, ...] = ()
    schedule_id: UUID | None = None
    callback_url: str | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether it is a row of `history`."""
        return self.state.is_terminal


@dataclass(frozen=True, slots=True)
class StoredAttempt:
    """An attempt that ended without ending its job, or ended it before a retry."""

    job_id: UUID
    attempt: int
    outcome: str
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A row of `events`; `settled` on a terminal one stands for a second event right behind it."""

    xid: int
    at: datetime
    type: str
    job_id: UUID | None = None
    batch_id: UUID | None = None
    settled: bool = False
    run: int | None = None


@dataclass(frozen=True, slots=True)
class StoredFamily:
    """The counter of a job's descendants."""

    job_id: UUID
    open: int
    total: int
    succeeded: int
    failed: int
    cancelled: int
    is_settled: bool


@dataclass(frozen=True, slots=True)
class StoredLimit:
    """The permits of a concurrency key."""

    tenant_id: TenantId
    key: str
    concurrency: int
    in_use: int


@dataclass(frozen=True, slots=True)
class StoredUniqueKey:
    """Who holds a unique key."""

    tenant_id: TenantId
    key: str
    job_id: UUID
    until: str


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch with its counters as readers see them."""

    id: UUID
    state: BatchState
    run: int
    counts: Counts
    follow_ups: Counts
    callback_url: str | None = None


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """An Idempotency-Key, and the id of the job or batch that its stored answer names."""

    key: str
    subject: UUID | None


@dataclass(frozen=True, slots=True)
class StoredCallback:
    """A webhook that is owed, was delivered, or is a dead letter."""

    id: UUID
    place: CallbackPlace
    type: str
    url: str
    occurred_at: datetime
    subject: UUID | None
    run: int | None = None
    endpoint_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class IndexFinding:
    """A collection whose index is not what Postgres says, and why."""

    collection: str
    rule: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class History:
    """All facts of a run, the stores' from one snapshot. `slots`: when each was declared dead."""

    log: ClientLog = field(default_factory=ClientLog)
    jobs: tuple[StoredJob, ...] = ()
    # Rows of narrow tables whose job is not live.
    orphans: tuple[tuple[Place, UUID], ...] = ()
    attempts: tuple[StoredAttempt, ...] = ()
    events: tuple[StoredEvent, ...] = ()
    families: tuple[StoredFamily, ...] = ()
    # Edges that somebody still waits for: parent, child.
    dependencies: tuple[tuple[UUID, UUID], ...] = ()
    limits: tuple[StoredLimit, ...] = ()
    unique_keys: tuple[StoredUniqueKey, ...] = ()
    batches: tuple[StoredBatch, ...] = ()
    requests: tuple[StoredRequest, ...] = ()
    callbacks: tuple[StoredCallback, ...] = ()
    slots: Mapping[SlotId, datetime | None] = field(default_factory=dict)
    index: tuple[IndexFinding, ...] = ()
