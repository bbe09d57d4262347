"""Cancels jobs and what they created: at once while they wait, by their slot while they run."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from jobs.model import TenantId
from jobs.results import CancelResult
from runtime.postgres import Connection


async def cancel(
    connection: Connection, tenant_id: TenantId, ids: Sequence[UUID], *, now: datetime | None = None
) -> CancelResult:
    """Cancel jobs and their live descendants. Idempotent; finished work is kept."""
    raise NotImplementedError
