"""Families: a job and all that it created. It is settled when all of them are terminal."""

from collections import Counter, defaultdict
from datetime import datetime
from uuid import UUID

from jobs.states import JobState
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

_COLUMNS = ("open", "succeeded", "failed", "cancelled", "ended", "reopened")


class Changes:
    """What one transaction changes in families, written in the order of their ids."""

    def __init__(self) -> None:
        self._by_id: defaultdict[UUID, Counter[str]] = defaultdict(Counter)

    def ended(self, job_id: UUID) -> None:
        """The head of the family is terminal."""
        self._by_id[job_id]["ended"] = 1

    def reopened(self, job_id: UUID) -> None:
        """The head of the family lives again."""
        self._by_id[job_id]["reopened"] = 1

    def descendant_ended(self, ancestor: UUID, state: JobState) -> None:
        """One of those that `ancestor` created is terminal."""
        self._by_id[ancestor].update({"open": -1, state.value: 1})

    def descendant_revived(self, ancestor: UUID, state: JobState) -> None:
        """One of them left its terminal state."""
        self._by_id[ancestor].update({"open": 1, state.value: -1})

    async def write(self, connection: Connection, now: datetime | None) -> list[UUID]:
        """Apply the changes; answers the families that settled by them."""
        if not self._by_id:
            return []
        ids = sorted(self._by_id)
        # Two statements: the lock order is by id, and the update must see what it waited for.
        await connection.execute(QUERIES["lock_families"], ids)
        columns = [[self._by_id[job_id][column] for job_id in ids] for column in _COLUMNS[:4]]
        flags = [[bool(self._by_id[job_id][column]) for job_id in ids] for column in _COLUMNS[4:]]
        rows = await connection.fetch(QUERIES["change_families"], now, ids, *columns, *flags)
        return [row["job_id"] for row in rows if row["is_settled"]]
