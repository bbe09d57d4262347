"""What clients see of deliveries, their attempts, and redeliveries."""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

from api.views import AnyObject, View
from webhooks import redeliveries
from webhooks.model import Delivery, DeliveryAttempt, DeliveryState
from webhooks.redeliveries import Redelivery, RedeliveryState


class DeliveryView(View):
    """One event for one receiver. `due_at` is the next attempt of a pending one."""

    id: UUID
    webhook_id: UUID | None
    url: str
    type: str
    state: DeliveryState
    attempt: int
    failures: int
    reason: str | None
    occurred_at: datetime
    due_at: datetime | None
    finished_at: datetime | None
    data: AnyObject
    links: dict[str, str]


class SentView(View):
    """The request as it was sent."""

    headers: dict[str, str]
    body: str


class AnsweredView(View):
    """The answer's headers, and the beginning of its body."""

    headers: dict[str, str]
    body: str


class DeliveryAttemptView(View):
    """One attempt to deliver: what was sent where, and what was answered, or why nothing was.

    `address` is what the host's name was resolved to and connected to.
    """

    attempt: int
    url: str
    address: str | None
    started_at: datetime
    duration_s: float
    status: int | None
    request: SentView
    response: AnsweredView | None
    error_type: str | None
    error_detail: str | None


class DeliveryWithLog(DeliveryView):
    """A delivery and its attempts, oldest first."""

    attempts: list[DeliveryAttemptView]


class RedeliveryView(View):
    """Deliveries that are sent again: `done` so far of `expected`, which is null when there are too
    many to count beforehand. It goes on whatever becomes of the client.
    """

    id: UUID
    filter: AnyObject
    actor: str
    state: RedeliveryState
    expected: int | None
    done: int
    created_at: datetime
    finished_at: datetime | None
    links: dict[str, str]


class RedeliveryDryRun(View):
    """What a redelivery would send again now: `at_least` so many when there are too many to
    count.
    """

    dry_run: bool = True
    matched: int
    at_least: bool


def delivery_view(delivery: Delivery) -> DeliveryView:
    """A delivery, with links to what may be done with it."""
    path = f"/v1/deliveries/{delivery.id}"
    webhook = {"webhook": f"/v1/webhooks/{delivery.endpoint_id}"} if delivery.endpoint_id else {}
    return DeliveryView(
        id=delivery.id,
        webhook_id=delivery.endpoint_id,
        url=delivery.url,
        type=delivery.type,
        state=delivery.state,
        attempt=delivery.attempt,
        failures=delivery.failures,
        reason=delivery.reason,
        occurred_at=delivery.occurred_at,
        due_at=delivery.due_at,
        finished_at=delivery.finished_at,
        data=dict(delivery.data),
        links={"self": path, "redeliver": f"{path}/redeliver", **webhook},
    )


def attempt_view(attempt: DeliveryAttempt) -> DeliveryAttemptView:
    """A line of the log; no response if none came."""
    answer = attempt.answer
    response = None
    if answer.status is not None:
        response = AnsweredView(
            headers=dict(answer.response_headers or {}), body=answer.response_body or ""
        )
    return DeliveryAttemptView(
        attempt=attempt.attempt,
        url=attempt.url,
        address=answer.address,
        started_at=answer.started_at,
        duration_s=answer.duration_s,
        status=answer.status,
        request=SentView(headers=dict(answer.request_headers), body=answer.request_body),
        response=response,
        error_type=answer.error_type,
        error_detail=answer.error_detail,
    )


def redelivery_view(redelivery: Redelivery) -> RedeliveryView:
    """A redelivery, its webhook told within the filter."""
    path = f"/v1/redeliveries/{redelivery.id}"
    chosen = redeliveries.as_json(replace(redelivery.filter, endpoint_id=None))
    webhook_id = redelivery.filter.endpoint_id
    named = {} if webhook_id is None else {"webhook_id": str(webhook_id)}
    return RedeliveryView(
        id=redelivery.id,
        filter={**named, **chosen},
        actor=redelivery.actor,
        state=redelivery.state,
        expected=redelivery.expected,
        done=redelivery.done,
        created_at=redelivery.created_at,
        finished_at=redelivery.finished_at,
        links={"self": path, "cancel": f"{path}/cancel"},
    )
