"""/v1/quotas and /v1/tenants: what tenants may have, what they use; the installation's admins grant
it.
"""

from dataclasses import asdict
from typing import Annotated

from fastapi import Path
from pydantic import ConfigDict, Field

from api import paging, quotas
from api.auth import InstallationAdmin, Reader
from api.deps import LIST_DEFAULT, Cursor, Limit, Services, WithAudit, WithServices
from api.errors import Problem, ProblemType
from api.job_requests import RequestModel
from api.openapi import problems
from api.quotas import TENANT_PATTERN, Granted
from api.routing import router as make_router
from api.views import Page, View
from runtime.postgres import Connection

router = make_router("tenants")

TenantName = Annotated[str, Path(pattern=TENANT_PATTERN, description="The tenant's name.")]
Amount = Annotated[int, Field(ge=0, le=2**53)]


class QuotasPatch(RequestModel):
    """What changes: a number is granted, null is the default again, a field left out stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"live_jobs": 100_000}]})

    live_jobs: Amount | None = None
    documents: Amount | None = None
    stored_bytes: Amount | None = None
    schedules: Amount | None = None
    webhooks: Amount | None = None
    open_batches: Amount | None = None
    streams: Amount | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=2**53)] | None = None


class QuotasView(View):
    """What holds; null is as much as there is room for. Streams are those of one API process."""

    model_config = ConfigDict(from_attributes=True)

    live_jobs: int | None
    documents: int | None
    stored_bytes: int | None
    schedules: int | None
    webhooks: int | None
    open_batches: int | None
    streams: int | None
    requests_per_minute: int | None


class UsageView(View):
    """What the tenant has now; bytes as stored, compressed."""

    model_config = ConfigDict(from_attributes=True)

    live_jobs: int
    documents: int
    stored_bytes: int
    schedules: int
    webhooks: int
    open_batches: int


class TenantView(View):
    """A tenant, its quotas, and which of them are not the default."""

    tenant: str
    quotas: QuotasView
    changed: list[str]


class TenantUsageView(TenantView):
    """A tenant with what it uses of its quotas."""

    used: UsageView


@router.get("/quotas")
async def get_quotas(services: WithServices, principal: Reader) -> TenantUsageView:
    """What the tenant may have, and has."""
    async with services.connection() as connection:
        return await _with_usage(connection, await _found(connection, principal.tenant))


@router.get("/tenants")
async def list_tenants(
    services: WithServices,
    principal: InstallationAdmin,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[TenantView]:
    """Every tenant, by name. A tenant comes into being with its first key."""
    del principal
    after = paging.decode("tenants", cursor, str)
    async with services.connection() as connection:
        found = await quotas.list_tenants(connection, after, limit)
    return Page[TenantView](
        data=[_view(granted) for granted in found],
        next_cursor=paging.next_cursor("tenants", found, limit, lambda granted: granted.tenant),
    )


@router.get("/tenants/{tenant}/quotas", responses=problems(ProblemType.NOT_FOUND))
async def get_tenant_quotas(
    services: WithServices, principal: InstallationAdmin, tenant: TenantName
) -> TenantUsageView:
    """What a tenant may have, and has."""
    del principal
    return await _read(services, tenant)


@router.patch("/tenants/{tenant}/quotas", responses=problems(ProblemType.NOT_FOUND))
async def change_quotas(
    services: WithServices,
    principal: InstallationAdmin,
    audit: WithAudit,
    tenant: TenantName,
    patch: QuotasPatch,
) -> TenantUsageView:
    """Grant a tenant more or less. It holds in every API process within seconds; what a tenant has
    beyond it stays.
    """
    del principal
    sent = patch.model_dump(include=patch.model_fields_set)
    async with services.transaction() as connection:
        granted = await _found(connection, tenant)
        changed = {k: v for k, v in {**granted.changed, **sent}.items() if v is not None}
        await quotas.put(connection, granted.tenant_id, changed)
        await audit.record(connection, "quotas.changed", tenant, **sent)
    return await _read(services, tenant)


async def _read(services: Services, tenant: str) -> TenantUsageView:
    async with services.connection() as connection:
        return await _with_usage(connection, await _found(connection, tenant))


async def _found(connection: Connection, tenant: str) -> Granted:
    granted = await quotas.find(connection, tenant)
    if granted is None:
        raise Problem(ProblemType.NOT_FOUND, f"no tenant {tenant!r}")
    return granted


async def _with_usage(connection: Connection, granted: Granted) -> TenantUsageView:
    used = await quotas.usage(connection, granted.tenant_id)
    return TenantUsageView(
        **_view(granted).model_dump(), used=UsageView.model_validate(asdict(used))
    )


def _view(granted: Granted) -> TenantView:
    return TenantView(
        tenant=granted.tenant,
        quotas=QuotasView.model_validate(granted.quotas),
        changed=sorted(granted.changed),
    )
