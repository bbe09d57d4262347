"""Collects what a transaction changes in batches' counts, to be written last and once.

Each writer has a row of its own a batch (a slot its id, everybody else 0), so that slots never
queue up behind one counter; readers sum them.
"""

from collections import Counter, defaultdict
from uuid import UUID

from jobs.model import SlotId
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

NO_SLOT = SlotId(0)
_STATES = ("total", "scheduled", "succeeded", "failed", "cancelled")
_COLUMNS = (*_STATES, *(f"follow_{state}" for state in _STATES))


class BatchDeltas:
    """Deltas by batch and column; readers derive `queued` and `running` themselves."""

    def __init__(self) -> None:
        self._by_batch: defaultdict[UUID, Counter[str]] = defaultdict(Counter)

    def add(self, batch_id: UUID | None, state: str, by: int = 1, *, follow_up: bool) -> None:
        """Count jobs of a batch into (or out of) a state; jobs without a batch are not counted."""
        if batch_id is not None and state in _STATES:
            self._by_batch[batch_id][f"follow_{state}" if follow_up else state] += by

    @property
    def batches(self) -> tuple[UUID, ...]:
        """The batches touched, in the order in which their rows are locked."""
        return tuple(sorted(self._by_batch))

    async def write(self, connection: Connection, writer: SlotId) -> None:
        """Add the deltas to the writer's rows, in the caller's transaction."""
        changed = [batch_id for batch_id in self.batches if any(self._by_batch[batch_id].values())]
        if not changed:
            return
        columns = [
            [self._by_batch[batch_id][column] for batch_id in changed] for column in _COLUMNS
        ]
        await connection.execute(QUERIES["add_batch_counts"], writer, changed, *columns)
