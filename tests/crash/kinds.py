"""Kinds that misbehave as told, for the crash matrix: name this module in XNAI_KINDS."""

import ctypes
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio

from jobs.kinds import Kind, Payload
from jobs.model import JsonObject

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.run import Run

IN_HAND = 8  # of a shared kind
ADD_EFFECT = "INSERT INTO effects (job_id, attempt) VALUES ($1, $2)"


class EffectPayload(Payload):
    """A folder of signs: `began-N` is made by attempt N, and the first waits for `go`."""

    folder: str


class StuckPayload(Payload):
    """How not to end."""

    how: Literal["loop", "sleep", "ignore", "thread", "gil"]


async def effect(run: "Run[EffectPayload]") -> JsonObject:
    """Write one row under the fence; the first attempt insists on it, whatever it is told."""
    folder = Path(run.payload.folder)
    with anyio.CancelScope(shield=True):
        (folder / f"began-{run.job.attempt}").touch()
        while run.job.attempt == 1 and not (folder / "go").exists():  # noqa: ASYNC110 - no signal
            await anyio.sleep(0.02)
        async with run.fenced() as connection:
            await connection.execute(ADD_EFFECT, run.job.id, run.job.attempt)
    return {}


async def stuck(run: "Run[StuckPayload]") -> JsonObject:
    """Never end, in one of the ways in which code does not."""
    match run.payload.how:
        case "loop":
            while True:
                pass
        case "sleep":
            time.sleep(3600)
        case "ignore":
            while True:
                try:
                    await anyio.sleep(3600)
                except BaseException:  # noqa: BLE001, S112 - the mistake to survive
                    continue
        case "thread":
            await run.in_thread(_deaf)
        case "gil":
            await run.in_thread(_hold)
    return {}


def _deaf(should_stop: "Callable[[], bool]") -> None:
    del should_stop
    time.sleep(3600)


def _hold(should_stop: "Callable[[], bool]") -> None:
    """Sleep in C without letting go of the interpreter's lock."""
    del should_stop
    ctypes.PyDLL(None).sleep(3600)


KINDS = tuple(
    Kind(
        f"{name}-{pool}",
        payload,
        pool=pool,
        handler=f"tests.crash.kinds:{name}",
        exclusive=pool == "alone",
        in_hand=1 if pool == "alone" else IN_HAND,
        timeout_s=600.0,
    )
    for name, payload in (("effect", EffectPayload), ("stuck", StuckPayload))
    for pool in ("alone", "shared")
)
