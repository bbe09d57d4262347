"""/v1/webhooks and /v1/callback-secret: who is told of what, and by which secrets they know us."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Path, Response, status
from pydantic import ConfigDict, Field

from api import paging
from api.auth import Operator, Reader
from api.deps import LIST_DEFAULT, Cursor, Limit, WithAudit, WithServices
from api.errors import ProblemType
from api.job_requests import RequestModel
from api.openapi import problems
from api.quotas import Counted, admit_one
from api.routing import router as make_router
from api.views import Page, View
from jobs.kinds import Text, Url
from webhooks import callback_secrets, circuits, endpoints
from webhooks.callback_secrets import CallbackSecret
from webhooks.circuits import Circuit
from webhooks.endpoints import (
    DESCRIPTION_LENGTH_MAX,
    ROTATION_OVERLAP_MAX_S,
    ROTATION_OVERLAP_S,
    EndpointSpec,
)
from webhooks.model import EVENT_PATTERNS, Endpoint

router = make_router("webhooks")

WebhookId = Annotated[UUID, Path(description="The webhook's id.")]
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


class CircuitView(View):
    """What is held against a webhook whose last attempt failed. While it is open, one delivery at a
    time probes the receiver, the next one at `probe_at`.
    """

    is_open: bool
    failures: int
    failing_since: datetime
    probe_at: datetime | None


class WebhookView(View):
    """A receiver of events; `circuit` is null while it answers."""

    id: UUID
    url: str
    events: list[str]
    description: str
    enabled: bool
    disabled_at: datetime | None
    disabled_reason: str | None
    previous_secret_until: datetime | None
    circuit: CircuitView | None
    version: int
    created_at: datetime
    updated_at: datetime
    links: dict[str, str]


class WebhookWithSecret(WebhookView):
    """A webhook and its new secret, which is shown this once."""

    secret: Annotated[str, Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])]


class SecretView(View):
    """The secret that signs the tenant's callbacks (`callback_url`), and until when the one before
    it signs along.
    """

    secret: str
    previous_secret_until: datetime | None


class RotateRequest(RequestModel):
    """How long the old secret signs beside the new one; 0 ends it at once, as when it leaked."""

    overlap_s: Annotated[float, Field(ge=0, le=ROTATION_OVERLAP_MAX_S, allow_inf_nan=False)] = (
        ROTATION_OVERLAP_S
    )


class TestView(View):
    """The delivery of a `webhook.test`."""

    delivery_id: UUID


@router.post("/webhooks", status_code=status.HTTP_201_CREATED)
async def create_webhook(
    services: WithServices,
    principal: Operator,
    audit: WithAudit,
    webhook: WebhookRequest,
    response: Response,
) -> WebhookWithSecret:
    """Make a webhook, told of what happens from now on; its secret is shown once."""
    spec = EndpointSpec(webhook.url, tuple(webhook.events), webhook.description, webhook.enabled)
    async with services.transaction() as connection:
        await admit_one(connection, principal.tenant_id, principal.quotas, Counted.WEBHOOKS)
        made, secret = await endpoints.create(
            connection,
            principal.tenant_id,
            spec,
            policy=services.egress.of(principal.tenant_id),
        )
        await audit.record(connection, "webhook.created", made.id, url=made.url)
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
        held = await circuits.of_endpoints(connection, [endpoint.id for endpoint in found])
    return Page[WebhookView](
        data=[_view(endpoint, held.get(endpoint.id)) for endpoint in found],
        next_cursor=paging.next_cursor("webhooks", found, limit, lambda row: row.id),
    )


@router.get("/webhooks/{webhook_id}", responses=problems(ProblemType.NOT_FOUND))
async def get_webhook(
    services: WithServices, principal: Reader, webhook_id: WebhookId
) -> WebhookView:
    """A webhook, without its secret."""
    async with services.connection() as connection:
        found = await endpoints.get(connection, principal.tenant_id, webhook_id)
        held = await circuits.of_endpoints(connection, [found.id])
    return _view(found, held.get(found.id))


@router.patch("/webhooks/{webhook_id}", responses=problems(ProblemType.NOT_FOUND))
async def change_webhook(
    services: WithServices,
    principal: Operator,
    audit: WithAudit,
    webhook_id: WebhookId,
    patch: WebhookPatch,
) -> WebhookView:
    """Change a webhook; what is owed to it goes to the new URL, and nothing is held against it."""
    async with services.transaction() as connection:
        old = await endpoints.get(connection, principal.tenant_id, webhook_id)
        spec = EndpointSpec(
            url=old.url if patch.url is None else patch.url,
            events=old.events if patch.events is None else tuple(patch.events),
            description=old.description if patch.description is None else patch.description,
            enabled=old.disabled_at is None if patch.enabled is None else patch.enabled,
        )
        changed = await endpoints.update(
            connection,
            principal.tenant_id,
            webhook_id,
            spec,
            policy=services.egress.of(principal.tenant_id),
        )
        changes = patch.model_dump(include=patch.model_fields_set)
        await audit.record(connection, "webhook.changed", webhook_id, **changes)
    return _view(changed)


@router.delete(
    "/webhooks/{webhook_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=problems(ProblemType.NOT_FOUND),
)
async def delete_webhook(
    services: WithServices, principal: Operator, audit: WithAudit, webhook_id: WebhookId
) -> None:
    """Remove a webhook and what is owed to it."""
    async with services.transaction() as connection:
        await endpoints.delete(connection, principal.tenant_id, webhook_id)
        await audit.record(connection, "webhook.deleted", webhook_id)


@router.post("/webhooks/{webhook_id}/rotate", responses=problems(ProblemType.NOT_FOUND))
async def rotate_webhook(
    services: WithServices,
    principal: Operator,
    audit: WithAudit,
    webhook_id: WebhookId,
    sent: RotateRequest | None = None,
) -> WebhookWithSecret:
    """Make a new secret, shown once; the old one signs beside it for a day, or for `overlap_s`."""
    overlap_s = (sent or RotateRequest()).overlap_s
    async with services.transaction() as connection:
        changed, secret = await endpoints.rotate(
            connection, principal.tenant_id, webhook_id, overlap_s=overlap_s
        )
        await audit.record(connection, "webhook.rotated", webhook_id)
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


@router.get("/callback-secret")
async def get_callback_secret(
    services: WithServices, principal: Operator, audit: WithAudit
) -> SecretView:
    """The secret by which the tenant's callbacks can be verified."""
    async with services.transaction() as connection:
        found = await callback_secrets.get(connection, principal.tenant_id)
        await audit.record(connection, "callback_secret.shown", principal.tenant)
    return _secret_view(found)


@router.post("/callback-secret/rotate")
async def rotate_callback_secret(
    services: WithServices,
    principal: Operator,
    audit: WithAudit,
    sent: RotateRequest | None = None,
) -> SecretView:
    """Make a new secret for the tenant's callbacks; the old one signs beside it for a while."""
    overlap_s = (sent or RotateRequest()).overlap_s
    async with services.transaction() as connection:
        found = await callback_secrets.rotate(connection, principal.tenant_id, overlap_s=overlap_s)
        await audit.record(connection, "callback_secret.rotated", principal.tenant)
    return _secret_view(found)


def _view(endpoint: Endpoint, circuit: Circuit | None = None) -> WebhookView:
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
        circuit=None if circuit is None else _circuit_view(circuit),
        version=endpoint.version,
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
        links={"self": path, "deliveries": f"{path}/deliveries"},
    )


def _circuit_view(circuit: Circuit) -> CircuitView:
    return CircuitView(
        is_open=circuit.probe_at is not None,
        failures=circuit.failures,
        failing_since=circuit.failing_since,
        probe_at=circuit.probe_at,
    )


def _secret_view(found: CallbackSecret) -> SecretView:
    return SecretView(secret=found.secret.text, previous_secret_until=found.previous_until)
