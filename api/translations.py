"""Errors of other packages and of the framework, told as problems. No status codes here: see
api/errors.py.

A test asserts that every error of the ledger is in the table.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import asyncpg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route

from api.errors import (
    FieldError,
    Problem,
    ProblemType,
    field_error,
    from_pydantic,
    invalid,
    invalid_fields,
    unavailable,
)
from api.strict_json import MalformedJson, RefusedJson, pointer_to
from corpus import errors as corpus
from jobs import errors as ledger
from jobs.kinds import UnknownKind
from runtime.egress import EgressDenied
from runtime.errors import NotReachableError
from runtime.logs import logger
from runtime.postgres import UNREACHABLE
from schedules import errors as schedules
from webhooks import errors as webhooks

log = logger("api")

POSTGRES_AWAY = (
    *UNREACHABLE,
    NotReachableError,
    asyncpg.InterfaceError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InsufficientResourcesError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    TimeoutError,
)


def _not_found(error: Exception) -> Problem:
    return Problem(ProblemType.NOT_FOUND, str(error))


def _conflict(error: Exception) -> Problem:
    return Problem(ProblemType.CONFLICT, str(error))


def _refused(error: ledger.JobsRefused) -> Problem:
    return invalid_fields(
        [field_error(f"/jobs/{r.position}{r.pointer}", r.detail) for r in error.refusals]
    )


def postgres_away(error: Exception) -> Problem:
    """Postgres is down, restarting, full or too slow."""
    log.warning("postgres_away", error=str(error) or type(error).__name__)
    return unavailable(
        "Postgres does not answer at the moment: try again; with an Idempotency-Key nothing is "
        "accepted twice"
    )


def _data_error(error: asyncpg.DataError) -> Problem:
    # A net below the checks of the edge: what the database cannot hold is the caller's value all
    # the same.
    log.warning("data_error", error=str(error))
    return Problem(ProblemType.INVALID, "a value is out of the range that can be stored")


type Translation = Callable[[Any], Problem]  # each takes the error it stands beside

# The ledger's errors that a client can cause, and those that only a worker's writes can.
LEDGER: dict[type[Exception], Translation] = {
    ledger.JobNotFound: _not_found,
    ledger.BatchNotFound: _not_found,
    ledger.OperationNotFound: _not_found,
    ledger.JobsRefused: _refused,
    ledger.BatchNotOpen: _conflict,
    ledger.StateConflict: _conflict,
    ledger.StaleToken: _conflict,
    ledger.SlotEnded: _conflict,
    ledger.CursorPast: lambda error: invalid("/cursor", str(error), place="query"),
    ledger.IdempotencyMismatch: lambda error: Problem(ProblemType.KEY_REUSED, str(error)),
    ledger.IdempotencyInFlight: lambda error: Problem(
        ProblemType.IN_FLIGHT, str(error), headers={"Retry-After": "1"}
    ),
    ledger.SpoolsFull: lambda error: Problem(
        ProblemType.QUEUE_FULL, str(error), headers={"Retry-After": "5"}
    ),
    ledger.SpoolDiskFull: lambda error: unavailable(str(error)),
    UnknownKind: lambda error: invalid("/kind", str(error)),
}


def _changed(error: Exception) -> Problem:
    return Problem(ProblemType.PRECONDITION_FAILED, str(error))


def _field_refused(error: schedules.ScheduleRefused | webhooks.WebhookRefused) -> Problem:
    return invalid(error.pointer, error.detail)


def _search_refused(error: corpus.SearchRefused) -> Problem:
    return Problem(ProblemType.INVALID, str(error))


OTHERS: dict[type[Exception], Translation] = {
    corpus.CollectionNotFound: _not_found,
    corpus.DocumentNotFound: _not_found,
    corpus.UploadNotFound: _not_found,
    corpus.ModelMismatch: _conflict,
    corpus.GenerationConflict: _conflict,
    corpus.DocumentTooLarge: lambda error: Problem(ProblemType.TOO_LARGE, str(error)),
    corpus.UploadTooLarge: lambda error: Problem(ProblemType.TOO_LARGE, str(error)),
    corpus.UploadsFull: lambda error: Problem(
        ProblemType.QUEUE_FULL, str(error), headers={"Retry-After": "10"}
    ),
    corpus.SearchUnavailable: lambda error: unavailable(str(error)),
    corpus.SearchRefused: _search_refused,
    schedules.ScheduleNotFound: _not_found,
    schedules.ScheduleNameTaken: _conflict,
    schedules.ScheduleChanged: _changed,
    schedules.ScheduleRefused: _field_refused,
    webhooks.EndpointNotFound: _not_found,
    webhooks.DeliveryNotFound: _not_found,
    webhooks.RedeliveryNotFound: _not_found,
    webhooks.EndpointDisabled: _conflict,
    webhooks.EndpointChanged: _changed,
    webhooks.WebhookRefused: _field_refused,
    webhooks.BadSecret: _conflict,
    webhooks.BadSignature: _conflict,
    EgressDenied: lambda error: invalid("/url", str(error)),
    MalformedJson: lambda error: Problem(ProblemType.MALFORMED, f"the body is not JSON: {error}"),
    RefusedJson: lambda error: invalid(error.pointer, str(error)),
    asyncpg.DataError: _data_error,
    **dict.fromkeys(POSTGRES_AWAY, postgres_away),
}

_ALL: dict[type[Exception], Translation] = LEDGER | OTHERS


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make the application answer each of these errors with its problem document.

    `routes` are those that a 405 names the methods of.
    """
    app.add_exception_handler(Problem, _handler(lambda error: error))
    for kind, translate in _ALL.items():
        app.add_exception_handler(kind, _handler(translate))
    app.add_exception_handler(RequestValidationError, _handler(_from_validation))
    app.add_exception_handler(HTTPException, _framework_handler(routes))
    app.add_exception_handler(ClientDisconnect, _handler(_from_disconnect))
    app.add_exception_handler(Exception, _unexpected)


