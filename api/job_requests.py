"""A job as clients ask for it, checked completely: its fields, its payload by its kind, and where
it leads.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from api.auth import Principal
from api.errors import FieldError, Problem, ProblemType, field_error, from_pydantic
from api.keys import Role
from api.limits import too_large
from api.tenant_policies import TenantPolicies
from jobs.kinds import MAX_PAYLOAD_BYTES, CrawlPayload, Kind, KindRegistry, Text, UnknownKind, Url
from jobs.model import JsonObject, NewJob, Unique
from jobs.spool import Spool, Terms
from jobs.states import OnParentFailure
from runtime.egress import EgressDenied, EgressPolicy

YEAR_S = 366 * 86_400
HORIZON = timedelta(days=10 * 366)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

Name = Annotated[Text, Field(min_length=1, max_length=255)]
Tag = Annotated[Text, Field(min_length=1, max_length=128)]
Tags = Annotated[list[Tag], Field(max_length=32)]
Seconds = Annotated[float, Field(ge=0, le=10 * YEAR_S, allow_inf_nan=False)]


def _is_rfc3339(value: object) -> object:
    """Numbers and bare dates are no times here, though pydantic would read them as such."""
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        message = "must be an RFC 3339 time with its zone, as 2026-05-04T08:00:00Z"
        raise ValueError(message)
    return value


def _within_horizon(moment: datetime) -> datetime:
    """Postgres, Python and clients agree on these years; a job for later is a mistake in the
    unit.
    """
    try:
        in_utc = moment.astimezone(UTC)
    except OverflowError:
        in_utc = None
    if in_utc is None or in_utc.year < 1970 or in_utc > datetime.now(UTC) + HORIZON:
        message = f"must lie between 1970 and {HORIZON.days // 366} years from now"
        raise ValueError(message)
    return in_utc


Moment = Annotated[
    AwareDatetime,
    Field(strict=False, examples=["2026-12-24T18:00:00Z"]),
    BeforeValidator(_is_rfc3339),
    AfterValidator(_within_horizon),
]


class RequestModel(BaseModel):
    """Base of all request bodies: unknown fields are refused, nothing is coerced (`"5"` is no
    5).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class UniqueRequest(RequestModel):
    """At most one job with this key until it is started, finished, or `for_s` seconds have
    passed.
    """

    key: Name
    until: Literal["started", "finished", "time"] = "finished"
    for_s: Annotated[float, Field(gt=0, le=YEAR_S)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.until == "time") != (self.for_s is not None):
            message = "for_s belongs to until=time, and only to it"
            raise ValueError(message)
        return self


