"""Checked jobs of an upload, waiting to be written: payloads as JSON text, everything else aside.

A spool holds a bounded part of the payloads in memory and the rest in a file without a name, which
a crash leaves no trace of; and no connection. Knows nothing of HTTP.
"""

import errno
import pickle
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import orjson

from jobs.errors import Refusal, SpoolDiskFull
from jobs.intake import Entry
from jobs.kinds import Kind
from jobs.model import DEFAULT_PRIORITY, NewJob

if TYPE_CHECKING:
    from typing import BinaryIO

PAYLOADS_IN_MEMORY_BYTES = 32 * 1024 * 1024
# What a job costs in memory beside what is written out: its entries of lists.
_ENTRY_BYTES = 64
_COUNTED_AT_ONCE_BYTES = 256 * 1024
_WRITTEN_AT_ONCE_BYTES = 256 * 1024
_READ_AT_ONCE = 1000
_READ_AT_ONCE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Terms:
    """What many jobs of an upload have in common: all of a plain job but its payload and name."""

    kind: Kind
    priority: int = DEFAULT_PRIORITY
    max_attempts: int | None = None
    timeout_s: float | None = None
    tags: tuple[str, ...] = ()
    callback_url: str | None = None

    def as_job(self) -> NewJob:
        """A job on these terms, its payload still empty."""
        return NewJob(
            self.kind.name,
            {},
            priority=self.priority,
            max_attempts=self.max_attempts,
            timeout_s=self.timeout_s,
            tags=self.tags,
            callback_url=self.callback_url,
        )


class Room:
    """Where a spool takes its bytes from. This one has room for anything: `jobs.spool_room` has the
    one that uploads share.
    """

    def take_memory(self, size_bytes: int) -> None:
        """Take memory or raise SpoolsFull."""

    def give_memory(self, size_bytes: int) -> None:
        """Give memory back."""

    def has_memory(self, size_bytes: int) -> bool:
        """Whether payloads may take as much memory, or go to disk."""
        del size_bytes
        return True

    def take_disk(self, size_bytes: int) -> None:
        """Take disk space or raise SpoolsFull."""

    def folder(self) -> Path:
        """Where the file goes."""
        return Path(tempfile.gettempdir())


