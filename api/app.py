"""Puts the API together: services, task group, middleware, routes. The composition root of one API
process.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

import anyio
from anyio.abc import TaskGroup
from fastapi import FastAPI

from api import openapi, translations
from api.auth import Authenticator
from api.availability import Availability, Bounded
from api.backlog import BacklogGuard
from api.deps import Services
from api.door import Authentication
from api.middleware import Hardening, LastWord, Measurement
from api.places import Places
from api.quotas import QuotaGuard
from api.rates import Rates
from api.routes import (
    audit,
    batches,
    collections,
    deliveries,
    documents,
    egress,
    events,
    health,
    jobs,
    keys,
    limits,
    operations,
    pools,
    results,
    schedules,
    search,
    tenants,
    webhooks,
    workers,
)
from api.sights import Sights
from api.submissions import Submissions
from api.tenant_policies import TenantPolicies
from api.turns import Turns
from api.watch import Hub
from corpus.search_client import SearchClient
from jobs.announcer import Announcer
from jobs.kinds import load_kinds
from jobs.live import LiveStream
from jobs.spool_room import SpoolRoom, folder_for
from runtime import redis as runtime_redis
from runtime.egress import EgressPolicy
from runtime.postgres import Pool, connect, database_url, open_pool
from runtime.settings import Settings
from runtime.version import VERSION

_RESOURCES = (
    jobs,
    batches,
    results,
    operations,
    events,
    search,
    documents,
    collections,
    schedules,
    webhooks,
    deliveries,
    pools,
    limits,
    workers,
    keys,
    tenants,
    egress,
    audit,
)


def create_app(settings: Settings) -> FastAPI:
    """The application; its lifespan opens and closes everything that it needs."""
    kinds = load_kinds(settings.kinds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _services(settings) as (services, owned):
            app.state.services = services
            yield
            services.hub.close()
            owned.cancel_scope.cancel()

    app = FastAPI(
        title="xnai",
        version=VERSION,
        summary="A durable job queue that crawls, embeds, searches and writes on your own machine.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    routers = [*(resource.router for resource in _RESOURCES), health.router]
    routes = [route for router in routers for route in router.routes]
    # Not include_router: an included route builds its handler anew for every request.
    app.router.routes.extend(routes)
    translations.install(app, routes)
    openapi.install(app, kinds)
    app.add_middleware(Authentication)
    app.add_middleware(Bounded)
    app.add_middleware(LastWord)
    app.add_middleware(Hardening)
    app.add_middleware(Measurement)
    return app


@asynccontextmanager
async def _services(settings: Settings) -> AsyncIterator[tuple[Services, TaskGroup]]:
    """Open what the process holds, and run its loops; close all of it in reverse."""
    kinds = load_kinds(settings.kinds)
    postgres = await open_pool(
        settings, role="api", size=settings.api_connections, generic_plans=True
    )
    redis = runtime_redis.connect(settings)
    live = LiveStream(redis)
    announcer = Announcer(redis, live)
    ping = partial(connect, database_url(settings), role="api watch")
    availability = Availability(ping, postgres)
    try:
        search = SearchClient(postgres, settings)
        async with aclosing(search), anyio.create_task_group() as owned:
            services = Services(
                settings=settings,
                kinds=kinds,
                postgres=postgres,
                redis=redis,
                live=live,
                hub=Hub(live),
                sights=Sights(postgres, live, availability),
                places=Places(settings.watchers_max),
                announcer=announcer,
                submissions=Submissions(
                    postgres, kinds, announcer, availability, ageing_s=settings.ageing_s
                ),
                availability=availability,
                backlog=BacklogGuard(postgres, kinds, backlog_max=settings.backlog_max),
                spools=SpoolRoom(folder_for(settings.data_dir)),
                turns=Turns(),
                authenticator=Authenticator(postgres),
                quotas=QuotaGuard(postgres, kinds),
                rates=Rates(postgres),
                search=search,
                egress=TenantPolicies(postgres, EgressPolicy(settings.egress_allow)),
                owned=owned,
            )
            loops = (
                *(services.submissions, announcer, services.hub, services.sights, availability),
                *(services.authenticator, services.egress),
            )
            for loop in loops:
                owned.start_soon(loop.run)
            yield services, owned
    finally:
        availability.close()
        await redis.aclose()
        await _close(postgres)


async def _close(postgres: Pool) -> None:
    """Close the pool; a server that hangs must not keep the process."""
    with anyio.move_on_after(5, shield=True) as scope:
        await postgres.close()
    if scope.cancelled_caught:
        postgres.terminate()
