"""Brings terminal jobs back to life with a new budget, their history kept."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from jobs.model import TenantId
from jobs.results import RetryResult
from runtime.postgres import Connection


async def retry(
    connection: Connection, tenant_id: TenantId, ids: Sequence[UUID], *, now: datetime | None = None
) -> RetryResult:
    """Queue terminal jobs again; live ones are left as they are, so that repeating it changes nothing.

    Attempt numbers keep growing. A finished batch runs again with `run` + 1.
    """
    raise NotImplementedError
