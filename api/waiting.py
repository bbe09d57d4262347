"""`Prefer: wait`: holds an answer back until a job has settled or changed, without holding a
connection.
"""

import time
from uuid import UUID
from zlib import crc32

import anyio

from api.deps import Services
from jobs import lookup
from jobs.live import Progress
from jobs.model import Job, TenantId

# Progress is a courtesy: a Redis that hangs must not hold the answer back.
PROGRESS_TIMEOUT_S = 0.25


async def read(
    services: Services, tenant_id: TenantId, job_id: UUID
) -> tuple[Job, Progress | None]:
    """The job and how far it is. Raises JobNotFound."""
    async with services.connection() as connection:
        job = await lookup.get(connection, tenant_id, job_id)
    if job.state.is_terminal or job.started_at is None:
        return job, None
    with anyio.move_on_after(PROGRESS_TIMEOUT_S):
        return job, (await services.live.progress_of([job_id])).get(job_id)
    return job, None


def etag(job: Job, progress: Progress | None) -> str:
    """Differs whenever anything in the answer does."""
    if progress is None:
        return f'"{lookup.version(job)}"'
    seen = crc32(repr((progress.done, progress.total, progress.message)).encode())
    return f'"{lookup.version(job)}-{seen:x}"'


async def until_settled(
    services: Services, tenant_id: TenantId, job_id: UUID, wait_s: float
) -> tuple[Job, Progress | None]:
    """The job once it has settled, or as it is after `wait_s`."""
    deadline = time.monotonic() + wait_s
    with services.hub.watch(tenant_id, job_id=job_id) as watcher:
        while True:
            found = await read(services, tenant_id, job_id)
            left_s = deadline - time.monotonic()
            if found[0].settled or left_s <= 0 or services.hub.is_closing:
                return found
            await watcher.wait(min(left_s, services.hub.poll_s))


async def until_changed(
    services: Services, tenant_id: TenantId, job_id: UUID, *, seen: str | None, wait_s: float
) -> tuple[Job, Progress | None]:
    """The job once its ETag differs from `seen` (None: from what it is now), or after `wait_s`.

    A settled job is answered at once: only a retry could change it.
    """
    deadline = time.monotonic() + wait_s
    with services.hub.watch(tenant_id, job_id=job_id) as watcher:
        while True:
            job, progress = await read(services, tenant_id, job_id)
            now = etag(job, progress)
            seen = now if seen is None else seen
            left_s = deadline - time.monotonic()
            if job.settled or now != seen or left_s <= 0 or services.hub.is_closing:
                return job, progress
            await watcher.wait(min(left_s, services.hub.poll_s))
