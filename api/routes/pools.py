"""/v1/pools: how deep and how fast each pool is; operators pause and resume them."""

from datetime import datetime
from typing import Annotated

from fastapi import Body, Path
from pydantic import ConfigDict, Field

from api import paging
from api.auth import InstallationOperator, Operator, Principal
from api.deps import LIST_DEFAULT, Cursor, Limit, Services, WithAudit, WithServices
from api.errors import Problem, ProblemType
from api.job_requests import RequestModel
from api.openapi import problems
from api.routing import router as make_router
from api.views import Page, View
from jobs import pools
from jobs.kinds import Text

router = make_router("pools")

PoolName = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,62}$", examples=["embed"])]


class PauseRequest(RequestModel):
    """Why a pool or a schedule stands still."""

    reason: Annotated[Text, Field(max_length=500)] | None = None


class PoolView(View):
    """A pool's queue. `oldest_s` is the wait of its first job, `drained_per_s` was measured
    lately.
    """

    model_config = ConfigDict(from_attributes=True)

    name: str
    paused_at: datetime | None
    paused_by: str | None
    paused_reason: str | None
    queued: int
    running: int
    slots: int
    oldest_s: float | None
    drained_per_s: float


@router.get("/pools")
async def list_pools(
    services: WithServices, principal: Operator, cursor: Cursor = None, limit: Limit = LIST_DEFAULT
) -> Page[PoolView]:
    """Every pool that a kind runs in, was paused, or holds jobs. Pools are the installation's: a
    key of another tenant than `default` sees its own jobs in them, up to 10,000, and neither slots
    nor rates.
    """
    offset = paging.decode_offset(cursor)
    shown, following = paging.part(await _pools(services, principal), offset, limit)
    return Page[PoolView](
        data=[PoolView.model_validate(pool) for pool in shown], next_cursor=following
    )


@router.post("/pools/{pool}/pause", responses=problems(ProblemType.NOT_FOUND))
async def pause_pool(
    services: WithServices,
    principal: InstallationOperator,
    audit: WithAudit,
    pool: PoolName,
    pause: Annotated[PauseRequest | None, Body()] = None,
) -> PoolView:
    """Let no slot claim from the pool; what runs goes on. Idempotent."""
    await _known(services, principal, pool)
    async with services.transaction() as connection:
        reason = None if pause is None else pause.reason
        await pools.pause(connection, pool, by=principal.name, reason=reason)
        await audit.record(connection, "pool.paused", pool, reason=reason)
    return await _known(services, principal, pool)


@router.post("/pools/{pool}/resume", responses=problems(ProblemType.NOT_FOUND))
async def resume_pool(
    services: WithServices, principal: InstallationOperator, audit: WithAudit, pool: PoolName
) -> PoolView:
    """Let slots claim from the pool again. Idempotent."""
    await _known(services, principal, pool)
    async with services.transaction() as connection:
        await pools.resume(connection, pool)
        await audit.record(connection, "pool.resumed", pool)
    services.announcer.wake(pool)
    return await _known(services, principal, pool)


async def _pools(services: Services, principal: Principal) -> list[pools.Pool]:
    names = services.kinds.pools
    async with services.connection() as connection:
        if principal.is_of_installation:
            return await pools.list_pools(connection, names, kinds=services.kinds)
        return await pools.list_tenants_pools(connection, principal.tenant_id, names)


async def _known(services: Services, principal: Principal, name: str) -> PoolView:
    for pool in await _pools(services, principal):
        if pool.name == name:
            return PoolView.model_validate(pool)
    raise Problem(ProblemType.NOT_FOUND, f"no pool {name!r}; see GET /v1/pools")
