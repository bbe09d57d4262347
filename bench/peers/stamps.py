"""One file of numbers that the harness and the handlers of every system share by mapping it: when
job number n was offered, accepted, started, and started again. Nanoseconds of the machine's
monotonic clock.

A handler writes eight bytes; nothing else of the measurement runs inside a system under test.
"""

import mmap
import struct
import time
from pathlib import Path
from typing import Literal

type Since = Literal["offered", "accepted"]

WORKERS_MAX = 16
_READY = WORKERS_MAX
_HOLD = 2 * WORKERS_MAX
_HEADER = 2 * WORKERS_MAX + 1
_WORD = 8


class Stamps:
    """The mapped file; `worker` is the place of this process among the counters."""

    def __init__(self, path: Path, *, worker: int = 0) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._words = memoryview(self._map).cast("q")
        self.jobs = (len(self._words) - _HEADER) // 4
        self._worker = worker

    @classmethod
    def create(cls, path: Path, jobs: int) -> "Stamps":
        """Make the file for that many jobs, all zero."""
        with path.open("wb") as file:
            file.truncate((_HEADER + 4 * jobs) * _WORD)
        return cls(path)

    def begin(self, number: int) -> bool:
        """The first line of every handler; tells it to hold the job until it is killed."""
        now = time.monotonic_ns()
        words = self._words
        place = _HEADER + 2 * self.jobs + number
        is_first = words[place] == 0
        words[place if is_first else place + self.jobs] = now
        words[self._worker] += 1
        return is_first and words[_HOLD] != 0

    def offered(self, numbers: range) -> None:
        """These jobs are about to be enqueued."""
        self._fill(_HEADER, numbers)

    def accepted(self, numbers: range) -> None:
        """They are: their commit, or where there is none the call, has returned. Said once."""
        if self._words[_HEADER + self.jobs + numbers.start] == 0:
            self._fill(_HEADER + self.jobs, numbers)

    def _fill(self, first: int, numbers: range) -> None:
        now = time.monotonic_ns()
        if len(numbers) == 1:
            self._words[first + numbers.start] = now
            return
        many = memoryview(struct.pack("q", now) * len(numbers)).cast("q")
        self._words[first + numbers.start : first + numbers.stop] = many

    def ready(self) -> None:
        """Say that this worker is about to ask for jobs."""
        self._words[_READY + self._worker] = 1

    def hold(self, *, on: bool) -> None:
        """Let every first run of a job last for ever."""
        self._words[_HOLD] = int(on)

    def clear(self) -> None:
        """Forget everything."""
        self._map[:] = bytes(len(self._map))

    def is_ready(self, worker: int) -> bool:
        """Whether this worker has said so."""
        return bool(self._words[_READY + worker])

    def done(self) -> list[int]:
        """How many times each worker has begun a job."""
        return list(self._words[:WORKERS_MAX])

    def total(self) -> int:
        """How many times any has."""
        return sum(self._words[:WORKERS_MAX])

    def started_ns(self, number: int) -> int:
        """When the job was first begun; 0 for never."""
        return self._words[_HEADER + 2 * self.jobs + number]

    def again_ns(self, number: int) -> int:
        """When it was last begun again; 0 for never."""
        return self._words[_HEADER + 3 * self.jobs + number]

    def waited_ms(self, numbers: range, *, since: Since) -> list[float]:
        """Until the handler's first line; a job that was begun before it was accepted waited 0."""
        words = self._words
        first = _HEADER if since == "offered" else _HEADER + self.jobs
        waited = []
        for number in numbers:
            began_ns = words[first + number]
            started_ns = words[_HEADER + 2 * self.jobs + number]
            if began_ns and started_ns:
                waited.append(max(0, started_ns - began_ns) / 1e6)
        return waited

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._map.close()