def translate(error: Exception) -> Problem | None:
    """The problem that an error means to a client, None when it means a fault of ours."""
    if isinstance(error, Problem):
        return error
    for kind in type(error).__mro__:
        if kind in _ALL:
            return _ALL[kind](error)
    return None


def _handler(
    tell: Callable[[Any], Problem],  # each is called with the exception class it is registered for
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        del request
        return tell(error).response()

    return answer


def _from_validation(error: RequestValidationError) -> Problem:
    return invalid_fields([_from_location(item) for item in error.errors()])


def _from_location(item: Mapping[str, Any]) -> FieldError:
    """FastAPI's errors say first whether the value stands in the body, the path, the query or a
    header.
    """
    place, *rest = item["loc"]
    entry = from_pydantic([{**item, "loc": rest}])[0]
    if place == "body":
        return entry
    return field_error(pointer_to(*rest), entry["detail"], place=str(place))


_FRAMEWORK: Mapping[int, ProblemType] = {kind.status: kind for kind in reversed(ProblemType)}


def _framework_handler(
    routes: Sequence[BaseRoute],
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        kind = _FRAMEWORK.get(status, ProblemType.MALFORMED)
        headers = dict(getattr(error, "headers", None) or {})
        if kind is ProblemType.METHOD_NOT_ALLOWED:
            # Starlette names the methods of one route only; a path has a route for each method.
            headers["Allow"] = ", ".join(sorted(_methods(routes, request)))
        return Problem(kind, str(getattr(error, "detail", "")), headers=headers).response()

    return answer


def _methods(routes: Sequence[BaseRoute], request: Request) -> set[str]:
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and route.path_regex.match(request.url.path):
            found |= route.methods or set()
    return found


def _from_disconnect(error: ClientDisconnect) -> Problem:
    del error
    return Problem(ProblemType.MALFORMED, "the body ended before its announced length")


async def _unexpected(request: Request, error: Exception) -> Response:
    """A fault of ours, told without any of it; Starlette raises it again, so the server logs it."""
    del request, error
    detail = "the server's log has the cause; nothing was accepted unless the ledger shows it"
    return Problem(ProblemType.INTERNAL, detail).response()
