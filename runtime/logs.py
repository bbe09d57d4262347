"""Structured logs on standard error: lines for people on a terminal, JSON everywhere else.

Whatever a caller passes, no password, key or secret is written: a processor strikes them out.
"""

import logging
import os
import re
import sys
from typing import TYPE_CHECKING, cast

import orjson
import structlog
from structlog.contextvars import bound_contextvars as bound
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

if TYPE_CHECKING:
    from runtime.settings import Settings

__all__ = ["bound", "configure", "logger", "redact"]

HIDDEN = "***"
_SECRET_NAMES = re.compile(r"(password|secret|api_key|authorization|cookie)$", re.IGNORECASE)
_SECRET_TEXTS = (
    # The password of a URL; a user without one is no secret.
    (re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]+(?=@)"), rf"\1:{HIDDEN}"),
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=_-]+"), f"whsec_{HIDDEN}"),
    (re.compile(r"\bxnai_[A-Za-z0-9]{4,}_?[A-Za-z0-9_-]{12,}"), f"xnai_{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic) [A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
)


def logger(name: str) -> FilteringBoundLogger:
    """Return a logger that names its module; it may be made before `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger(module=name))


def configure(settings: "Settings", *, role: str) -> None:
    """Set up logging for this process, third parties' warnings included."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    as_json = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    processors = [*_shared(role), *_endings(as_json=as_json)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    _adopt_standard_logging(processors, max(level, logging.WARNING))


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Strike out secrets by the name of their field, and by their look anywhere in a text."""
    for name, value in event.items():
        if _SECRET_NAMES.search(name) and value:
            event[name] = HIDDEN
        else:
            event[name] = _strike(value)
    return event


def _strike(value: object) -> object:
    if isinstance(value, str):
        for pattern, replacement in _SECRET_TEXTS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, dict):
        return {
            name: HIDDEN if _SECRET_NAMES.search(str(name)) and item else _strike(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_strike(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    # Exceptions, ids and paths are written by their text, which may hold an address.
    return _strike(str(value))


def _shared(role: str) -> list[Processor]:
    def add_process(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.setdefault("role", role)
        event.setdefault("pid", os.getpid())
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_process,
        structlog.processors.format_exc_info,
        redact,
    ]


def _endings(*, as_json: bool) -> list[Processor]:
    if as_json:
        return [
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]


def _add_module(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Name the library's logger as `logger` names our modules."""
    event["module"] = event["_record"].name
    return event


def _to_json(event: object, **_: object) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _adopt_standard_logging(processors: list[Processor], level: int) -> None:
    """Give what libraries log through `logging` the same shape and the same censor."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_add_module],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *processors,
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
