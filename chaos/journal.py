"""What handlers note of their own runs, in files: killed or cut off, a process has still said it.

One line when a handler begins and one when it ends, in a file a process; no store is asked, so that
an outage hides no run.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import orjson

from chaos.history import Run as SeenRun
from jobs.model import JsonObject, SlotId, Token

if TYPE_CHECKING:  # the API must not load the workers' code
    from pydantic import BaseModel

    from workers.run import Run

FOLDER = "journal"


@contextmanager
def noted[P: BaseModel](run: "Run[P]") -> Iterator[None]:
    """Note the beginning and, unless the process is killed, the end of a handler."""
    folder = run.services.settings.data_dir / FOLDER
    job = run.job
    begin: JsonObject = {
        "job": str(job.id),
        "token": job.token,
        "attempt": job.attempt,
        "slot": job.slot_id,
        "began": time.time(),
    }
    _append(folder, begin)
    try:
        yield
    finally:
        _append(folder, {"token": job.token, "ended": time.time()})


def _append(folder: Path, line: JsonObject) -> None:
    """One write a line: what was written before a SIGKILL is whole."""
    os.write(_file(folder), orjson.dumps(line) + b"\n")


@cache
def _file(folder: Path) -> int:
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{os.getpid()}-{time.time_ns()}.ndjson"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def read(data_dir: Path) -> tuple[SeenRun, ...]:
    """All runs that were noted, in the order of their beginning."""
    runs: dict[int, SeenRun] = {}
    for path in sorted((data_dir / FOLDER).glob("*.ndjson")):
        for line in path.read_bytes().splitlines():
            note = orjson.loads(line)
            if "began" in note:
                runs[note["token"]] = _begun(note)
            else:
                runs[note["token"]] = replace(runs[note["token"]], ended_at=_at(note["ended"]))
    return tuple(sorted(runs.values(), key=lambda run: run.began_at))


def _begun(note: JsonObject) -> SeenRun:
    return SeenRun(
        job_id=UUID(str(note["job"])),
        token=Token(int(str(note["token"]))),
        attempt=int(str(note["attempt"])),
        slot_id=SlotId(int(str(note["slot"]))),
        began_at=_at(float(str(note["began"]))),
    )


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
