"""/v1/operations: retry, cancel or discard every job that a filter names, durably."""

from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from fastapi import Path, Request, Response, status
from pydantic import Field, model_validator

from api.auth import Operator, Principal
from api.deps import (
    LIST_DEFAULT,
    Cursor,
    IdempotencyKey,
    Limit,
    Services,
    WithAudit,
    WithServices,
)
from api.errors import ProblemType, field_error, invalid_fields
from api.idempotency import Work, answer_once, fingerprint, respond
from api.job_requests import Moment, Name, RequestModel, Tag, Tags
from api.openapi import problems
from api.paging import bad_cursor
from api.routing import router as make_router
from api.views import AnyObject, Page, View
from jobs import matching, operations
from jobs.idempotency import StoredAnswer
from jobs.kinds import Text
from jobs.matching import OperationAction, OperationFilter, Wanted
from jobs.operations import Operation, OperationState
from jobs.states import JobState
from runtime.postgres import Connection

router = make_router("operations")

OperationId = Annotated[UUID, Path(description="The operation's id.")]
Id = Annotated[UUID, Field(strict=False)]
Word = Annotated[Text, Field(min_length=1, max_length=63)]
IDS_MAX = 1000


class FilterRequest(RequestModel):
    """Which jobs: all conditions that are given must hold, and at least one, or `all`, must be."""

    state: Annotated[
        JobState | None,
        Field(strict=False, description="By default live jobs to cancel, failed ones else."),
    ] = None
    kind: Word | None = None
    pool: Word | None = None
    batch_id: Id | None = None
    schedule_id: Id | None = None
    tag: Tag | None = None
    tags: Annotated[Tags, Field(description="All of them.", default_factory=list)]
    error_type: Annotated[Name | None, Field(description="`error.type` of the job.")] = None
    ids: Annotated[list[Id], Field(min_length=1, max_length=IDS_MAX)] | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    finished_after: Moment | None = None
    finished_before: Moment | None = None
    all: Annotated[bool, Field(description="Take every job that the action applies to.")] = False

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.all and self.conditions == OperationFilter():
            message = 'give a condition, or "all": true to take every job of the tenant'
            raise ValueError(message)
        return self

    @property
    def conditions(self) -> OperationFilter:
        """What the ledger looks for."""
        tags = (*self.tags, *(() if self.tag is None else (self.tag,)))
        return OperationFilter(
            state=self.state,
            kind=self.kind,
            pool=self.pool,
            batch_id=self.batch_id,
            tags=tuple(dict.fromkeys(tags)),
            error_type=self.error_type,
            schedule_id=self.schedule_id,
            ids=None if self.ids is None else tuple(dict.fromkeys(self.ids)),
            created_after=self.created_after,
            created_before=self.created_before,
            finished_after=self.finished_after,
            finished_before=self.finished_before,
        )


class OperationRequest(RequestModel):
    """A bulk operation to accept, or with `dry_run` only to count."""

    action: Annotated[OperationAction, Field(strict=False)]
    filter: FilterRequest
    dry_run: bool = False


class OperationCountsView(View):
    """The jobs so far; `matched` is the sum of the others. A skipped one had changed meanwhile."""

    matched: int
    done: int
    skipped: int
    failed: int


class OperationProgressView(View):
    """How far it is; `total` is null where too many match to count them beforehand."""

    done: int
    total: int | None


class OperationView(View):
    """A bulk operation. It has `failed` if some jobs could not be done; `error` names the first."""

    id: UUID
    action: OperationAction
    filter: AnyObject
    actor: str
    state: OperationState
    counts: OperationCountsView
    progress: OperationProgressView
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: AnyObject | None
    links: dict[str, str]


class DryRunView(View):
    """What an operation would touch now: `at_least` so many when there are too many to count."""

    dry_run: bool = True
    action: OperationAction
    filter: AnyObject
    matched: int
    at_least: bool
    sample: Annotated[list[UUID], Field(description="The first jobs, by id.")]


