"""Takes a file of any number of jobs to the API: in one piece if that is possible, else part by
part.

Whatever breaks on the way is sent again, and nothing of it is accepted twice: a whole batch has an
Idempotency-Key, a part is known by the lines that it holds.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import typer

from cli.client import Api, ApiError, Document
from cli.output import Meter
from cli.patience import persistently

NDJSON: Mapping[str, str] = {"Content-Type": "application/x-ndjson"}
_MIB = 1024 * 1024
# What the API takes in one piece.
WHOLE_JOBS = 100_000
WHOLE_BYTES = 512 * _MIB
# Small enough that a broken connection costs little, large enough that parts cost nothing.
PART_JOBS = 20_000
PART_BYTES = 32 * _MIB
_CHUNK_BYTES = 256 * 1024
# A part may wait for others, and the queue for room.
PATIENCE_S = 300.0
_IN_MEMORY_BYTES = 8 * _MIB


class UploadBroken(ApiError):
    """A part was refused: which lines of the file are to blame, and how to go on."""

    def __init__(self, error: ApiError, batch_id: str, lines_before: int) -> None:
        problem = dict(error.problem)
        problem["errors"] = [
            {**entry, "line": entry["line"] + lines_before} if "line" in entry else entry
            for entry in error.problem.get("errors") or ()
        ]
        if problem["errors"]:
            problem["detail"] = "a part was refused, those before it were accepted"
        super().__init__(error.status, problem)
        advice = (
            f"batch {batch_id} stays open: go on with --resume {batch_id}, or end it with "
            f"`xnai batch cancel {batch_id}`"
        )
        self.args = (f"{self.args[0]}; {advice}",)


@dataclass(slots=True)
class Part:
    """Some whole lines of a file."""

    first_line: int
    lines: int = 0
    jobs: int = 0
    content: bytearray = field(default_factory=bytearray)

    @property
    def name(self) -> str:
        """Tells which lines these are: the same file gives the same parts."""
        return f"lines-{self.first_line}-{self.first_line + self.lines - 1}"

    @property
    def is_full(self) -> bool:
        """Whether it goes out now."""
        return self.jobs >= PART_JOBS or len(self.content) >= PART_BYTES

    def add(self, line: bytes) -> None:
        """Take a line."""
        self.content += line
        self.lines += 1
        self.jobs += bool(line.strip())


@dataclass(slots=True)
class Source:
    """A file of jobs, opened. `is_whole`: the API takes it in one piece, read from `head`.

    Standard input can be read once: its head is laid aside until its size is known.
    """

    head: BinaryIO
    rest: BinaryIO | None
    is_whole: bool

    def chunks(self) -> Iterator[bytes]:
        """All of a whole source, from the beginning, as often as it takes."""
        self.head.seek(0)
        return iter(lambda: self.head.read(_CHUNK_BYTES), b"")

    def parts(self) -> Iterator[Part]:
        """The parts of the source."""
        self.head.seek(0)
        part = Part(1)
        for line in chain(self.head, self.rest or ()):
            part.add(line)
            if part.is_full:
                yield part
                part = Part(part.first_line + part.lines)
        if part.jobs:
            yield part


@contextmanager
def opened(file: Path) -> Iterator[Source]:
    """The file, or standard input for `-`."""
    if str(file) == "-":
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as aside:
            head: BinaryIO = aside  # type: ignore[assignment] # it is one in all that matters
            yield Source(head, sys.stdin.buffer, is_whole=_fits(sys.stdin.buffer, head))
        return
    if not file.exists() or file.is_dir():
        raise typer.BadParameter(f"{file} is no file: give NDJSON, one job a line, or -")
    with file.open("rb") as stream:
        if stream.seekable():
            yield Source(stream, None, is_whole=_fits(stream))
            return
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as aside:
            head = aside  # type: ignore[assignment] # as above
            yield Source(head, stream, is_whole=_fits(stream, head))


def _fits(stream: BinaryIO, aside: BinaryIO | None = None) -> bool:
    """Read until it is clear whether the API takes all of it in one piece."""
    jobs = size_bytes = 0
    for line in stream:
        if aside is not None:
            aside.write(line)
        jobs += bool(line.strip())
        size_bytes += len(line)
        if jobs > WHOLE_JOBS or size_bytes > WHOLE_BYTES:
            return False
    return True


def submit(api: Api, source: Source, key: str, bar: Meter) -> Document:
    """Submit all jobs of the source as one batch; the same key again is the same batch."""
    if source.is_whole:
        bar.show("uploading")
        return persistently(partial(_submit_whole, api, source, key), PATIENCE_S)
    headers = {"Idempotency-Key": key}
    opening = partial(api.post, "/v1/batches", {"state": "open"}, headers=headers)
    return resume(api, persistently(opening)["id"], source, bar)


def _submit_whole(api: Api, source: Source, key: str) -> Document:
    headers = {**NDJSON, "Idempotency-Key": key}
    return api.post("/v1/batches", content=source.chunks(), headers=headers)


def resume(api: Api, batch_id: str, source: Source, bar: Meter) -> Document:
    """Append the parts of the source that the batch does not have, and seal it."""
    known = _known_parts(api, batch_id)
    done = 0
    for part in source.parts():
        if part.name not in known:
            try:
                append(api, batch_id, part, name=part.name)
            except ApiError as error:
                raise UploadBroken(error, batch_id, part.first_line - 1) from error
        done += part.jobs
        bar.show(f"uploading to {batch_id}", done=done)
    return persistently(partial(api.post, f"/v1/batches/{batch_id}/seal"))


def _known_parts(api: Api, batch_id: str) -> set[str]:
    path = f"/v1/batches/{batch_id}/parts"
    rows = persistently(lambda: list(api.pages(path, params={}, most=1_000_000)))
    return {row["part"] for row in rows}


def append(api: Api, batch_id: str, part: Part, *, name: str | None) -> Document:
    """Append one part; without a name it is known by its content."""
    return persistently(
        partial(
            api.post,
            f"/v1/batches/{batch_id}/jobs",
            params={"part": name} if name else {},
            content=bytes(part.content),
            headers=NDJSON,
        ),
        PATIENCE_S,
    )
