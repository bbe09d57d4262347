"""Accepts jobs: set-based, all or nothing. Knows nothing of HTTP and announces nothing."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from jobs.kinds import KindRegistry
from jobs.model import Accepted, ClaimedJob, NewJob, TenantId
from runtime.postgres import Connection

DEFAULT_AGEING_S = 60.0


async def enqueue(
    connection: Connection,
    tenant_id: TenantId,
    jobs: Sequence[NewJob],
    *,
    kinds: KindRegistry,
    batch_id: UUID | None = None,
    now: datetime | None = None,
    ageing_s: float = DEFAULT_AGEING_S,
) -> list[Accepted]:
    """Accept all jobs or none, in the caller's transaction; answers in the order given.

    A job whose `unique` key is taken answers with the holder of the key (`deduplicated`). Raises
    JobsRefused, which names every invalid job by its position. Announce by pool after the commit.
    """
    raise NotImplementedError


async def enqueue_follow_ups(
    connection: Connection,
    parent: ClaimedJob,
    jobs: Sequence[NewJob],
    *,
    kinds: KindRegistry,
    now: datetime | None = None,
    ageing_s: float = DEFAULT_AGEING_S,
) -> list[Accepted]:
    """Accept jobs that `parent` creates, in a transaction that has already asserted its token.

    They inherit tenant and batch, and keep every ancestor unsettled until they end.
    """
    raise NotImplementedError
