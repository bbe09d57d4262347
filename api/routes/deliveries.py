"""/v1/deliveries and /v1/redeliveries: what was sent to webhooks and callbacks, and sending it
again.
"""

from collections.abc import Mapping
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query, Response, status
from pydantic import AfterValidator, Field

from api import paging
from api.auth import Operator, Principal, Reader
from api.delivery_views import (
    DeliveryView,
    DeliveryWithLog,
    RedeliveryDryRun,
    RedeliveryView,
    attempt_view,
    delivery_view,
    redelivery_view,
)
from api.deps import LIST_DEFAULT, Cursor, Limit, Services, WithServices
from api.errors import ProblemType
from api.job_requests import Moment, RequestModel
from api.openapi import problems
from api.routing import router as make_router
from api.views import Page, View
from jobs.kinds import Text
from webhooks import deliveries, endpoints, redeliveries
from webhooks.deliveries import DeliveryFilter, Place
from webhooks.model import DELIVERY_TYPES, DeliveryState
from webhooks.redeliveries import COUNT_MAX

router = make_router("deliveries")

WebhookId = Annotated[UUID, Path(description="The webhook's id.")]
DeliveryId = Annotated[UUID, Path(description="The delivery's id, which is its `webhook-id`.")]
RedeliveryId = Annotated[UUID, Path(description="The redelivery's id.")]


def _known(name: str) -> str:
    if name not in DELIVERY_TYPES:
        message = f"is no type of a delivery: there are {', '.join(DELIVERY_TYPES)}"
        raise ValueError(message)
    return name


EventType = Annotated[
    Text, AfterValidator(_known), Field(json_schema_extra={"enum": list(DELIVERY_TYPES)})
]


class FilterRequest(RequestModel):
    """Which deliveries: all conditions that are given must hold. Times are of the event."""

    state: Annotated[
        DeliveryState, Field(strict=False, description="Dead letters, if nothing else is asked.")
    ] = DeliveryState.DEAD
    type: EventType | None = None
    occurred_after: Moment | None = None
    occurred_before: Moment | None = None

    def conditions(self, webhook_id: UUID | None) -> DeliveryFilter:
        """What is looked for."""
        return DeliveryFilter(
            webhook_id, self.state, self.type, self.occurred_after, self.occurred_before
        )


class RedeliverRequest(RequestModel):
    """Deliveries to send again, or with `dry_run` only to count."""

    filter: FilterRequest = FilterRequest()
    dry_run: bool = False


class TenantFilterRequest(FilterRequest):
    """The same of all webhooks and callbacks, or of one webhook."""

    webhook_id: Annotated[UUID, Field(strict=False)] | None = None


class TenantRedeliverRequest(RequestModel):
    """Deliveries to send again, of all webhooks and callbacks, or with `dry_run` only to count."""

    filter: TenantFilterRequest
    dry_run: bool = False


_STARTED = {
    200: {"model": RedeliveryDryRun, "description": "A dry run: nothing was changed."},
    **problems(ProblemType.NOT_FOUND, ProblemType.CONFLICT),
}


