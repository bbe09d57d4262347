"""/v1/egress and /v1/tenants/{tenant}/egress: why a URL may be reached or not, and what an admin of
the installation lets one tenant reach.
"""

from datetime import datetime
from typing import Annotated

from fastapi import Path, Query, Response, status
from pydantic import ConfigDict, Field

from api.auth import Admin, InstallationAdmin
from api.deps import WithAudit, WithServices
from api.errors import Problem, ProblemType, invalid
from api.job_requests import RequestModel
from api.openapi import problems
from api.routing import router as make_router
from api.views import Page, View
from jobs import tenant_egress
from jobs.kinds import Text
from jobs.model import DEFAULT_TENANT, TenantId
from jobs.tenant_egress import Entry, EntryRefused
from runtime.egress_explain import Explanation, explain
from runtime.postgres import Connection

router = make_router("egress")

TenantName = Annotated[
    str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="The tenant's name.")
]
EntryText = Annotated[Text, Field(min_length=1, max_length=255)]


class EntryRequest(RequestModel):
    """What the tenant may reach although private: a network, a host, `*.domain` or `host:port`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"entry": "10.20.0.0/16", "note": "the wiki's network"}]}
    )

    entry: EntryText
    note: Annotated[Text, Field(max_length=500)] = ""


class EntryView(View):
    """An entry of a tenant's allow-list."""

    model_config = ConfigDict(from_attributes=True)

    entry: str
    note: str
    created_at: datetime


class CheckRequest(RequestModel):
    """A URL to judge as the guard would; nothing is fetched."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"url": "http://wiki.internal/"}]})

    url: Annotated[Text, Field(max_length=2048)]
    tenant: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")] | None = None


class StepView(View):
    """One thing that the guard looked at."""

    step: str
    detail: str


class CheckView(View):
    """The verdict, how it came about, and the entry that would permit what was refused."""

    allowed: bool
    rule: str | None
    entry: str | None
    detail: str
    steps: list[StepView]


@router.post("/egress/check", responses=problems(ProblemType.FORBIDDEN, ProblemType.NOT_FOUND))
async def check_url(services: WithServices, principal: Admin, check: CheckRequest) -> CheckView:
    """Judge a URL step by step, as the guard of crawls and webhooks would from here.

    Where a name leads is told to admins of the installation alone.
    """
    async with services.connection() as connection:
        tenant_id = principal.tenant_id
        if check.tenant is not None and check.tenant != principal.tenant:
            if principal.tenant_id != DEFAULT_TENANT:
                detail = "only admins of the tenant 'default' judge URLs for other tenants"
                raise Problem(ProblemType.FORBIDDEN, detail)
            tenant_id = await _tenant(connection, check.tenant)
        entries = await tenant_egress.entries_of(connection, tenant_id)
    told = await explain(services.egress.installation.plus(entries), check.url)
    return _check_view(told, tells_addresses=principal.tenant_id == DEFAULT_TENANT)


@router.get("/tenants/{tenant}/egress", responses=problems(ProblemType.NOT_FOUND))
async def list_entries(
    services: WithServices, principal: InstallationAdmin, tenant: TenantName
) -> Page[EntryView]:
    """What the tenant may reach beside XNAI_EGRESS_ALLOW; a hundred entries at most."""
    del principal
    async with services.connection() as connection:
        tenant_id = await _tenant(connection, tenant)
        found = await tenant_egress.list_entries(connection, tenant_id)
    return Page[EntryView](data=[_entry_view(entry) for entry in found])


@router.post(
    "/tenants/{tenant}/egress",
    status_code=status.HTTP_201_CREATED,
    responses=problems(ProblemType.NOT_FOUND),
)
async def allow_entry(
    services: WithServices,
    principal: InstallationAdmin,
    audit: WithAudit,
    tenant: TenantName,
    body: EntryRequest,
) -> EntryView:
    """Let a tenant reach more. Idempotent; it holds for what begins from now on."""
    del principal
    async with services.transaction() as connection:
        tenant_id = await _tenant(connection, tenant)
        try:
            made = await tenant_egress.allow(connection, tenant_id, body.entry, body.note)
        except EntryRefused as error:
            raise invalid("/entry", str(error)) from None
        await audit.record(connection, "egress.allowed", tenant, entry=made.entry, note=made.note)
    await services.egress.refresh()
    return _entry_view(made)


@router.delete(
    "/tenants/{tenant}/egress",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=problems(ProblemType.NOT_FOUND),
)
async def remove_entry(
    services: WithServices,
    principal: InstallationAdmin,
    audit: WithAudit,
    tenant: TenantName,
    entry: Annotated[str, Query(min_length=1, max_length=255, description="As it was allowed.")],
) -> None:
    """Take an entry away; what is under way keeps it."""
    del principal
    async with services.transaction() as connection:
        tenant_id = await _tenant(connection, tenant)
        if "\x00" in entry or not await tenant_egress.remove(connection, tenant_id, entry):
            raise Problem(ProblemType.NOT_FOUND, f"{tenant} has no entry {entry!r}")
        await audit.record(connection, "egress.removed", tenant, entry=entry)
    await services.egress.refresh()


async def _tenant(connection: Connection, name: str) -> TenantId:
    found = await tenant_egress.find_tenant(connection, name)
    if found is None:
        raise Problem(ProblemType.NOT_FOUND, f"no tenant {name!r}")
    return found


def _entry_view(entry: Entry) -> EntryView:
    return EntryView.model_validate(entry)


def _check_view(told: Explanation, *, tells_addresses: bool) -> CheckView:
    shown = [step for step in told.steps if tells_addresses or step.address is None]
    denied = told.denied
    detail = "may be reached" if told.is_allowed else told.steps[-1].detail if told.steps else ""
    return CheckView(
        allowed=told.is_allowed,
        rule=None if denied is None else denied.rule,
        entry=None if denied is None else denied.entry,
        detail=detail if denied is None else str(denied),
        steps=[StepView(step=step.name, detail=step.detail) for step in shown],
    )
