"""What clients see of jobs, batches and lists: the response models and how records become them."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api.errors import ProblemType
from jobs.live import Progress
from jobs.model import Attempt, Batch, Counts, Job
from jobs.states import BatchState, JobState, ScheduledReason

# JSON of any shape: pydantic's JsonValue would walk every result a second time for nothing.
AnyJson = Annotated[Any, Field(description="Any JSON value.")]
AnyObject = dict[str, Any]  # a payload's or an error's own shape


class View(BaseModel):
    """Base of all responses."""

    model_config = ConfigDict(frozen=True)


class Page[T](View):
    """A page of a list. `next_cursor` is null on the last one, and on no other, however short."""

    data: list[T]
    next_cursor: str | None = None


class FieldErrorView(View):
    """One wrong value; `line` (1-based) for NDJSON, `in` when it stands outside of the body."""

    pointer: str
    detail: str
    line: int | None = None
    in_: Annotated[str | None, Field(alias="in")] = None


class ProblemView(View):
    """A problem document (RFC 9457)."""

    type: Annotated[str, Field(examples=[ProblemType.INVALID.uri])]
    title: str
    status: int
    detail: str
    errors: list[FieldErrorView] = []
    bad_lines: Annotated[
        list[int] | None, Field(description="Every bad line of an NDJSON body, counted from 1.")
    ] = None


class CountsView(View):
    """Jobs by state, from one snapshot; the six states add up to `total`."""

    model_config = ConfigDict(from_attributes=True)

    total: int
    scheduled: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int


class ProgressView(View):
    """How far a running job is; null where that is not known."""

    done: int | None = None
    total: int | None = None
    message: str | None = None


class JobView(View):
    """A job."""

    id: UUID
    kind: str
    pool: str
    state: JobState
    state_reason: ScheduledReason | None
    settled: bool
    payload: AnyObject
    priority: int
    tags: list[str]
    custom_id: str | None
    batch_id: UUID | None
    parent_id: UUID | None
    schedule_id: UUID | None
    attempt: int
    max_attempts: int
    run_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    cancel_requested_at: datetime | None
    callback_url: str | None
    concurrency_key: str | None
    discarded_at: datetime | None
    progress: ProgressView
    follow_ups: CountsView
    result: AnyJson
    error: AnyObject | None
    links: dict[str, str]
    deduplicated: bool | None = None


class AttemptView(View):
    """One attempt of a job; `outcome` is null while it runs."""

    model_config = ConfigDict(from_attributes=True)

    attempt: int
    slot_id: int | None
    started_at: datetime | None
    finished_at: datetime | None
    outcome: str | None
    error: AnyObject | None


class BatchView(View):
    """A batch; `counts` are the caller's jobs, `follow_ups` those that they created."""

    id: UUID
    state: BatchState
    run: int
    counts: CountsView
    follow_ups: CountsView
    tags: list[str]
    callback_url: str | None
    created_at: datetime
    finished_at: datetime | None
    links: dict[str, str]


def job_view(
    job: Job, progress: Progress | None = None, *, deduplicated: bool | None = None
) -> JobView:
    """A job as clients see it. Built without validation: the ledger's types are the view's."""
    path = f"/v1/jobs/{job.id}"
    links = {"self": path, "attempts": f"{path}/attempts", "events": f"{path}/events"}
    if job.batch_id is not None:
        links["batch"] = f"/v1/batches/{job.batch_id}"
    return JobView.model_construct(
        **{name: getattr(job, name) for name in _COPIED},
        tags=list(job.tags),
        follow_ups=counts_view(job.follow_ups),
        progress=_progress_view(progress),
        links=links,
        deduplicated=deduplicated,
    )


_COPIED = tuple(
    name
    for name in JobView.model_fields
    if name not in {"tags", "follow_ups", "progress", "links", "deduplicated"}
)


def counts_view(counts: Counts) -> CountsView:
    """The counts of a batch or a family."""
    return CountsView.model_construct(
        **{name: getattr(counts, name) for name in CountsView.model_fields}
    )


def attempt_view(attempt: Attempt) -> AttemptView:
    """An attempt as clients see it."""
    return AttemptView.model_validate(attempt)


def batch_view(batch: Batch) -> BatchView:
    """A batch as clients see it. Built without validation, as a job."""
    path = f"/v1/batches/{batch.id}"
    return BatchView.model_construct(
        id=batch.id,
        state=batch.state,
        run=batch.run,
        counts=counts_view(batch.counts),
        follow_ups=counts_view(batch.follow_ups),
        tags=list(batch.tags),
        callback_url=batch.callback_url,
        created_at=batch.created_at,
        finished_at=batch.finished_at,
        links={"self": path, "results": f"{path}/results", "events": f"{path}/events"},
    )


def _progress_view(progress: Progress | None) -> ProgressView:
    if progress is None:
        return _NO_PROGRESS
    return ProgressView(done=progress.done, total=progress.total, message=progress.message)


_NO_PROGRESS = ProgressView()
