"""Group commit: single submissions that wait at the same time share one transaction, without a
timer.

Whatever has gathered while the last commit was under way is committed next. On an error each is
tried alone, so that one bad job fails alone.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field

import anyio

from api.availability import Availability
from api.translations import POSTGRES_AWAY
from jobs import ledger, lookup
from jobs.announcer import Announcer
from jobs.enqueue import ready_of
from jobs.kinds import KindRegistry
from jobs.model import Accepted, Job, NewJob, TenantId
from runtime.postgres import Connection, Pool

GROUP_MAX = 500
ACQUIRE_TIMEOUT_S = 4.0


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job as it was accepted, and as a reader sees it in the same snapshot."""

    accepted: Accepted
    job: Job


@dataclass(eq=False, slots=True)
class _Waiting:
    tenant_id: TenantId
    job: NewJob
    done: anyio.Event = field(default_factory=anyio.Event)
    submitted: Submitted | None = None
    error: Exception | None = None

    def end(self, outcome: Submitted | Exception) -> None:
        if isinstance(outcome, Exception):
            self.error = outcome
        else:
            self.submitted = outcome
        self.done.set()


class Submissions:
    """The queue of single submissions, and the one loop that commits them."""

    def __init__(
        self,
        postgres: Pool,
        kinds: KindRegistry,
        announcer: Announcer,
        availability: Availability,
        *,
        ageing_s: float,
    ) -> None:
        self._postgres = postgres
        self._kinds = kinds
        self._announcer = announcer
        self._availability = availability
        self._ageing_s = ageing_s
        self._waiting: deque[_Waiting] = deque()
        self._wake = anyio.Event()

    async def submit(self, tenant_id: TenantId, job: NewJob) -> Submitted:
        """Return once the job is committed; raises what the ledger or Postgres raised for it."""
        request = _Waiting(tenant_id, job)
        self._waiting.append(request)
        self._wake.set()
        await request.done.wait()
        if request.submitted is None:
            raise request.error or RuntimeError("a submission ended without an outcome")
        return request.submitted

    async def run(self) -> None:
        """Commit for ever; owned by the application's task group."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._waiting:
                count = min(GROUP_MAX, len(self._waiting))
                await self._commit([self._waiting.popleft() for _ in range(count)])

    async def _commit(self, group: list[_Waiting]) -> None:
        try:
            with self._availability.bounded():
                submitted = await self._enqueue_all(group)
        except POSTGRES_AWAY as error:
            for request in group:
                request.end(error)
        # A fault of any kind must end its own requests, never this loop that all of them need.
        except Exception as error:  # noqa: BLE001
            await self._commit_one_by_one(group, error)
        else:
            self._announcer.announce(ready_of(s.accepted for s in submitted))
            for request, outcome in zip(group, submitted, strict=True):
                request.end(outcome)

    async def _commit_one_by_one(self, group: list[_Waiting], error: Exception) -> None:
        if len(group) == 1:
            group[0].end(error)
            return
        for request in group:
            await self._commit([request])

    async def _enqueue_all(self, group: list[_Waiting]) -> list[Submitted]:
        async with (
            self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection,
            connection.transaction(),
        ):
            return await self._enqueue(connection, group)

    async def _enqueue(self, connection: Connection, group: list[_Waiting]) -> list[Submitted]:
        by_tenant: dict[TenantId, list[int]] = defaultdict(list)
        for position, request in enumerate(group):
            by_tenant[request.tenant_id].append(position)
        found: dict[int, Submitted] = {}
        for tenant_id, positions in by_tenant.items():
            jobs = [group[position].job for position in positions]
            submitted = await enqueue(
                connection, tenant_id, jobs, kinds=self._kinds, ageing_s=self._ageing_s
            )
            found.update(zip(positions, submitted, strict=True))
        return [found[position] for position in range(len(group))]


async def enqueue(
    connection: Connection,
    tenant_id: TenantId,
    jobs: list[NewJob],
    *,
    kinds: KindRegistry,
    ageing_s: float,
) -> list[Submitted]:
    """Accept jobs in the caller's transaction and read them back in it."""
    accepted = await ledger.enqueue(connection, tenant_id, jobs, kinds=kinds, ageing_s=ageing_s)
    ids = list(dict.fromkeys(a.id for a in accepted))
    by_id = {job.id: job for job in await lookup.get_many(connection, tenant_id, ids)}
    return [Submitted(a, by_id[a.id]) for a in accepted]