class Spool:
    """Jobs in the order in which they came. Close it, or its file stays until it is collected.

    A job is plain, told by its `Terms`, when nothing can hold it back and it is tied to no other;
    what others say beyond that lies behind their payloads. Raises SpoolsFull and SpoolDiskFull
    while it grows. `entries` are the jobs once `jobs.bulk.prepare` has looked at them.
    """

    def __init__(
        self, room: Room | None = None, in_memory_bytes: int = PAYLOADS_IN_MEMORY_BYTES
    ) -> None:
        self._room = room or Room()
        self._in_memory_bytes = in_memory_bytes
        self.terms: list[Terms] = []
        self.custom_ids: list[str | None] = []
        self.entries: list[Entry] | None = None
        self._terms_of_others: dict[str, Terms] = {}
        self._sizes = array("I")
        self._sizes_behind = array("I")
        self._unwritten = bytearray()
        self._uncounted_bytes = 0
        # Closed by __exit__.
        self._payloads: BinaryIO = BytesIO()
        self._is_on_disk = False

    def __len__(self) -> int:
        return len(self.terms)

    @property
    def is_plain(self) -> bool:
        """Whether all of it is."""
        return not self._terms_of_others

    @property
    def per_kind(self) -> Counter[str]:
        """How many jobs there are of each kind."""
        return Counter(terms.kind.name for terms in self.terms)

    @property
    def per_pool(self) -> Counter[str]:
        """How many jobs go to each pool."""
        return Counter(terms.kind.pool for terms in self.terms)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._payloads.close()

    def add(self, terms: Terms, custom_id: str | None, payload: bytes, behind: bytes = b"") -> None:
        """Take a plain job."""
        self.terms.append(terms)
        self.custom_ids.append(custom_id)
        self._sizes.append(len(payload))
        self._sizes_behind.append(len(behind))
        self._unwritten += payload
        self._unwritten += behind
        self._count(_ENTRY_BYTES + len(custom_id or ""))
        if len(self._unwritten) >= _WRITTEN_AT_ONCE_BYTES:
            self._write_out()

    def add_other(self, kind: Kind, job: NewJob, payload: bytes) -> None:
        """Take a job of any sort, whose own payload is left aside."""
        terms = self._terms_of_others.setdefault(kind.name, Terms(kind))
        self.add(terms, job.custom_id, payload, pickle.dumps(job, pickle.HIGHEST_PROTOCOL))

    def _count(self, size_bytes: int) -> None:
        self._uncounted_bytes += size_bytes
        if self._uncounted_bytes >= _COUNTED_AT_ONCE_BYTES:
            self._room.take_memory(self._uncounted_bytes)
            self._uncounted_bytes = 0

    def _write_out(self) -> None:
        size_bytes = len(self._unwritten)
        if not size_bytes:
            return
        if not self._is_on_disk:
            held_bytes = self._payloads.tell()
            fits = held_bytes + size_bytes <= self._in_memory_bytes
            if not (fits and self._room.has_memory(size_bytes)):
                self._move_to_disk(held_bytes)
        if self._is_on_disk:
            self._room.take_disk(size_bytes)
            self._write_to_disk(self._unwritten)
        else:
            self._room.take_memory(size_bytes)
            self._payloads.write(self._unwritten)
        self._unwritten.clear()

    def _move_to_disk(self, held_bytes: int) -> None:
        self._room.take_disk(held_bytes)
        held = self._payloads
        try:
            # Unbuffered, so that a full disk is told by the write and not by the close.
            self._payloads = tempfile.TemporaryFile(  # noqa: SIM115
                buffering=0, dir=self._room.folder()
            )
        except OSError as error:
            raise _disk_full(error) from error
        self._is_on_disk = True
        with held:
            held.seek(0)
            self._write_to_disk(held.read())
        self._room.give_memory(held_bytes)

    def _write_to_disk(self, content: bytes | bytearray) -> None:
        rest = memoryview(content)
        try:
            while rest:
                # A write may be short, as the last one that fits on a disk.
                rest = rest[self._payloads.write(rest) :]
        except OSError as error:
            raise _disk_full(error) from error
        finally:
            rest.release()

    def payloads(self) -> Iterator[list[bytes]]:
        """The payloads from the first one on, some at once: bounded in number and in bytes."""
        for pieces in self._pieces():
            yield [payload for payload, _ in pieces]

    def _pieces(self) -> Iterator[list[tuple[bytes, bytes]]]:
        self._write_out()
        self._payloads.seek(0)
        for sizes in _portions(zip(self._sizes, self._sizes_behind, strict=True)):
            yield _cut(self._payloads.read(sum(map(sum, sizes))), sizes)

    def as_jobs(self) -> list[NewJob]:
        """All of it as the ledger takes jobs of any sort."""
        found: list[NewJob] = []
        for pieces in self._pieces():
            for payload, behind in pieces:
                position = len(found)
                job = _unpacked(behind) if behind else self.terms[position].as_job()
                found.append(
                    replace(
                        job,
                        payload=orjson.loads(payload),
                        custom_id=self.custom_ids[position],
                    )
                )
        return found

    def positions_by_name(self) -> dict[str, int]:
        """Where each custom_id stands."""
        return {name: position for position, name in enumerate(self.custom_ids) if name is not None}

    def repeated_custom_ids(self) -> list[Refusal]:
        """The jobs whose name an earlier one has."""
        first: dict[str, int] = {}
        refusals: list[Refusal] = []
        for position, name in enumerate(self.custom_ids):
            if name is not None and first.setdefault(name, position) != position:
                detail = (
                    f"{name!r} names job {first[name]} already: custom_ids are unique in a batch"
                )
                refusals.append(Refusal(position, "/custom_id", detail))
        return refusals


def _disk_full(error: OSError) -> OSError | SpoolDiskFull:
    if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return error
    return SpoolDiskFull(
        "the disk that uploads are spooled to is full: free space in the data directory"
    )


def _unpacked(behind: bytes) -> NewJob:
    # Its own bytes, from a file without a name: nobody else has ever seen them.
    job: NewJob = pickle.loads(behind)  # noqa: S301
    return job


type _Sizes = tuple[int, int]


def _portions(sizes: Iterable[_Sizes]) -> Iterator[list[_Sizes]]:
    portion: list[_Sizes] = []
    size_bytes = 0
    for size in sizes:
        portion.append(size)
        size_bytes += sum(size)
        if len(portion) == _READ_AT_ONCE or size_bytes >= _READ_AT_ONCE_BYTES:
            yield portion
            portion, size_bytes = [], 0
    if portion:
        yield portion


def _cut(text: bytes, sizes: Sequence[_Sizes]) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    start = 0
    for size, behind in sizes:
        middle = start + size
        found.append((text[start:middle], text[middle : middle + behind]))
        start = middle + behind
    return found
