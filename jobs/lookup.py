"""Reads jobs. Each answer comes from one snapshot, so a job that moves is neither missed nor seen twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from jobs.model import Attempt, Job, TenantId
from jobs.states import JobState
from runtime.postgres import Connection


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What a list holds; None: any."""

    kind: str | None = None
    state: JobState | None = None
    batch_id: UUID | None = None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first, and the cursor of the next page (None: there is none)."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


async def get(connection: Connection, tenant_id: TenantId, job_id: UUID) -> Job:
    """Read one job; raises JobNotFound."""
    raise NotImplementedError


async def get_many(connection: Connection, tenant_id: TenantId, ids: Sequence[UUID]) -> list[Job]:
    """Read those of the jobs that exist, in the order given."""
    raise NotImplementedError


def version(job: Job) -> str:
    """A short text that differs whenever anything of the job that a reader sees does (for an ETag)."""
    raise NotImplementedError


async def list_jobs(
    connection: Connection,
    tenant_id: TenantId,
    job_filter: JobFilter,
    *,
    cursor: str | None = None,
    limit: int = 100,
) -> JobPage:
    """One page of jobs, newest first. The cursor is stable: pages neither repeat nor skip a job.

    Raises ValueError for a cursor that no page gave.
    """
    raise NotImplementedError


async def attempts(connection: Connection, tenant_id: TenantId, job_id: UUID) -> list[Attempt]:
    """Every attempt of a job, oldest first, the running one included; raises JobNotFound."""
    raise NotImplementedError
