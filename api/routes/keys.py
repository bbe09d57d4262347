"""/v1/keys: admins make, list, rotate and revoke API keys."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Body, Path, Query, Response, status
from pydantic import ConfigDict, Field

from api import keys, paging
from api.auth import Admin, Principal
from api.deps import LIST_DEFAULT, Cursor, Limit, WithAudit, WithServices
from api.errors import Problem, ProblemType
from api.job_requests import Moment, RequestModel
from api.keys import ROTATION_OVERLAP_S, Key, NewKey, Role
from api.openapi import problems
from api.quotas import TENANT_PATTERN
from api.routing import router as make_router
from api.views import Page, View
from jobs.kinds import Text
from jobs.model import TenantId
from runtime.postgres import Connection

router = make_router("keys")

OVERLAP_S_MAX = 30 * 86_400.0

type RoleName = Literal["reader", "submitter", "operator", "admin"]
KeyId = Annotated[UUID, Path(description="The key's id.")]
OfTenant = Annotated[
    str | None,
    Query(
        pattern=TENANT_PATTERN,
        description="Another tenant, for admins of the installation (tenant `default`).",
    ),
]


class KeyRequest(RequestModel):
    """A key to make. Only admins of the tenant `default` may name another tenant, which is made if
    need be.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "nightly import", "role": "submitter"}]}
    )

    name: Annotated[Text, Field(min_length=1, max_length=200)]
    role: RoleName = "submitter"
    tenant: Annotated[str, Field(pattern=TENANT_PATTERN)] | None = None
    expires_at: Moment | None = None


class RotationRequest(RequestModel):
    """How long the secret of before holds on; 0 ends it at once, as when it has leaked."""

    overlap_s: Annotated[float, Field(ge=0, le=OVERLAP_S_MAX)] = ROTATION_OVERLAP_S


class KeyView(View):
    """A key without its secret. Until `previous_until` the secret of before holds, too."""

    id: UUID
    name: str
    prefix: str
    role: RoleName
    tenant: str
    rotations: int
    previous_until: datetime | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class CreatedKeyView(KeyView):
    """A key with a new secret. `key` is shown this once and kept nowhere."""

    key: str


@router.post(
    "/keys", status_code=status.HTTP_201_CREATED, responses=problems(ProblemType.FORBIDDEN)
)
async def create_key(
    services: WithServices, principal: Admin, audit: WithAudit, key: KeyRequest
) -> CreatedKeyView:
    """Make a key; its text is shown once."""
    async with services.transaction() as connection:
        if _is_foreign(principal, key.tenant):
            tenant_id = await keys.tenant_of_name(connection, str(key.tenant))
        else:
            tenant_id = principal.tenant_id
        new = NewKey(key.name, Role.parse(key.role), tenant_id, key.expires_at)
        key_id, text = await keys.create_key(connection, new)
        made = await _found(connection, tenant_id, key_id)
        await audit.record(
            connection, "key.created", key_id, name=key.name, role=key.role, tenant=made.tenant
        )
    return CreatedKeyView(**_view(made).model_dump(), key=text)


@router.get("/keys", responses=problems(ProblemType.NOT_FOUND))
async def list_keys(
    services: WithServices,
    principal: Admin,
    tenant: OfTenant = None,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[KeyView]:
    """The tenant's keys, revoked ones included."""
    after = paging.decode_uuid("keys", cursor)
    async with services.connection() as connection:
        tenant_id = await _tenant(connection, principal, tenant)
        found = await keys.list_keys(connection, tenant_id, after, limit)
    return Page[KeyView](
        data=[_view(key) for key in found],
        next_cursor=paging.next_cursor("keys", found, limit, lambda key: key.id),
    )


@router.post(
    "/keys/{key_id}/rotate", responses=problems(ProblemType.NOT_FOUND, ProblemType.CONFLICT)
)
async def rotate_key(
    services: WithServices,
    principal: Admin,
    audit: WithAudit,
    key_id: KeyId,
    rotation: Annotated[RotationRequest | None, Body()] = None,
    tenant: OfTenant = None,
) -> CreatedKeyView:
    """Give a key a new secret, shown once; the old one holds for a day, or for `overlap_s`. The one
    before that ends.
    """
    overlap_s = ROTATION_OVERLAP_S if rotation is None else rotation.overlap_s
    async with services.transaction() as connection:
        tenant_id = await _tenant(connection, principal, tenant)
        text = await keys.rotate(connection, tenant_id, key_id, overlap_s=overlap_s)
        rotated = await _found(connection, tenant_id, key_id)
        if text is None:
            detail = "the key was revoked or has expired: make another"
            raise Problem(ProblemType.CONFLICT, detail)
        await audit.record(
            connection,
            "key.rotated",
            key_id,
            name=rotated.name,
            tenant=rotated.tenant,
            overlap_s=overlap_s,
        )
    await services.authenticator.forget(key_id)
    return CreatedKeyView(**_view(rotated).model_dump(), key=text)


@router.delete(
    "/keys/{key_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=problems(ProblemType.NOT_FOUND, ProblemType.CONFLICT),
)
async def revoke_key(
    services: WithServices,
    principal: Admin,
    audit: WithAudit,
    key_id: KeyId,
    tenant: OfTenant = None,
) -> None:
    """End a key for good, at once here and within seconds in every other API process. Idempotent;
    the key that asks cannot end itself.
    """
    if key_id == principal.key_id:
        detail = "a key cannot revoke itself: use another admin key"
        raise Problem(ProblemType.CONFLICT, detail)
    async with services.transaction() as connection:
        tenant_id = await _tenant(connection, principal, tenant)
        if await keys.revoke(connection, tenant_id, key_id):
            ended = await _found(connection, tenant_id, key_id)
            await audit.record(
                connection, "key.revoked", key_id, name=ended.name, tenant=ended.tenant
            )
        else:
            await _found(connection, tenant_id, key_id)
    await services.authenticator.forget(key_id)


def _is_foreign(principal: Principal, tenant: str | None) -> bool:
    """Whether another tenant than the caller's is meant; raises Problem 403 if it may not be."""
    if tenant is None or tenant == principal.tenant:
        return False
    if not principal.is_of_installation:
        detail = "only admins of the tenant 'default' look after keys of other tenants"
        raise Problem(ProblemType.FORBIDDEN, detail)
    return True


async def _tenant(connection: Connection, principal: Principal, tenant: str | None) -> TenantId:
    if not _is_foreign(principal, tenant):
        return principal.tenant_id
    tenant_id = await keys.find_tenant(connection, str(tenant))
    if tenant_id is None:
        raise Problem(ProblemType.NOT_FOUND, f"no tenant {tenant!r}")
    return tenant_id


async def _found(connection: Connection, tenant_id: TenantId, key_id: UUID) -> Key:
    key = await keys.find_by_id(connection, tenant_id, key_id)
    if key is None:
        raise Problem(ProblemType.NOT_FOUND, f"no key {key_id}")
    return key


def _view(key: Key) -> KeyView:
    return KeyView(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        role=_ROLE_NAMES[key.role],
        tenant=key.tenant,
        rotations=key.rotations,
        previous_until=key.previous_until,
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
