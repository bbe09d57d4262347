"""A job that does as it is told, for self-tests, chaos and benchmarks."""

import os
import signal
import time

import anyio
import anyio.to_thread

from jobs.errors import Fail, Retry
from jobs.kinds import ProbePayload
from jobs.model import JsonObject
from workers.run import Run


async def handle(run: Run[ProbePayload]) -> JsonObject:
    """Sleep, burn CPU, then end as the payload says; `hang` never returns and `crash` kills the
    slot.
    """
    payload = run.payload
    if payload.sleep_s:
        await anyio.sleep(payload.sleep_s)
    if payload.spin_s:
        await anyio.to_thread.run_sync(_spin, payload.spin_s)
    match payload.outcome:
        case "retry":
            raise Retry("told to retry", type_="probe_retry")
        case "fail":
            raise Fail("told to fail", type_="probe_fail")
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                pass
        case "succeed":
            pass
    return {"echo": payload.echo}


def _spin(spin_s: float) -> None:
    until = time.monotonic() + spin_s
    while time.monotonic() < until:
        pass
