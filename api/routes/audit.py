"""/v1/audit: what admins and operators of the tenant did, for its admins."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import ConfigDict

from api import audit, paging
from api.audit import ActFilter, Action
from api.auth import Admin
from api.deps import LIST_DEFAULT, Cursor, Limit, WithServices
from api.routing import router as make_router
from api.views import AnyObject, Page, View

router = make_router("audit")


class ActView(View):
    """An administrative act: what was done to what, by which key, from where."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    at: datetime
    key_id: UUID
    key_name: str
    action: str
    target: str
    details: AnyObject
    address: str | None
    request_id: str | None


@router.get("/audit")
async def list_acts(
    services: WithServices,
    principal: Admin,
    action: Action | None = None,
    key_id: Annotated[UUID | None, Query(description="Only what this key did.")] = None,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[ActView]:
    """Administrative acts of the tenant's keys, newest first."""
    before = paging.decode_uuid("audit", cursor)
    wanted = ActFilter(action, key_id)
    async with services.connection() as connection:
        found = await audit.list_acts(
            connection, principal.tenant_id, wanted, before=before, limit=limit
        )
    return Page[ActView](
        data=[ActView.model_validate(act) for act in found],
        next_cursor=paging.next_cursor("audit", found, limit, lambda act: act.id),
    )