@router.get("/webhooks/{webhook_id}/deliveries", responses=problems(ProblemType.NOT_FOUND))
async def list_deliveries(
    services: WithServices,
    principal: Reader,
    webhook_id: WebhookId,
    state: DeliveryState | None = None,
    type: Annotated[EventType | None, Query()] = None,  # noqa: A002 - the parameter's name
    occurred_after: Annotated[Moment | None, Query()] = None,
    occurred_before: Annotated[Moment | None, Query()] = None,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[DeliveryView]:
    """What was and is to be delivered to a webhook, newest first."""
    async with services.connection() as connection:
        await endpoints.get(connection, principal.tenant_id, webhook_id)
    wanted = DeliveryFilter(webhook_id, state, type, occurred_after, occurred_before)
    return await _page(services, principal, wanted, cursor, limit=limit)


@router.get("/deliveries")
async def list_all_deliveries(
    services: WithServices,
    principal: Reader,
    webhook_id: UUID | None = None,
    state: DeliveryState | None = None,
    type: Annotated[EventType | None, Query()] = None,  # noqa: A002 - the parameter's name
    occurred_after: Annotated[Moment | None, Query()] = None,
    occurred_before: Annotated[Moment | None, Query()] = None,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[DeliveryView]:
    """What was and is to be delivered to the tenant's webhooks and callbacks, newest first."""
    wanted = DeliveryFilter(webhook_id, state, type, occurred_after, occurred_before)
    return await _page(services, principal, wanted, cursor, limit=limit)


async def _page(
    services: Services,
    principal: Principal,
    wanted: DeliveryFilter,
    cursor: str | None,
    *,
    limit: int,
) -> Page[DeliveryView]:
    before = paging.decode("deliveries", cursor, _place)
    async with services.connection() as connection:
        page = await deliveries.find(
            connection, principal.tenant_id, wanted, before=before, limit=limit
        )
    place = page.next and f"{page.next.occurred_at.isoformat()}/{page.next.id}"
    return Page[DeliveryView](
        data=[delivery_view(delivery) for delivery in page.deliveries],
        next_cursor=None if place is None else paging.encode("deliveries", place),
    )


@router.get("/deliveries/{delivery_id}", responses=problems(ProblemType.NOT_FOUND))
async def get_delivery(
    services: WithServices, principal: Reader, delivery_id: DeliveryId
) -> DeliveryWithLog:
    """A delivery and its attempts."""
    async with services.connection() as connection:
        found, log = await deliveries.get(connection, principal.tenant_id, delivery_id)
    attempts = [attempt_view(attempt) for attempt in log]
    return DeliveryWithLog(**delivery_view(found).model_dump(), attempts=attempts)


@router.post(
    "/deliveries/{delivery_id}/redeliver",
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(ProblemType.NOT_FOUND, ProblemType.CONFLICT),
)
async def redeliver(
    services: WithServices, principal: Operator, delivery_id: DeliveryId
) -> DeliveryView:
    """Deliver again at once, under the same `webhook-id` and with a fresh budget of attempts."""
    async with services.transaction() as connection:
        again = await deliveries.redeliver(connection, principal.tenant_id, delivery_id)
    return delivery_view(again)


@router.post(
    "/webhooks/{webhook_id}/redeliver",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=RedeliveryView,
    responses=_STARTED,
)
async def redeliver_of_webhook(
    services: WithServices,
    principal: Operator,
    webhook_id: WebhookId,
    sent: RedeliverRequest | None = None,
) -> Response:
    """Deliver all that match again, each under its own `webhook-id`: dead letters by default."""
    sent = sent or RedeliverRequest()
    wanted = sent.filter.conditions(webhook_id)
    return await _start(services, principal, wanted, dry_run=sent.dry_run)


@router.post(
    "/redeliveries",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=RedeliveryView,
    responses=_STARTED,
)
async def start_redelivery(
    services: WithServices, principal: Operator, sent: TenantRedeliverRequest
) -> Response:
    """The same of all the tenant's webhooks and callbacks."""
    wanted = sent.filter.conditions(sent.filter.webhook_id)
    return await _start(services, principal, wanted, dry_run=sent.dry_run)


async def _start(
    services: Services, principal: Principal, wanted: DeliveryFilter, *, dry_run: bool
) -> Response:
    async with services.transaction() as connection:
        if dry_run:
            matched = await redeliveries.count(connection, principal.tenant_id, wanted)
            counted = RedeliveryDryRun(matched=matched, at_least=matched == COUNT_MAX)
            return _json(status.HTTP_200_OK, counted)
        accepted = await redeliveries.accept(
            connection, principal.tenant_id, wanted, actor=principal.name
        )
    view = redelivery_view(accepted)
    return _json(status.HTTP_202_ACCEPTED, view, {"Location": view.links["self"]})


def _json(code: int, view: View, headers: Mapping[str, str] | None = None) -> Response:
    return Response(view.model_dump_json(), code, headers, media_type="application/json")


@router.get("/redeliveries")
async def list_redeliveries(
    services: WithServices, principal: Reader, cursor: Cursor = None, limit: Limit = LIST_DEFAULT
) -> Page[RedeliveryView]:
    """The tenant's redeliveries, newest first."""
    before = paging.decode_uuid("redeliveries", cursor)
    async with services.connection() as connection:
        found = await redeliveries.list_redeliveries(
            connection, principal.tenant_id, before=before, limit=limit
        )
    return Page[RedeliveryView](
        data=[redelivery_view(redelivery) for redelivery in found],
        next_cursor=paging.next_cursor("redeliveries", found, limit, lambda row: row.id),
    )


@router.get("/redeliveries/{redelivery_id}", responses=problems(ProblemType.NOT_FOUND))
async def get_redelivery(
    services: WithServices, principal: Reader, redelivery_id: RedeliveryId
) -> RedeliveryView:
    """A redelivery and how far it is."""
    async with services.connection() as connection:
        found = await redeliveries.get(connection, principal.tenant_id, redelivery_id)
    return redelivery_view(found)


@router.post("/redeliveries/{redelivery_id}/cancel", responses=problems(ProblemType.NOT_FOUND))
async def cancel_redelivery(
    services: WithServices, principal: Operator, redelivery_id: RedeliveryId
) -> RedeliveryView:
    """Do no more of it; what became pending stays so. Idempotent."""
    async with services.transaction() as connection:
        return redelivery_view(
            await redeliveries.cancel(connection, principal.tenant_id, redelivery_id)
        )


def _place(text: str) -> Place:
    at, _, delivery_id = text.partition("/")
    return Place(paging.moment(at), UUID(delivery_id))
