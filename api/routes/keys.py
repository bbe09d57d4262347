"""/v1/keys: admins make, list and revoke API keys."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Path, Response, status
from pydantic import ConfigDict, Field

from api import keys, paging
from api.auth import Admin
from api.deps import LIST_DEFAULT, Cursor, Limit, WithServices
from api.errors import Problem, ProblemType
from api.job_requests import Moment, RequestModel
from api.keys import Key, NewKey, Role
from api.openapi import problems
from api.routing import router as make_router
from api.views import Page, View
from jobs.kinds import Text
from jobs.model import DEFAULT_TENANT

router = make_router("keys")

type RoleName = Literal["reader", "submitter", "operator", "admin"]


class KeyRequest(RequestModel):
    """A key to make. Only admins of the tenant `default` may name another tenant, which is made if
    need be.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "nightly import", "role": "submitter"}]}
    )

    name: Annotated[Text, Field(min_length=1, max_length=200)]
    role: RoleName = "submitter"
    tenant: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")] | None = None
    expires_at: Moment | None = None


class KeyView(View):
    """A key without its secret."""

    id: UUID
    name: str
    prefix: str
    role: RoleName
    tenant: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class CreatedKeyView(KeyView):
    """A new key. `key` is shown this once and kept nowhere."""

    key: str


@router.post(
    "/keys", status_code=status.HTTP_201_CREATED, responses=problems(ProblemType.FORBIDDEN)
)
async def create_key(services: WithServices, principal: Admin, key: KeyRequest) -> CreatedKeyView:
    """Make a key; its text is shown once."""
    tenant_id = principal.tenant_id
    async with services.transaction() as connection:
        if key.tenant is not None and key.tenant != principal.tenant:
            if principal.tenant_id != DEFAULT_TENANT:
                detail = "only admins of the tenant 'default' make keys for other tenants"
                raise Problem(ProblemType.FORBIDDEN, detail)
            tenant_id = await keys.tenant_of_name(connection, key.tenant)
        new = NewKey(key.name, Role.parse(key.role), tenant_id, key.expires_at)
        key_id, text = await keys.create_key(connection, new)
        made = await keys.find_by_id(connection, tenant_id, key_id)
    if made is None:
        raise _not_found(key_id)
    return CreatedKeyView(**_view(made).model_dump(), key=text)


@router.get("/keys")
async def list_keys(
    services: WithServices, principal: Admin, cursor: Cursor = None, limit: Limit = LIST_DEFAULT
) -> Page[KeyView]:
    """The tenant's keys, revoked ones included."""
    after = paging.decode_uuid("keys", cursor)
    async with services.connection() as connection:
        found = await keys.list_keys(connection, principal.tenant_id, after, limit)
    return Page[KeyView](
        data=[_view(key) for key in found],
        next_cursor=paging.next_cursor("keys", found, limit, lambda key: key.id),
    )


@router.delete(
    "/keys/{key_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=problems(ProblemType.NOT_FOUND, ProblemType.CONFLICT),
)
async def revoke_key(
    services: WithServices,
    principal: Admin,
    key_id: Annotated[UUID, Path(description="The key's id.")],
) -> None:
    """End a key for good. Idempotent; the key that asks cannot end itself."""
    if key_id == principal.key_id:
        detail = "a key cannot revoke itself: use another admin key"
        raise Problem(ProblemType.CONFLICT, detail)
    async with services.transaction() as connection:
        if await keys.revoke(connection, principal.tenant_id, key_id) is None:
            raise _not_found(key_id)
    services.authenticator.forget(key_id)


def _view(key: Key) -> KeyView:
    return KeyView(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        role=_ROLE_NAMES[key.role],
        tenant=key.tenant,
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        revoked_at=key.revoked_at,
    )


_ROLE_NAMES: dict[Role, RoleName] = {
    Role.READER: "reader",
    Role.SUBMITTER: "submitter",
    Role.OPERATOR: "operator",
    Role.ADMIN: "admin",
}


def _not_found(key_id: UUID) -> Problem:
    return Problem(ProblemType.NOT_FOUND, f"no key {key_id}")
