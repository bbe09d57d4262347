"""Shared memory between a slot and its supervisor: which jobs are started, since when, until when.

The slot writes, the supervisor reads; no locks, no system calls, so that a slot stuck in native
code is still told apart from an idle one. Times are CLOCK_MONOTONIC nanoseconds, the same in both
processes.
"""

import mmap
import os
import struct
import time
from typing import NamedTuple
from uuid import UUID

ENTRIES_MAX = 2048

_HEADER = struct.Struct("<QQ")  # when the slot's event loop last turned, how many jobs had ended
_ENTRY = struct.Struct("<16sqQQ?")  # job id, token, started, deadline, exclusive
# A byte an entry, side by side: an idle slot's board is read with one look for a 1.
_FLAGS = _HEADER.size
_FLAGS_END = _FLAGS + ENTRIES_MAX
_STRIDE = _ENTRY.size + (-_ENTRY.size) % 8
_SIZE = _FLAGS_END + ENTRIES_MAX * _STRIDE


class Started(NamedTuple):
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
        job_id, token, started_ns, deadline_ns, exclusive = started
        at = _FLAGS_END + entry * _STRIDE
        _ENTRY.pack_into(self._memory, at, job_id.bytes, token, started_ns, deadline_ns, exclusive)
        self._memory[_FLAGS + entry] = 1
        return entry

    def clear(self, entry: int) -> None:
        """Show that the job of this entry has ended."""
        self._memory[_FLAGS + entry] = 0
        self._free.append(entry)
        self._ended += 1

    def read(self) -> list[Started]:
        """The started jobs. An entry caught between two jobs is left out or is the later one."""
        found = []
        flag = self._memory.find(b"\x01", _FLAGS, _FLAGS_END)
        while flag != -1:
            at = _FLAGS_END + (flag - _FLAGS) * _STRIDE
            job_id, *rest = _ENTRY.unpack_from(self._memory, at)
            if self._memory[flag]:
                found.append(Started(UUID(bytes=job_id), *rest))
            flag = self._memory.find(b"\x01", flag + 1, _FLAGS_END)
        return found

    @property
    def is_busy(self) -> bool:
        """Whether any job is shown as started."""
        return self._memory.find(b"\x01", _FLAGS, _FLAGS_END) != -1
