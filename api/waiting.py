"""`Prefer: wait`: holds an answer back until a job has settled, or until a job or a batch has
changed, without holding a connection to Postgres. A client that has gone ends its wait at once.
"""

from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Protocol

import anyio
from anyio import CancelScope
from fastapi import Request, Response, status
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from api.deps import Services
from api.looks import Looks
from api.sights import Place, SeenBatch, SeenJob
from jobs import batches, lookup
from jobs.errors import BatchNotFound, JobNotFound
from runtime.groups import single_error

STREAM = "wait"
UNCHANGED = {"description": "Unchanged."}


class Seen(Protocol):
    """A job or a batch at one moment."""

    @property
    def etag(self) -> str:
        """Differs whenever anything in the body does."""

    @property
    def body(self) -> bytes:
        """As JSON."""

    @property
    def is_final(self) -> bool:
        """Only a retry could change it."""


async def read_job(services: Services, place: Place) -> SeenJob:
    """The job as it is. Raises JobNotFound."""
    async with services.connection() as connection:
        job = await lookup.get(connection, place.tenant_id, place.id)
    return SeenJob(job, (await services.sights.progress_of([job])).get(job.id))


async def read_batch(services: Services, place: Place) -> SeenBatch:
    """The batch as it is. Raises BatchNotFound."""
    async with services.connection() as connection:
        return SeenBatch(await batches.get(connection, place.tenant_id, place.id))


async def until_settled(
    request: Request, services: Services, place: Place, wait_s: float
) -> SeenJob:
    """The job once it has settled, or as it is after `wait_s`. Raises JobNotFound."""
    waiting = _Wait(services, services.sights.jobs, place, lambda seen: seen.is_final)
    if (seen := await waiting.hold(request, wait_s)) is None:
        raise JobNotFound(place.id)
    return seen


async def until_job_changed(
    request: Request, services: Services, place: Place, *, known: Collection[str], wait_s: float
) -> SeenJob:
    """The job once its ETag is none of the known ones (none known: not what it is now), or after
    `wait_s`; a settled one at once: only a retry could change it. Raises JobNotFound.
    """
    waiting = _Wait(services, services.sights.jobs, place, _Change(known).is_seen)
    if (seen := await waiting.hold(request, wait_s)) is None:
        raise JobNotFound(place.id)
    return seen


async def until_batch_changed(
    request: Request, services: Services, place: Place, *, known: Collection[str], wait_s: float
) -> SeenBatch:
    """The same of a batch; a finished one at once. Raises BatchNotFound."""
    waiting = _Wait(services, services.sights.batches, place, _Change(known).is_seen)
    if (seen := await waiting.hold(request, wait_s)) is None:
        raise BatchNotFound(place.id)
    return seen


def answer(seen: Seen, known: Collection[str], wait_s: float | None) -> Response:
    """200 with the body, or 304 when the client holds it; `wait_s` when it was waited for."""
    headers = {"ETag": seen.etag, "Cache-Control": "private, no-cache"}
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    if seen.etag in known or "*" in known:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    return Response(seen.body, headers=headers, media_type="application/json")


class _Change:
    """Whether something differs from what a client holds, else from what it was at first."""

    def __init__(self, known: Collection[str]) -> None:
        self._known = set(known) - {"*"}

    def is_seen(self, seen: Seen) -> bool:
        if not self._known:
            self._known = {seen.etag}
        return seen.is_final or seen.etag not in self._known


class _Wait[V]:
    """One held answer."""

    def __init__(
        self,
        services: Services,
        looks: Looks[Place, V],
        place: Place,
        is_enough: Callable[[V], bool],
    ) -> None:
        self._services = services
        self._looks = looks
        self._place = place
        self._is_enough = is_enough

    async def hold(self, request: Request, wait_s: float) -> V | None:
        """Look until it is enough or the time is over; None when there is nothing to look at."""
        with self._services.places.taken(self._place.tenant_id, STREAM):
            return await _unless_gone(request.receive, partial(self._look, wait_s))

    async def _look(self, wait_s: float) -> V | None:
        deadline = anyio.current_time() + wait_s
        hub = self._services.hub
        with hub.watch(self._place.tenant_id, self._place.id) as watcher:
            while True:
                seen = await self._looks.see(self._place)
                left_s = deadline - anyio.current_time()
                if seen is None or self._is_enough(seen) or left_s <= 0 or hub.is_closing:
                    return seen
                # Not held while waiting: a payload may be large.
                del seen
                await watcher.wait(left_s)


async def _unless_gone[T](receive: Receive, wait: Callable[[], Awaitable[T]]) -> T:
    """What `wait` finds; raises ClientDisconnect as soon as there is nobody to tell it to."""
    found: list[T] = []
    with single_error():
        async with anyio.create_task_group() as group:
            group.start_soon(_until_gone, receive, group.cancel_scope)
            found.append(await wait())
            group.cancel_scope.cancel()
    if not found:
        raise ClientDisconnect
    return found[0]


async def _until_gone(receive: Receive, scope: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
