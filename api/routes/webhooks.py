"""/v1/webhooks, /v1/deliveries and /v1/callback-secret: who is told of what, and what became of
it.
"""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Path, Response, status
from pydantic import ConfigDict, Field

from api import paging
from api.auth import Operator, Reader
from api.deps import LIST_DEFAULT, Cursor, Limit, WithServices
from api.errors import ProblemType
from api.job_requests import RequestModel
from api.openapi import problems
from api.routing import router as make_router
from api.views import AnyObject, Page, View
from jobs.kinds import Text, Url
from webhooks import endpoints, outbox
from webhooks.endpoints import DESCRIPTION_LENGTH_MAX, EndpointSpec
from webhooks.model import EVENT_PATTERNS, Delivery, DeliveryAttempt, DeliveryState, Endpoint

router = make_router("webhooks")

WebhookId = Annotated[UUID, Path(description="The webhook's id.")]
DeliveryId = Annotated[UUID, Path(description="The delivery's id, which is its `webhook-id`.")]
Events = Annotated[
    list[Annotated[Text, Field(max_length=64, json_schema_extra={"enum": list(EVENT_PATTERNS)})]],
    Field(min_length=1, max_length=32),
]
Description = Annotated[Text, Field(max_length=DESCRIPTION_LENGTH_MAX)]


class WebhookRequest(RequestModel):
    """Where events go, and which: a type, all of a family (`job.*`), or `*`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"url": "https://example.org/hooks", "events": ["job.failed", "batch.*"]}]
        }
    )

    url: Url
    events: Events
    description: Description = ""
    enabled: bool = True


class WebhookPatch(RequestModel):
    """What changes; fields left out stay."""

    url: Url | None = None
    events: Events | None = None
    description: Description | None = None
    enabled: bool | None = None


class WebhookView(View):
    """A receiver of events."""

    id: UUID
    url: str
    events: list[str]
    description: str
    enabled: bool
    disabled_at: datetime | None
    disabled_reason: str | None
    previous_secret_until: datetime | None
    version: int
    created_at: datetime
    updated_at: datetime
    links: dict[str, str]


class WebhookWithSecret(WebhookView):
    """A webhook and its new secret, which is shown this once."""

    secret: Annotated[str, Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])]


class SecretView(View):
    """The secret that signs the tenant's callbacks (`callback_url`)."""

    secret: str


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


class DeliveryAttemptView(View):
    """One attempt to deliver: what was answered, or why nothing was."""

    attempt: int
    url: str
    started_at: datetime
    duration_s: float
    status: int | None
    error_type: str | None
    error_detail: str | None
    response_body: str | None


class DeliveryWithLog(DeliveryView):
    """A delivery and its attempts, oldest first."""

    attempts: list[DeliveryAttemptView]


class TestView(View):
    """The delivery of a `webhook.test`."""

    delivery_id: UUID


@router.post("/webhooks", status_code=status.HTTP_201_CREATED)
async def create_webhook(
    services: WithServices, principal: Operator, webhook: WebhookRequest, response: Response
) -> WebhookWithSecret:
    """Make a webhook, told of what happens from now on; its secret is shown once."""
    spec = EndpointSpec(webhook.url, tuple(webhook.events), webhook.description, webhook.enabled)
    async with services.transaction() as connection:
        made, secret = await endpoints.create(
            connection, principal.tenant_id, spec, policy=services.egress
        )
    response.headers["Location"] = f"/v1/webhooks/{made.id}"
    return WebhookWithSecret(**_view(made).model_dump(), secret=secret.text)


@router.get("/webhooks")
async def list_webhooks(
    services: WithServices, principal: Reader, cursor: Cursor = None, limit: Limit = LIST_DEFAULT
) -> Page[WebhookView]:
    """The tenant's webhooks in the order they were made."""
    after = paging.decode_uuid("webhooks", cursor)
    async with services.connection() as connection:
        found = await endpoints.list_endpoints(
            connection, principal.tenant_id, after=after, limit=limit
        )
    return Page[WebhookView](
        data=[_view(endpoint) for endpoint in found],
        next_cursor=paging.next_cursor("webhooks", found, limit, lambda row: row.id),
    )


@router.get("/webhooks/{webhook_id}", responses=problems(ProblemType.NOT_FOUND))
async def get_webhook(
    services: WithServices, principal: Reader, webhook_id: WebhookId
) -> WebhookView:
    """A webhook, without its secret."""
    async with services.connection() as connection:
        return _view(await endpoints.get(connection, principal.tenant_id, webhook_id))


@router.patch("/webhooks/{webhook_id}", responses=problems(ProblemType.NOT_FOUND))
async def change_webhook(
    services: WithServices, principal: Operator, webhook_id: WebhookId, patch: WebhookPatch
) -> WebhookView:
    """Change a webhook; what is owed to it goes to the new URL."""
    async with services.transaction() as connection:
        old = await endpoints.get(connection, principal.tenant_id, webhook_id)
        spec = EndpointSpec(
            url=old.url if patch.url is None else patch.url,
            events=old.events if patch.events is None else tuple(patch.events),
            description=old.description if patch.description is None else patch.description,
            enabled=old.disabled_at is None if patch.enabled is None else patch.enabled,
        )
        changed = await endpoints.update(
            connection, principal.tenant_id, webhook_id, spec, policy=services.egress
        )
    return _view(changed)


