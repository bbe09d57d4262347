"""Every error as an RFC 9457 problem document; the only place with status codes of errors.

Raise `Problem`, or let an error of the ledger, the corpus or a server through: api/translations.py
knows them.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any, NotRequired, TypedDict

import orjson
from fastapi import Response

from api.strict_json import pointer_to

MEDIA_TYPE = "application/problem+json"
# Long enough for a restart of Postgres, short enough that nobody notices it.
RETRY_AFTER_S = 2


# One wrong value: where it stands, and what is wrong. `in` is left out for the body, `line` for
# anything but NDJSON.
FieldError = TypedDict(
    "FieldError",
    {"pointer": str, "detail": str, "line": NotRequired[int], "in": NotRequired[str]},
)


class ProblemType(Enum):
    """The stable names that programs can match, each with its status and title."""

    MALFORMED = (HTTPStatus.BAD_REQUEST, "The request cannot be read")
    NO_KEY = (HTTPStatus.UNAUTHORIZED, "An API key is needed")
    FORBIDDEN = (HTTPStatus.FORBIDDEN, "The key's role does not allow this")
    NOT_FOUND = (HTTPStatus.NOT_FOUND, "Not found")
    METHOD_NOT_ALLOWED = (HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed")
    TOO_SLOW = (HTTPStatus.REQUEST_TIMEOUT, "The body came too slowly")
    CONFLICT = (HTTPStatus.CONFLICT, "The present state does not allow this")
    IN_FLIGHT = (HTTPStatus.CONFLICT, "The first request with this key is still being answered")
    PRECONDITION_FAILED = (HTTPStatus.PRECONDITION_FAILED, "Somebody else changed it meanwhile")
    TOO_LARGE = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large")
    MEDIA_TYPE = (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "This content type is not understood")
    INVALID = (HTTPStatus.UNPROCESSABLE_ENTITY, "Some values are invalid")
    KEY_REUSED = (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "The idempotency key was used for another request",
    )
    QUEUE_FULL = (HTTPStatus.TOO_MANY_REQUESTS, "The queue is full")
    QUOTA_EXCEEDED = (HTTPStatus.TOO_MANY_REQUESTS, "A quota of the tenant is used up")
    RATE_LIMITED = (HTTPStatus.TOO_MANY_REQUESTS, "The tenant asks too often")
    TOO_MANY_GUESSES = (HTTPStatus.TOO_MANY_REQUESTS, "Too many wrong API keys")
    TOO_MANY_WATCHERS = (HTTPStatus.TOO_MANY_REQUESTS, "Too many streams and long polls are open")
    INTERNAL = (HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong here")
    UNAVAILABLE = (HTTPStatus.SERVICE_UNAVAILABLE, "A server that this needs does not answer")

    @property
    def status(self) -> HTTPStatus:
        """The response's status code."""
        return self.value[0]

    @property
    def title(self) -> str:
        """One line for people, the same for every occurrence."""
        return self.value[1]

    @property
    def uri(self) -> str:
        """The `type` member: a name, not an address, since the product may run without a
        network.
        """
        return "urn:xnai:problem:" + self.name.lower().replace("_", "-")


class Problem(Exception):
    """A request that is answered with a problem document."""

    def __init__(
        self,
        type_: ProblemType,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.type = type_
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        # Members beyond those of every problem (RFC 9457, 3.2).
        self.more: Mapping[str, object] = {}

    def response(self) -> Response:
        """The problem as a response."""
        document: dict[str, object] = {
            "type": self.type.uri,
            "title": self.type.title,
            "status": int(self.type.status),
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = self.errors
        document.update(self.more)
        return Response(orjson.dumps(document), self.type.status, self.headers, MEDIA_TYPE)


def field_error(
    pointer: str, detail: str, *, line: int | None = None, place: str | None = None
) -> FieldError:
    """One entry of `errors`; `place` is `query`, `path` or `header` when it is not the body."""
    entry: FieldError = {"pointer": pointer, "detail": detail}
    if line is not None:
        entry["line"] = line
    if place is not None:
        entry["in"] = place
    return entry


def invalid(pointer: str, detail: str, *, place: str | None = None) -> Problem:
    """One invalid value."""
    name = pointer or place or "body"
    return Problem(
        ProblemType.INVALID,
        f"{name}: {detail}",
        errors=[field_error(pointer, detail, place=place)],
    )


def invalid_fields(errors: Sequence[FieldError]) -> Problem:
    """Several invalid values; the detail names the first."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    line = f"line {first['line']}: " if "line" in first else ""
    detail = f"{line}{first['pointer'] or 'body'}: {first['detail']}{more}"
    return Problem(ProblemType.INVALID, detail, errors=errors)


def unavailable(detail: str) -> Problem:
    """A dependency is away; asking again helps."""
    return Problem(ProblemType.UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def from_pydantic(errors: Sequence[Any], *, prefix: tuple[str | int, ...] = ()) -> list[FieldError]:
    """Pydantic's errors as ours; the values themselves are never echoed."""
    return [field_error(pointer_to(*prefix, *error["loc"]), _message(error)) for error in errors]


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field"
    return str(error["msg"]).removeprefix("Value error, ")
