"""Ledgers that are broken as queues are broken: one statement or one function of ours is another.

Each comes with the drive that shows it and with what the shared checker must say of it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pytest
from asyncpg.transaction import Transaction

from jobs import uniqueness
from jobs.intake import Entry
from jobs.model import NewJob, TenantId
from runtime.postgres import Connection
from runtime.sql import Queries, load_queries
from tests.broken import drives
from tests.broken.stage import Stage

type Change = tuple[str, str]
type Drive = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Variant:
    """What is changed, how it is driven, and which promises the checker must see broken."""

    drive: Drive
    breaks: frozenset[str]
    sql: Mapping[str, Change] = field(default_factory=dict)
    slots_sql: Mapping[str, Change] = field(default_factory=dict)
    functions: Sequence[tuple[object, str, object]] = ()

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        """Break the ledger until the test is over."""
        _alter(patch, load_queries("jobs"), self.sql)
        _alter(patch, load_queries("jobs", "slots"), self.slots_sql)
        for owner, name, broken in self.functions:
            patch.setattr(owner, name, broken)


def _alter(patch: pytest.MonkeyPatch, queries: Queries, changes: Mapping[str, Change]) -> None:
    statements = dict(queries)
    for name, (ours, broken) in changes.items():
        assert statements[name].count(ours) == 1, (
            f"{name} no longer says {ours!r}: mend the variant"
        )
        statements[name] = statements[name].replace(ours, broken)
    patch.setattr(queries, "_by_name", statements)


async def _answer_then_commit(
    self: Stage,
    connection: Connection,
    job: NewJob,
    commit: Callable[[Transaction], Awaitable[None]],
) -> None:
    transaction = connection.transaction()
    await transaction.start()
    self.answer(await self.enqueue(connection, job))
    await commit(transaction)


async def _look_then_write(
    connection: Connection, tenant_id: TenantId, first: dict[str, Entry], now: datetime | None
) -> None:
    """A key that nobody held a moment ago is free."""
    queries = load_queries("jobs")
    rows = await connection.fetch(queries["unique_holders"], tenant_id, list(first))
    for row in rows:
        first[row["key"]].duplicate_of = row["job_id"]
    free = [entry for entry in first.values() if entry.duplicate_of is None]
    uniques = [entry.job.unique for entry in free if entry.job.unique is not None]
    await connection.execute(
        queries["take_unique_keys"],
        tenant_id,
        [unique.key for unique in uniques],
        [entry.id for entry in free],
        [unique.until for unique in uniques],
        [unique.for_s for unique in uniques],
        now,
    )


VARIANTS: Mapping[str, Variant] = {
    "no fence around the end": Variant(
        drives.a_zombie_ends_its_job,
        frozenset({"effect-of-a-loser"}),
        sql={
            "finish_held": (
                "job_id = ANY($3::uuid[]) AND token = ANY($4::bigint[])",
                "job_id = ANY($3::uuid[]) AND $4::bigint[] IS NOT NULL",
            )
        },
    ),
    "no fence around a write": Variant(
        drives.a_zombie_writes,
        frozenset({"effect-twice", "effect-of-a-loser"}),
        sql={"assert_held": ("token = $2", "$2::bigint IS NOT NULL")},
    ),
    "answered before the commit": Variant(
        drives.postgres_dies_at_the_commit,
        frozenset({"lost-job"}),
        functions=[(Stage, "accept", _answer_then_commit)],
    ),
    "acknowledged before it is recorded": Variant(
        drives.a_slot_dies_with_its_jobs,
        frozenset({"misplaced", "attempt-unknown"}),
        sql={
            "claim": (
                "batch_id, parent_id IS NOT NULL FROM job\n",
                "batch_id, parent_id IS NOT NULL FROM job WHERE false\n",
            )
        },
    ),
    "rescue by idle time": Variant(
        drives.a_long_job_is_swept_over,
        frozenset({"ran-twice-at-once"}),
        slots_sql={
            "ended_holding": ("s.ended_at <=", "s.started_at <="),
            "slot_end": (
                "SELECT end_reason FROM slots WHERE id = $1 AND ended_at IS NOT NULL",
                "SELECT 'idle for long' FROM slots WHERE id = $1",
            ),
        },
    ),
    "limits looked at before they are taken": Variant(
        drives.two_submits_want_one_permit,
        frozenset({"limit-exceeded"}),
        sql={"lock_limits": ("FOR NO KEY UPDATE", "")},
    ),
    "unique keys looked at before they are taken": Variant(
        drives.two_submits_want_one_unique_key,
        frozenset({"unique-twice"}),
        functions=[(uniqueness, "_take", _look_then_write)],
    ),
}
