"""Shared memory between a slot and its supervisor: which jobs are started, since when, until when.

The slot writes, the supervisor reads; no locks, no system calls, so that a slot stuck in native
code is still told apart from an idle one. Times are CLOCK_MONOTONIC nanoseconds, the same in both
processes.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass
from uuid import UUID

ENTRIES_MAX = 2048

_HEADER = struct.Struct("<QQ")  # when the slot's event loop last turned, how many jobs had ended
_ENTRY = struct.Struct("<16sqQQ?")  # job id, token, started, deadline, exclusive
_FLAG_BYTES = 8
_STRIDE = _FLAG_BYTES + _ENTRY.size + (-_ENTRY.size) % 8
_SIZE = _HEADER.size + ENTRIES_MAX * _STRIDE


@dataclass(frozen=True, slots=True)
class Started:
    """A job that a slot is running: times in CLOCK_MONOTONIC nanoseconds."""

    job_id: UUID
    token: int
    started_ns: int
    deadline_ns: int
    exclusive: bool


class Board:
    """The page of one slot. Created by the supervisor, attached by the slot through an inherited
    fd.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, _SIZE)
        self._free = list(range(ENTRIES_MAX - 1, -1, -1))
        self._ended = 0

    @classmethod
    def create(cls) -> "Board":
        """Anonymous memory that goes with its last holder."""
        fd = os.memfd_create("xnai-board", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        return cls(fd)

    def close(self) -> None:
        """Unmap the page and close the descriptor."""
        self._memory.close()
        os.close(self.fd)

    def turn(self) -> None:
        """Note that the slot's event loop is turning."""
        _HEADER.pack_into(self._memory, 0, time.monotonic_ns(), self._ended)

    @property
    def turned_ns(self) -> int:
        """When the slot's event loop last turned; 0 before its first turn."""
        turned, _ = _HEADER.unpack_from(self._memory, 0)
        return int(turned)

    @property
    def ended(self) -> int:
        """How many jobs the slot had run when its loop last turned."""
        _, ended = _HEADER.unpack_from(self._memory, 0)
        return int(ended)

    def put(self, started: Started) -> int:
        """Show a job as started; returns the entry to clear. The caller runs fewer than
        ENTRIES_MAX.
        """
        entry = self._free.pop()
        at = _HEADER.size + entry * _STRIDE
        _ENTRY.pack_into(
            self._memory,
            at + _FLAG_BYTES,
            started.job_id.bytes,
            started.token,
            started.started_ns,
            started.deadline_ns,
            started.exclusive,
        )
        self._memory[at] = 1
        return entry

    def clear(self, entry: int) -> None:
        """Show that the job of this entry has ended."""
        self._memory[_HEADER.size + entry * _STRIDE] = 0
        self._free.append(entry)
        self._ended += 1

    def read(self) -> list[Started]:
        """The started jobs. An entry caught between two jobs is left out or is the later one."""
        found = []
        for entry, is_taken in enumerate(self._memory[_HEADER.size :: _STRIDE]):
            at = _HEADER.size + entry * _STRIDE
            if is_taken:
                job_id, *rest = _ENTRY.unpack_from(self._memory, at + _FLAG_BYTES)
                if self._memory[at]:
                    found.append(Started(UUID(bytes=job_id), *rest))
        return found

    @property
    def is_busy(self) -> bool:
        """Whether any job is shown as started."""
        return any(self._memory[_HEADER.size :: _STRIDE])