class JobRequest(RequestModel):
    """A job to accept."""

    kind: Annotated[Text, Field(min_length=1, max_length=63)]
    payload: dict[str, Any]  # validated by the kind's own model, see `check_job`
    priority: Annotated[int, Field(ge=0, le=9, description="9 is claimed first.")] = 4
    run_at: Moment | None = None
    delay_s: Seconds | None = None
    expires_at: Moment | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=7 * 86_400)] | None = None
    unique: UniqueRequest | None = None
    concurrency_key: Name | None = None
    # Factories: pydantic copies any other list, deeply, for every job.
    depends_on: Annotated[list[Name], Field(max_length=1000, default_factory=list)]
    on_parent_failure: Annotated[OnParentFailure, Field(strict=False)] = OnParentFailure.CANCEL
    custom_id: Name | None = None
    tags: Annotated[Tags, Field(default_factory=list)]
    callback_url: Url | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing can hold the job back or tie it to another."""
        named = self.model_fields_set - _PLAIN
        return not named or all(getattr(self, name) in _NOTHING for name in named)


# What a field says that is named and left empty; 0 is a delay.
_NOTHING: tuple[object, ...] = (None, [])
# What a job may say of itself alone.
_PLAIN = frozenset(
    {
        "kind",
        "payload",
        "priority",
        "max_attempts",
        "timeout_s",
        "custom_id",
        "tags",
        "callback_url",
    }
)


@dataclass(frozen=True, slots=True)
class JobChecker:
    """What decides whether a caller's job is acceptable; the same for one job, a batch's and a
    schedule's.
    """

    kinds: KindRegistry
    egress: EgressPolicy
    role: Role
    terms: dict[tuple[object, ...], Terms] = field(default_factory=dict)

    def check(self, request: JobRequest) -> NewJob | list[FieldError]:
        """The job to enqueue, its payload as its kind's model reads it, or everything wrong with
        it.

        Raises Problem 403 for a kind that the caller's role may not use.
        """
        judged = self._judge(request)
        if isinstance(judged, list):
            return judged
        payload = judged[1].model_dump(mode="json", by_alias=True, exclude_unset=True)
        return _new_job(request, payload)

    def add_to(self, spool: Spool, request: JobRequest) -> list[FieldError]:
        """Check a job and spool it; answers what is wrong with it. Raises as `check`."""
        judged = self._judge(request)
        if isinstance(judged, list):
            return judged
        kind, payload = judged
        text = _adapter(kind.payload).dump_json(payload, by_alias=True, exclude_unset=True)
        if request.is_plain:
            spool.add(self._terms_of(kind, request), request.custom_id, text)
        else:
            spool.add_other(kind, _new_job(request, {}), text)
        return []

    def _judge(self, request: JobRequest) -> tuple[Kind, BaseModel] | list[FieldError]:
        try:
            kind = self.kinds[request.kind]
        except UnknownKind as error:
            return [field_error("/kind", str(error))]
        if kind.operators_only and self.role < Role.OPERATOR:
            detail = f"jobs of kind {kind.name!r} need the role operator"
            raise Problem(ProblemType.FORBIDDEN, detail)
        if request.run_at is not None and request.delay_s is not None:
            return [field_error("/delay_s", "give run_at or delay_s, not both")]
        payload = _payload(kind, request)
        if isinstance(payload, list):
            return payload
        return list(self._denied(payload, request.callback_url)) or (kind, payload)

    def _denied(self, payload: BaseModel, callback_url: str | None) -> Iterator[FieldError]:
        for pointer, url in _urls(payload, callback_url):
            try:
                self.egress.check_literal(url)
            except EgressDenied as error:
                yield field_error(pointer, str(error))

    def _terms_of(self, kind: Kind, request: JobRequest) -> Terms:
        """One object for all jobs on the same terms: what they share is then written once."""
        key = (
            kind.name,
            request.priority,
            request.max_attempts,
            request.timeout_s,
            tuple(request.tags),
            request.callback_url,
        )
        terms = self.terms.get(key)
        if terms is None:
            terms = self.terms[key] = Terms(kind, *key[1:])
        return terms


def _payload(kind: Kind, request: JobRequest) -> BaseModel | list[FieldError]:
    text = orjson.dumps(request.payload)
    if len(text) > MAX_PAYLOAD_BYTES:
        raise too_large(MAX_PAYLOAD_BYTES, "a payload")
    try:
        # From JSON, strict means what JSON can say: ids and times are strings, "5" is no 5.
        return _adapter(kind.payload).validate_json(text, strict=True)
    except ValidationError as error:
        return from_pydantic(error.errors(include_input=False), prefix=("payload",))


@cache
def _adapter(model: type[BaseModel]) -> TypeAdapter[BaseModel]:
    """Writes a payload as bytes; one a kind."""
    return TypeAdapter(model)


def checker(kinds: KindRegistry, egress: TenantPolicies, principal: Principal) -> JobChecker:
    """The checker of what this caller submits."""
    return JobChecker(kinds, egress.of(principal.tenant_id), principal.role)


def _urls(payload: BaseModel, callback_url: str | None) -> Iterator[tuple[str, str]]:
    """Every address that the job would reach, with its place."""
    if callback_url is not None:
        yield "/callback_url", callback_url
    if isinstance(payload, CrawlPayload):
        if payload.url is not None:
            yield "/payload/url", payload.url
        for position, url in enumerate(payload.urls or ()):
            yield f"/payload/urls/{position}", url


def _new_job(request: JobRequest, payload: JsonObject) -> NewJob:
    unique = request.unique
    return NewJob(
        kind=request.kind,
        payload=payload,
        priority=request.priority,
        run_at=request.run_at,
        delay_s=request.delay_s,
        expires_at=request.expires_at,
        max_attempts=request.max_attempts,
        timeout_s=request.timeout_s,
        unique=None if unique is None else Unique(unique.key, unique.until, unique.for_s),
        concurrency_key=request.concurrency_key,
        depends_on=tuple(request.depends_on),
        on_parent_failure=request.on_parent_failure,
        custom_id=request.custom_id,
        tags=tuple(request.tags),
        callback_url=request.callback_url,
    )
