"""What a valid schedule is, and how its job is kept in a row. Pure."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import cast
from zoneinfo import ZoneInfo

from jobs.model import JsonObject, JsonValue, NewJob, Unique
from jobs.states import OnParentFailure
from schedules.cron import find_zone, parse_expression
from schedules.errors import ScheduleRefused
from schedules.model import Adaptive, Cron, Every, ScheduleSpec, Timing

NAME_LENGTH_MAX = 200
PERIOD_MIN_S = 1.0
PERIOD_MAX_S = 366 * 86_400.0
JITTER_MAX_S = 86_400.0

# A fire sets these itself, or they make no sense for a job that is made again and again.
_SET_BY_FIRE = ("run_at", "delay_s", "expires_at", "depends_on", "custom_id", "schedule_id")
_KEPT = (
    "kind",
    "payload",
    "priority",
    "max_attempts",
    "timeout_s",
    "unique",
    "concurrency_key",
    "tags",
    "callback_url",
)


def check(spec: ScheduleSpec) -> None:
    """Raise ScheduleRefused, naming the first invalid field. The job's payload is the caller's
    to check.
    """
    _check_name(spec.name)
    zone = find_zone(spec.timezone)
    _check_timing(spec.timing, zone)
    _check_seconds("/jitter_s", spec.jitter_s, 0.0, JITTER_MAX_S)
    blank = NewJob(spec.job.kind, spec.job.payload)
    for field in _SET_BY_FIRE:
        if getattr(spec.job, field) != getattr(blank, field):
            raise ScheduleRefused(f"/job/{field}", "is set by each fire: leave it out")


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= NAME_LENGTH_MAX or not name.isprintable() or name != name.strip():
        detail = f"must be 1 to {NAME_LENGTH_MAX} printable characters without blanks around them"
        raise ScheduleRefused("/name", detail)


def _check_timing(timing: Timing, zone: ZoneInfo) -> None:
    match timing:
        case Cron(expression):
            parse_expression(expression, zone)
        case Every(every_s):
            _check_seconds("/every_s", every_s, PERIOD_MIN_S, PERIOD_MAX_S)
        case Adaptive(min_s, max_s):
            _check_seconds("/adaptive/min_s", min_s, PERIOD_MIN_S, PERIOD_MAX_S)
            _check_seconds("/adaptive/max_s", max_s, min_s, PERIOD_MAX_S)


def _check_seconds(pointer: str, value: float, least: float, most: float) -> None:
    # Written so that NaN, which compares false with everything, is refused.
    if not least <= value <= most:
        raise ScheduleRefused(pointer, f"must be between {least:g} and {most:g} seconds")


def job_as_json(job: NewJob) -> JsonObject:
    """The form in which a schedule's job is kept."""
    fields = asdict(job)
    return {name: fields[name] for name in _KEPT}


def job_from_json(kept: Mapping[str, JsonValue]) -> NewJob:
    """The job that a row keeps; a field that a later version added takes its default."""
    fields = cast("dict[str, object]", {name: kept[name] for name in _KEPT if name in kept})
    unique = fields.get("unique")
    if isinstance(unique, dict):
        fields["unique"] = Unique(**unique)
    fields["tags"] = tuple(cast("list[str]", fields.get("tags", ())))
    return NewJob(**fields, on_parent_failure=OnParentFailure.CANCEL)  # type: ignore[arg-type] # as job_as_json wrote them
