"""Runs one job: load_handler → execute → classify. Writes nothing: the recorder does."""

import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from importlib import import_module
from typing import assert_never, cast

import anyio
from pydantic import BaseModel, ValidationError

from jobs.errors import Cancel, Fail, Retry, StaleToken
from jobs.kinds import Kind
from jobs.model import ClaimedJob, JsonObject
from jobs.outcomes import Cancelled, Completed, Ending, Failed, Problem, Released
from runtime.groups import only_leaf
from runtime.logs import logger
from runtime.postgres import OUTAGE
from workers.run import Run, Services

type Handler = Callable[[Run[BaseModel]], Awaitable[Completed | JsonObject | None]]

log = logger("execution")


class StopReason(Enum):
    """Why an attempt was told to stop before its handler returned."""

    CANCEL = "cancelled by request"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"


@dataclass(slots=True)
class InHand:
    """A job that this slot is running now, and the ways to stop it. `scope` is its lane's."""

    run: Run[BaseModel]
    kind: Kind
    entry: int
    deadline_ns: int
    scope: anyio.CancelScope
    began: float = field(default_factory=time.perf_counter)
    reason: StopReason | None = None
    is_shown: bool = False

    def stop(self, reason: StopReason) -> None:
        """Tell the handler to stop; the first reason counts. Native code polls `run.stop`."""
        if self.reason is None:
            self.reason = reason
            self.run.stop.set()
            self.scope.cancel()


@cache
def load_handler(path: str) -> Handler:
    """Import `module:function` once a process; raises ImportError, AttributeError or TypeError."""
    module_name, _, function_name = path.partition(":")
    handler = getattr(import_module(module_name), function_name)
    if not inspect.iscoroutinefunction(handler):
        message = f"{path} is no async function: define it with `async def`"
        raise TypeError(message)
    return cast("Handler", handler)


def prepare(job: ClaimedJob, kind: Kind, services: Services) -> Run[BaseModel] | Failed:
    """The Run of a claimed job; Failed when its stored payload no longer fits its kind."""
    try:
        payload = kind.payload.model_validate(job.payload)
    except ValidationError as error:
        detail = "; ".join(
            f"/payload/{'/'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()
        )
        return Failed(Problem("invalid_payload", detail, retryable=False))
    return Run(job, payload, services)


async def execute(in_hand: InHand) -> Ending:
    """Run the handler to its end and say how it ended. Raises nothing but the cancellation of
    `scope`; `stopped` says how the job ended then.
    """
    # The boundary of foreign code: whatever a handler raises is an outcome of its job.
    try:
        result = await load_handler(in_hand.kind.handler)(in_hand.run)
    except Exception as error:  # noqa: BLE001
        return _classify(only_leaf(error), in_hand) if in_hand.reason is None else stopped(in_hand)
    return result if isinstance(result, Completed) else Completed(result)


def _classify(error: BaseException, in_hand: InHand) -> Ending:  # noqa: PLR0911 - one answer a case
    """What an exception of a handler means for its job."""
    match error:
        case Cancel():
            return Cancelled(error.reason)
        case Retry():
            return Failed(Problem(error.type, str(error), retryable=True, after_s=error.after_s))
        case Fail():
            return Failed(Problem(error.type, str(error), retryable=False))
        case StaleToken():
            return Released("no longer held")
        case _ if isinstance(error, OUTAGE):
            return Released(f"Postgres was away: {error}")
        case MemoryError():
            return Failed(Problem("out_of_memory", "the handler ran out of memory", retryable=True))
        case _:
            log.error(
                "handler_failed",
                job_id=str(in_hand.run.job.id),
                kind=in_hand.kind.name,
                exc_info=error,
            )
            return Failed(Problem(_error_type(error), _one_line(error), retryable=True))


def _error_type(error: BaseException) -> str:
    """A stable word: the error's own `type` or `code`, or its class name."""
    own = getattr(error, "type", None) or getattr(error, "code", None)
    return own if isinstance(own, str) else type(error).__name__


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).replace("\x00", "�").split()) or type(error).__name__
    return text if len(text) <= 2000 else f"{text[:2000]}…"


def stopped(in_hand: InHand) -> Ending:
    """How a job ends whose handler was told to stop, by the reason."""
    match in_hand.reason:
        case StopReason.CANCEL:
            return Cancelled("cancelled by request")
        case StopReason.TIMEOUT:
            return Failed(
                Problem(
                    "timeout",
                    f"stopped after {time.perf_counter() - in_hand.began:.1f} s: "
                    "raise timeout_s, or do less in one job",
                )
            )
        case StopReason.SHUTDOWN | None:
            return Released("shutdown")
        case _:
            assert_never(in_hand.reason)
