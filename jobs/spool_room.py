"""What the uploads of one process may hold together, in memory and on disk, however many come at
once.

Every spool takes its room from here as it grows and gives it back when it is closed. Knows nothing
of HTTP.
"""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from jobs.bulk import prepare
from jobs.errors import SpoolsFull
from jobs.kinds import KindRegistry
from jobs.spool import Room, Spool

_MIB = 1024 * 1024
UPLOADS_MAX = 32
MEMORY_BYTES = 128 * _MIB
DISK_BYTES = 2048 * _MIB
# Beyond this many jobs a spool waits for its turn: two writers keep the one interpreter busy, and
# more would only hold connections that other requests need.
SMALL_JOBS = 1000
WRITERS = 2


@dataclass(slots=True)
class SpoolRoom:
    """The room of one process. `folder` is where payloads go that memory does not hold."""

    folder: Path
    uploads_max: int = UPLOADS_MAX
    memory_bytes: int = MEMORY_BYTES
    disk_bytes: int = DISK_BYTES
    uploads: int = 0
    in_memory_bytes: int = 0
    on_disk_bytes: int = 0
    _writers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(WRITERS))
    # A spool that is not plain becomes one object a job: one such at a time.
    _objects: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))

    @contextmanager
    def spool(self) -> Iterator[Spool]:
        """A spool for one upload; raises SpoolsFull when too many are under way, and so does the
        spool when there is no room for what it takes.
        """
        if self.uploads >= self.uploads_max:
            message = f"{self.uploads} uploads are under way, which is all that are taken at once"
            raise SpoolsFull(message)
        self.uploads += 1
        share = _Share(self)
        try:
            with Spool(share) as spool:
                yield spool
        finally:
            self.uploads -= 1
            share.give_back()

    @asynccontextmanager
    async def turn(self, spool: Spool, kinds: KindRegistry) -> AsyncIterator[None]:
        """Wait until a big spool may be written, and prepare it; take no connection before. Raises
        JobsRefused.
        """
        if len(spool) <= SMALL_JOBS:
            yield
        elif spool.is_plain:
            async with self._writers:
                yield
        else:
            async with self._objects, self._writers:
                await prepare(spool, kinds)
                yield
                spool.entries = None


@dataclass(slots=True)
class _Share(Room):
    """What one spool has taken of the room."""

    room: SpoolRoom
    in_memory_bytes: int = 0
    on_disk_bytes: int = 0

    def take_memory(self, size_bytes: int) -> None:
        if self.room.in_memory_bytes + size_bytes > self.room.memory_bytes:
            message = "the uploads under way fill the memory that is kept for them"
            raise SpoolsFull(message)
        self.room.in_memory_bytes += size_bytes
        self.in_memory_bytes += size_bytes

    def has_memory(self, size_bytes: int) -> bool:
        # Half of it is left to what cannot go to disk: terms and names.
        return self.room.in_memory_bytes + size_bytes <= self.room.memory_bytes // 2

    def give_memory(self, size_bytes: int) -> None:
        self.room.in_memory_bytes -= size_bytes
        self.in_memory_bytes -= size_bytes

    def take_disk(self, size_bytes: int) -> None:
        if self.room.on_disk_bytes + size_bytes > self.room.disk_bytes:
            message = "the uploads under way fill the disk space that is kept for them"
            raise SpoolsFull(message)
        self.room.on_disk_bytes += size_bytes
        self.on_disk_bytes += size_bytes

    def folder(self) -> Path:
        return self.room.folder

    def give_back(self) -> None:
        self.give_memory(self.in_memory_bytes)
        self.room.on_disk_bytes -= self.on_disk_bytes
        self.on_disk_bytes = 0


def folder_for(data_dir: Path) -> Path:
    """The data directory, which lies on a disk; `/tmp` is memory on many machines. Where the data
    directory cannot be written, the system's own place.
    """
    try:
        with tempfile.TemporaryFile(dir=data_dir):
            return data_dir
    except OSError:
        return Path(tempfile.gettempdir())
