"""/v1/limits: how many jobs of one `concurrency_key` may be queued or running."""

from typing import Annotated

from fastapi import Path
from pydantic import ConfigDict, Field

from api import paging
from api.auth import Operator
from api.deps import LIST_DEFAULT, Cursor, Limit, WithAudit, WithServices
from api.job_requests import RequestModel
from api.routing import router as make_router
from api.views import Page, View
from jobs import limits

router = make_router("limits")


class LimitRequest(RequestModel):
    """How many at once; 0 holds them all back."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"concurrency": 4}]})

    concurrency: Annotated[int, Field(ge=0, le=1_000_000)]


class LimitView(View):
    """A limit, how much of it is taken, and how many jobs wait for it."""

    model_config = ConfigDict(from_attributes=True)

    key: str
    concurrency: int
    in_use: int
    waiting: int


@router.get("/limits")
async def list_limits(
    services: WithServices, principal: Operator, cursor: Cursor = None, limit: Limit = LIST_DEFAULT
) -> Page[LimitView]:
    """Every limit of the tenant, by key."""
    offset = paging.decode_offset(cursor)
    async with services.connection() as connection:
        found = await limits.list_limits(connection, principal.tenant_id)
    shown, following = paging.part(found, offset, limit)
    return Page[LimitView](
        data=[LimitView.model_validate(row) for row in shown], next_cursor=following
    )


@router.put("/limits/{key}")
async def set_limit(
    services: WithServices,
    principal: Operator,
    audit: WithAudit,
    key: Annotated[str, Path(min_length=1, max_length=255, examples=["example.org"])],
    limit: LimitRequest,
) -> LimitView:
    """Set a limit. A raise queues waiting jobs; a cut lets running ones end."""
    async with services.transaction() as connection:
        found, ready = await limits.put(connection, principal.tenant_id, key, limit.concurrency)
        await audit.record(connection, "limit.set", key, concurrency=limit.concurrency)
    services.announcer.announce(ready)
    return LimitView.model_validate(found)
