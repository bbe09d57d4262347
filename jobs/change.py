"""Changes a live job's priority, time and tags."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from jobs.enqueue import DEFAULT_AGEING_S
from jobs.model import TenantId
from jobs.results import Ready
from runtime.postgres import Connection


async def change(
    connection: Connection,
    tenant_id: TenantId,
    job_id: UUID,
    *,
    priority: int | None = None,
    run_at: datetime | None = None,
    tags: Sequence[str] | None = None,
    now: datetime | None = None,
    ageing_s: float = DEFAULT_AGEING_S,
) -> Ready:
    """Change what is given (None: leave); answers what became claimable by it.

    Raises JobNotFound, and StateConflict for a terminal job or for the time of a running one.
    """
    raise NotImplementedError
