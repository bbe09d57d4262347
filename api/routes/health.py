"""/healthz, /readyz, /metrics and the page at the root: what needs no key."""

import time
from typing import Literal

import anyio
from fastapi import APIRouter, Response
from redis.exceptions import RedisError

from api.deps import Services, WithServices
from api.errors import unavailable
from api.translations import POSTGRES_AWAY
from api.views import View
from corpus import search_servers
from runtime import metrics
from runtime.postgres import Connection
from runtime.sql import load_queries
from runtime.version import VERSION

router = APIRouter(tags=["health"], generate_unique_id_function=lambda route: route.name)

QUERIES = load_queries("api")
CHECK_TIMEOUT_S = 2.0
_LINKS = {
    "openapi": "/openapi.json",
    "jobs": "/v1/jobs",
    "health": "/healthz",
    "readiness": "/readyz",
    "metrics": "/metrics",
}


class HealthView(View):
    """The process answers."""

    status: Literal["ok"] = "ok"


class DependencyView(View):
    """One server that the API needs. `required`: without it the API is not ready."""

    status: Literal["ok", "down"]
    required: bool
    took_ms: float
    detail: str | None = None


class ReadinessView(View):
    """Whether requests can be answered, and what of the rest is away."""

    status: Literal["ok", "degraded", "down"]
    dependencies: dict[str, DependencyView]


class RootView(View):
    """Where to go from here."""

    name: str = "xnai"
    version: str = VERSION
    links: dict[str, str]


@router.get("/")
async def show_root() -> RootView:
    """Name, version and links."""
    return RootView(links=_LINKS)


@router.get("/healthz")
async def check_health() -> HealthView:
    """Liveness: the process answers; says nothing about its servers."""
    return HealthView()


@router.get(
    "/readyz",
    response_model=ReadinessView,
    responses={503: {"model": ReadinessView, "description": "Postgres does not answer."}},
)
async def check_readiness(services: WithServices) -> Response:
    """Readiness by dependency: Postgres is required; without Redis or a search process less
    works.
    """
    found: dict[str, DependencyView] = {}

    async def check(name: str) -> None:
        found[name] = await _check(services, name)

    async with anyio.create_task_group() as group:
        for name in ("postgres", "redis", "search"):
            group.start_soon(check, name)
    is_ready = all(one.status == "ok" for one in found.values() if one.required)
    is_whole = all(one.status == "ok" for one in found.values())
    view = ReadinessView(
        status="ok" if is_whole else "degraded" if is_ready else "down",
        dependencies=dict(sorted(found.items())),
    )
    headers = {} if is_ready else unavailable("").headers
    code = 200 if is_ready else unavailable("").type.status
    return Response(view.model_dump_json(), code, headers, media_type="application/json")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def render_metrics(services: WithServices) -> Response:
    """Prometheus text of the whole stack on this machine; while Postgres is silent, with the depths
    of before.
    """
    with anyio.move_on_after(CHECK_TIMEOUT_S):
        await services.backlog.refresh_if_stale()
    text = await anyio.to_thread.run_sync(metrics.render)
    return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})


async def _check(services: Services, name: str) -> DependencyView:
    began = time.monotonic()
    detail: str | None = None
    try:
        with anyio.fail_after(CHECK_TIMEOUT_S):
            detail = await _CHECKS[name](services)
    except (*POSTGRES_AWAY, RedisError) as error:
        detail = str(error) or f"no answer within {CHECK_TIMEOUT_S:g} s"
    return DependencyView(
        status="ok" if detail is None else "down",
        required=name == "postgres",
        took_ms=round((time.monotonic() - began) * 1000, 3),
        detail=detail,
    )


async def _check_postgres(services: Services) -> str | None:
    async with services.connection() as connection:
        return await _schema_problem(connection)


async def _schema_problem(connection: Connection) -> str | None:
    has_schema = await connection.fetchval(QUERIES["has_schema"])
    return None if has_schema else "the schema is missing: run `xnai migrate`"


async def _check_redis(services: Services) -> str | None:
    await services.redis.ping()
    return None


async def _check_search(services: Services) -> str | None:
    if services.settings.search_url is not None:
        return None
    node = search_servers.node_id(services.settings.data_dir)
    found = await search_servers.live(services.postgres, node)
    return None if found else "no search process runs: start `xnai search-server`"


_CHECKS = {"postgres": _check_postgres, "redis": _check_redis, "search": _check_search}
