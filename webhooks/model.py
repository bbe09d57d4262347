"""The records of webhooks: endpoints, what is owed to them, and what was delivered. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from jobs.model import JsonObject, TenantId
from webhooks.sign import Secret

TEST_TYPE = "webhook.test"

# The events that lie in the table of events; progress and tokens never leave by webhook.
EVENT_TYPES = (
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "job.settled",
    "batch.finished",
    "document.created",
    "document.changed",
    "document.removed",
    "schedule.missed",
    "webhook.disabled",
)
# What an endpoint may subscribe to: a type, all of a family (`job.*`), or everything.
EVENT_PATTERNS = (
    *EVENT_TYPES,
    *dict.fromkeys(name.partition(".")[0] + ".*" for name in EVENT_TYPES),
    "*",
)


# What a delivery can be of.
DELIVERY_TYPES = (*EVENT_TYPES, TEST_TYPE)


class DeliveryState(StrEnum):
    """Where a delivery stands; only `redeliver` leaves the last two."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A receiver of events. Disabled by its owner, by itself (410), or after days of failures."""

    id: UUID
    tenant_id: TenantId
    url: str
    events: tuple[str, ...]
    description: str
    version: int
    disabled_at: datetime | None
    disabled_reason: str | None
    previous_secret_until: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Owed:
    """A claimed delivery. `attempt` is the fence: whoever does not hold it any more changes
    nothing.

    `secrets` is empty for a callback of a tenant that has no secret yet. `undeliverable` says why
    it is not to be sent at all.
    """

    id: UUID
    tenant_id: TenantId
    endpoint_id: UUID | None
    url: str
    lane: str
    type: str
    occurred_at: datetime
    data: JsonObject
    attempt: int
    failures: int
    claimed_at: datetime
    secrets: tuple[Secret, ...]
    undeliverable: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request led to: a status with head and truncated body, or the reason for none."""

    started_at: datetime
    duration_s: float
    request_headers: Mapping[str, str]
    request_body: str
    address: str | None = None
    status: int | None = None
    response_headers: Mapping[str, str] | None = None
    response_body: str | None = None
    error_type: str | None = None
    error_detail: str | None = None
    retry_after_s: float | None = None

    @property
    def is_success(self) -> bool:
        """Only a 2xx is one; a redirect is not followed."""
        return self.error_type is None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event or callback for one receiver. `due_at` is the next attempt of a pending one."""

    id: UUID
    tenant_id: TenantId
    endpoint_id: UUID | None
    url: str
    type: str
    occurred_at: datetime
    data: JsonObject
    state: DeliveryState
    attempt: int
    failures: int
    reason: str | None
    due_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """A line of the delivery log."""

    attempt: int
    url: str
    answer: Answer