@router.post(
    "/operations",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=OperationView,
    responses={
        200: {"model": DryRunView, "description": "A dry run: nothing was changed."},
        **problems(ProblemType.IN_FLIGHT),
    },
)
async def start_operation(
    request: Request,
    services: WithServices,
    principal: Operator,
    audit: WithAudit,
    sent: OperationRequest,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept a bulk operation: once this answers, it is on disk and will be worked off."""
    _check(sent)
    wanted = Wanted(principal.tenant_id, sent.action, sent.filter.conditions)

    async def work(connection: Connection) -> StoredAnswer:
        if sent.dry_run:
            return await _dry_run(connection, wanted)
        operation = await operations.accept(connection, wanted, actor=principal.name)
        view = operation_view(operation)
        await audit.record(
            connection,
            "operation.started",
            operation.id,
            action=wanted.action,
            filter=view.filter,
        )
        headers = {"Location": view.links["self"]}
        return StoredAnswer(status.HTTP_202_ACCEPTED, headers, view.model_dump_json().encode())

    return await _once(request, services, principal, idempotency_key, work)


async def _once(
    request: Request, services: Services, principal: Principal, key: str | None, work: Work
) -> Response:
    if key is not None:
        request_hash = fingerprint(request, await request.body())
        return await answer_once(services, principal, key, request_hash, work=work)
    async with services.transaction() as connection:
        return respond(await work(connection))


async def _dry_run(connection: Connection, wanted: Wanted) -> StoredAnswer:
    found = await matching.preview(connection, wanted)
    view = DryRunView(
        action=wanted.action,
        filter=_filter_view(wanted.filter),
        matched=found.matched,
        at_least=found.at_least,
        sample=list(found.sample),
    )
    return StoredAnswer(status.HTTP_200_OK, {}, view.model_dump_json().encode())


def _check(sent: OperationRequest) -> None:
    """Conditions that no job of the action could meet are a mistake, not an empty result."""
    action, chosen = sent.action, sent.filter
    errors = []
    if chosen.state is not None and chosen.state not in action.states:
        names = ", ".join(sorted(action.states))
        errors.append(
            field_error("/filter/state", f"{action} applies to {names}, not to {chosen.state} jobs")
        )
    if action is OperationAction.CANCEL:
        errors += [
            field_error(f"/filter/{name}", "cancel applies to jobs that have not finished")
            for name in ("finished_after", "finished_before")
            if getattr(chosen, name) is not None
        ]
    if errors:
        raise invalid_fields(errors)


@router.get("/operations")
async def list_operations(
    services: WithServices,
    principal: Operator,
    state: OperationState | None = None,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[OperationView]:
    """The tenant's bulk operations, newest first."""
    async with services.connection() as connection:
        try:
            page = await operations.list_operations(
                connection, principal.tenant_id, state=state, cursor=cursor, limit=limit
            )
        except ValueError:
            raise bad_cursor() from None
    data = [operation_view(operation) for operation in page.operations]
    return Page[OperationView](data=data, next_cursor=page.next_cursor)


@router.get("/operations/{operation_id}", responses=problems(ProblemType.NOT_FOUND))
async def get_operation(
    services: WithServices, principal: Operator, operation_id: OperationId
) -> OperationView:
    """A bulk operation and how far it is."""
    async with services.connection() as connection:
        return operation_view(await operations.get(connection, principal.tenant_id, operation_id))


@router.post("/operations/{operation_id}/cancel", responses=problems(ProblemType.NOT_FOUND))
async def cancel_operation(
    services: WithServices, principal: Operator, audit: WithAudit, operation_id: OperationId
) -> OperationView:
    """Do no more of it; what was done stays done. Idempotent; a finished one stays as it is."""
    async with services.transaction() as connection:
        stopped = await operations.stop(connection, principal.tenant_id, operation_id)
        await audit.record(connection, "operation.cancelled", operation_id)
    return operation_view(stopped)


def _filter_view(chosen: OperationFilter) -> AnyObject:
    return dict(chosen.as_json()) or {"all": True}


def operation_view(operation: Operation) -> OperationView:
    """An operation as clients see it."""
    path = f"/v1/operations/{operation.id}"
    is_over = operation.state in {OperationState.SUCCEEDED, OperationState.FAILED}
    total = operation.matched if is_over else operation.expected
    if total is not None:
        total = max(total, operation.matched)
    return OperationView(
        id=operation.id,
        action=operation.action,
        filter=_filter_view(operation.filter),
        actor=operation.actor,
        state=operation.state,
        counts=OperationCountsView(
            matched=operation.matched,
            done=operation.done,
            skipped=operation.skipped,
            failed=operation.failed,
        ),
        progress=OperationProgressView(done=operation.matched, total=total),
        created_at=operation.created_at,
        started_at=operation.started_at,
        finished_at=operation.finished_at,
        error=None if operation.error is None else dict(operation.error),
        links={"self": path, "cancel": f"{path}/cancel"},
    )
