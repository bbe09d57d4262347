"""Records how attempts ended, a batch at a time, with everything that follows from it."""

import random
from collections.abc import Sequence
from datetime import datetime

from jobs.kinds import KindRegistry
from jobs.model import SlotId
from jobs.outcomes import Backoff
from jobs.results import Ended, Recorded
from runtime.postgres import Connection

RESULT_BYTES_MAX = 1024 * 1024


async def record(
    connection: Connection,
    slot_id: SlotId,
    ended: Sequence[Ended],
    *,
    kinds: KindRegistry,
    rng: random.Random,
    now: datetime | None = None,
    backoff: Backoff | None = None,
) -> Recorded:
    """Record a batch of endings in one transaction: outcomes, follow-ups, events and callbacks owed.

    Call it outside of a transaction: it opens and commits its own, and when the batch fails it goes row
    by row, so that one bad row fails alone (`bad_result`). Inside one it uses a savepoint.
    """
    raise NotImplementedError
