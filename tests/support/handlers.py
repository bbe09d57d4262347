"""Handlers of kinds that only tests define; they are named by import strings, like all others."""

import time
from contextvars import ContextVar

import anyio
import structlog

from jobs.kinds import ProbePayload
from jobs.model import JsonObject
from workers.run import Run

LEFT_BEHIND: ContextVar[str] = ContextVar("left_behind", default="nothing")


async def leave_context(run: Run[ProbePayload]) -> JsonObject:
    """Tell what an earlier job has left in the context, and leave something there."""
    seen: JsonObject = {
        "left": LEFT_BEHIND.get(),
        "logged": sorted(structlog.contextvars.get_contextvars()),
    }
    LEFT_BEHIND.set(str(run.job.id))
    structlog.contextvars.bind_contextvars(secret=str(run.job.id))
    if run.payload.sleep_s:
        await anyio.sleep(run.payload.sleep_s)
    return seen


async def answer_a_megabyte(run: Run[ProbePayload]) -> JsonObject:
    """Return as much as a result may hold."""
    del run
    return {"text": "x" * 1_000_000}


async def spin(run: Run[ProbePayload]) -> None:
    """Keep the event loop for a millisecond, and never suspend."""
    del run
    until = time.perf_counter() + 0.001
    while time.perf_counter() < until:
        pass