@router.delete(
    "/webhooks/{webhook_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=problems(ProblemType.NOT_FOUND),
)
async def delete_webhook(
    services: WithServices, principal: Operator, webhook_id: WebhookId
) -> None:
    """Remove a webhook and what is owed to it."""
    async with services.transaction() as connection:
        await endpoints.delete(connection, principal.tenant_id, webhook_id)


@router.post("/webhooks/{webhook_id}/rotate", responses=problems(ProblemType.NOT_FOUND))
async def rotate_webhook(
    services: WithServices, principal: Operator, webhook_id: WebhookId
) -> WebhookWithSecret:
    """Make a new secret, shown once; the old one signs beside it for a day."""
    async with services.transaction() as connection:
        changed, secret = await endpoints.rotate(connection, principal.tenant_id, webhook_id)
    return WebhookWithSecret(**_view(changed).model_dump(), secret=secret.text)


@router.post(
    "/webhooks/{webhook_id}/test",
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(ProblemType.NOT_FOUND),
)
async def test_webhook(
    services: WithServices, principal: Operator, webhook_id: WebhookId
) -> TestView:
    """Send a `webhook.test` to it, disabled or not."""
    async with services.transaction() as connection:
        return TestView(
            delivery_id=await endpoints.send_test(connection, principal.tenant_id, webhook_id)
        )


@router.get("/webhooks/{webhook_id}/deliveries", responses=problems(ProblemType.NOT_FOUND))
async def list_deliveries(
    services: WithServices,
    principal: Reader,
    webhook_id: WebhookId,
    state: DeliveryState | None = None,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[DeliveryView]:
    """What was and is to be delivered, newest first."""
    before = paging.decode("deliveries", cursor, _place)
    async with services.connection() as connection:
        await endpoints.get(connection, principal.tenant_id, webhook_id)
        found = await outbox.deliveries(
            connection,
            principal.tenant_id,
            endpoint_id=webhook_id,
            state=state,
            before=before,
            limit=limit,
        )
    return Page[DeliveryView](
        data=[_delivery_view(delivery) for delivery in found],
        next_cursor=paging.next_cursor(
            "deliveries", found, limit, lambda row: f"{row.occurred_at.isoformat()}/{row.id}"
        ),
    )


@router.get("/deliveries/{delivery_id}", responses=problems(ProblemType.NOT_FOUND))
async def get_delivery(
    services: WithServices, principal: Reader, delivery_id: DeliveryId
) -> DeliveryWithLog:
    """A delivery and its attempts."""
    async with services.connection() as connection:
        found, log = await outbox.get_delivery(connection, principal.tenant_id, delivery_id)
    attempts = [_attempt_view(attempt) for attempt in log]
    return DeliveryWithLog(**_delivery_view(found).model_dump(), attempts=attempts)


@router.post(
    "/deliveries/{delivery_id}/redeliver",
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(ProblemType.NOT_FOUND),
)
async def redeliver(
    services: WithServices, principal: Operator, delivery_id: DeliveryId
) -> DeliveryView:
    """Deliver again at once, under the same `webhook-id` and with a fresh budget of attempts."""
    async with services.transaction() as connection:
        return _delivery_view(await outbox.redeliver(connection, principal.tenant_id, delivery_id))


@router.get("/callback-secret")
async def get_callback_secret(services: WithServices, principal: Operator) -> SecretView:
    """The secret by which the tenant's callbacks can be verified."""
    async with services.transaction() as connection:
        return SecretView(
            secret=(await endpoints.callback_secret(connection, principal.tenant_id)).text
        )


def _place(text: str) -> tuple[datetime, UUID]:
    at, _, delivery_id = text.partition("/")
    return paging.moment(at), UUID(delivery_id)


def _view(endpoint: Endpoint) -> WebhookView:
    path = f"/v1/webhooks/{endpoint.id}"
    return WebhookView(
        id=endpoint.id,
        url=endpoint.url,
        events=list(endpoint.events),
        description=endpoint.description,
        enabled=endpoint.disabled_at is None,
        disabled_at=endpoint.disabled_at,
        disabled_reason=endpoint.disabled_reason,
        previous_secret_until=endpoint.previous_secret_until,
        version=endpoint.version,
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
        links={"self": path, "deliveries": f"{path}/deliveries"},
    )


def _delivery_view(delivery: Delivery) -> DeliveryView:
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
    )


def _attempt_view(attempt: DeliveryAttempt) -> DeliveryAttemptView:
    answer = attempt.answer
    return DeliveryAttemptView(
        attempt=attempt.attempt,
        url=attempt.url,
        started_at=answer.started_at,
        duration_s=answer.duration_s,
        status=answer.status,
        error_type=answer.error_type,
        error_detail=answer.error_detail,
        response_body=answer.response_body,
    )
