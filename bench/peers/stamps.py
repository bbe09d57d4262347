"""One file of numbers that the harness and the handlers of every system share by mapping it: when
job number n was enqueued, started, and started again. Nanoseconds of the machine's monotonic clock.

A handler writes eight bytes; nothing else of the measurement runs inside a system under test.
"""

import mmap
import struct
import time
from pathlib import Path

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
        self.jobs = (len(self._words) - _HEADER) // 3
        self._worker = worker

    @classmethod
    def create(cls, path: Path, jobs: int) -> "Stamps":
        """Make the file for that many jobs, all zero."""
        with path.open("wb") as file:
            file.truncate((_HEADER + 3 * jobs) * _WORD)
        return cls(path)

    def begin(self, number: int) -> bool:
        """The first line of every handler; tells it to hold the job until it is killed."""
        now = time.monotonic_ns()
        words = self._words
        place = _HEADER + self.jobs + number
        is_first = words[place] == 0
        words[place if is_first else place + self.jobs] = now
        words[self._worker] += 1
        return is_first and words[_HOLD] != 0

    def enqueued(self, number: int) -> None:
        """The enqueue of this job has returned: from here its latency counts."""
        self._words[_HEADER + number] = time.monotonic_ns()

    def enqueued_many(self, numbers: range) -> None:
        """The same for a bulk, which returns once for all."""
        now = time.monotonic_ns()
        first = _HEADER + numbers.start
        self._words[first : first + len(numbers)] = memoryview(
            struct.pack("q", now) * len(numbers)
        ).cast("q")

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
        return self._words[_HEADER + self.jobs + number]

    def again_ns(self, number: int) -> int:
        """When it was last begun again; 0 for never."""
        return self._words[_HEADER + 2 * self.jobs + number]

    def latencies_ms(self, numbers: range) -> list[float]:
        """From the return of the enqueue to the handler's first line; a job begun before that
        waited 0.
        """
        words = self._words
        waited = []
        for number in numbers:
            enqueued, started = words[_HEADER + number], words[_HEADER + self.jobs + number]
            if enqueued and started:
                waited.append(max(0, started - enqueued) / 1e6)
        return waited

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._map.close()
