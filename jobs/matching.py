"""Which jobs a bulk operation is about: its filter, and the slices in which they are found."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from jobs.model import JsonObject, TenantId
from jobs.states import LIVE_STATES, JobState
from runtime.postgres import Connection
from runtime.sql import load_queries

OPERATIONS = load_queries("jobs", "operations")

SLICE_JOBS = 1000
# Spelled out in the queries as well.
SLICE_ROWS = 2000
COUNT_MAX = 10_000
SAMPLE_JOBS = 10
FIRST_ID = UUID(int=0)


class OperationAction(StrEnum):
    """What an operation does to each job."""

    RETRY = "retry"
    CANCEL = "cancel"
    DISCARD = "discard"

    @property
    def states(self) -> frozenset[JobState]:
        """The states in which a job can be named for it."""
        return _STATES[self]


_STATES = {
    OperationAction.RETRY: frozenset({JobState.FAILED, JobState.CANCELLED, JobState.SUCCEEDED}),
    OperationAction.CANCEL: LIVE_STATES,
    OperationAction.DISCARD: frozenset({JobState.FAILED}),
}


@dataclass(frozen=True, slots=True)
class OperationFilter:
    """Which jobs; every condition that is given must hold, `tags` all of them. No state: the live
    ones to cancel, the dead letters to retry or discard.
    """

    state: JobState | None = None
    kind: str | None = None
    pool: str | None = None
    batch_id: UUID | None = None
    tags: tuple[str, ...] = ()
    error_type: str | None = None
    schedule_id: UUID | None = None
    ids: tuple[UUID, ...] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    finished_after: datetime | None = None
    finished_before: datetime | None = None

    def as_json(self) -> JsonObject:
        """The stored and public form: the conditions that were given."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in given.items() if value not in (None, ())}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "OperationFilter":
        """What `as_json` gave."""
        return cls(**{name: _READ.get(name, str)(value) for name, value in stored.items()})

    def states_for(self, action: OperationAction) -> list[str]:
        """The states to look for."""
        if self.state is not None:
            return [self.state]
        return sorted(LIVE_STATES) if action is OperationAction.CANCEL else [JobState.FAILED]


_READ: Mapping[str, Any] = {  # readers of one value each, of as many types
    "state": JobState,
    "batch_id": UUID,
    "schedule_id": UUID,
    "tags": tuple,
    "ids": lambda ids: tuple(map(UUID, ids)),
    "created_after": datetime.fromisoformat,
    "created_before": datetime.fromisoformat,
    "finished_after": datetime.fromisoformat,
    "finished_before": datetime.fromisoformat,
}


def _plain(value: object) -> Any:  # noqa: ANN401 - a JSON value
    match value:
        case tuple():
            return [_plain(item) for item in value]
        case UUID():
            return str(value)
        case datetime():
            return value.isoformat()
        case _:
            return value


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for: jobs that lived at `alive_at`, or whose end `as_of` sees; None: any."""

    tenant_id: TenantId
    action: OperationAction
    filter: OperationFilter
    alive_at: datetime | None = None
    as_of: str | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the jobs in the order of their ids, and where the next slice begins."""

    ids: tuple[UUID, ...]
    after_id: UUID | None
    is_last: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """How many jobs match now (`at_least`: there may be more), and the first of them."""

    matched: int
    at_least: bool
    sample: tuple[UUID, ...]


async def find(
    connection: Connection,
    wanted: Wanted,
    after_id: UUID,
    *,
    jobs_max: int = SLICE_JOBS,
) -> Slice:
    """The jobs behind `after_id` that match, among the next SLICE_ROWS rows; within a
    transaction.
    """
    query, given = arguments(wanted, after_id, jobs_max)
    await connection.execute(OPERATIONS["weigh_sorting"], "off")
    (row,) = await connection.fetch(OPERATIONS[query], *given)
    await connection.execute(OPERATIONS["weigh_sorting"], "on")
    return Slice(tuple(row["ids"]), row["after_id"], row["is_last"])


def arguments(wanted: Wanted, after_id: UUID, jobs_max: int) -> tuple[str, tuple[object, ...]]:
    """The query of a slice, and what it is given."""
    chosen, is_live = wanted.filter, wanted.action is OperationAction.CANCEL
    common = (
        wanted.tenant_id,
        after_id,
        _way(wanted),
        jobs_max,
        wanted.alive_at if is_live else wanted.as_of,
        chosen.states_for(wanted.action),
        chosen.kind,
        chosen.pool,
        chosen.batch_id,
        chosen.tags,
        chosen.error_type,
        chosen.schedule_id,
        chosen.ids,
        chosen.created_after,
        chosen.created_before,
    )
    if is_live:
        return "live_slice", common
    return "finished_slice", (*common, chosen.finished_after, chosen.finished_before)


def _way(wanted: Wanted) -> str:
    """The index that leads to the jobs."""
    if wanted.filter.ids is not None:
        return "ids"
    if wanted.filter.batch_id is not None:
        return "batch"
    if wanted.filter.states_for(wanted.action) == [JobState.FAILED]:
        return "dead"
    return "all"


async def preview(
    connection: Connection, wanted: Wanted, *, count_max: int = COUNT_MAX, seconds_max: float = 1.0
) -> Preview:
    """Count the matches up to a bound, for so long; writes and locks nothing."""
    deadline = time.monotonic() + seconds_max
    found, after_id = 0, FIRST_ID
    sample: tuple[UUID, ...] = ()
    while True:
        async with connection.transaction():
            some = await find(connection, wanted, after_id)
        found += len(some.ids)
        sample += some.ids[: SAMPLE_JOBS - len(sample)]
        if some.is_last or found > count_max or time.monotonic() >= deadline:
            return Preview(min(found, count_max), not some.is_last, sample)
        after_id = some.after_id or after_id
