"""UUIDv7 identifiers (RFC 9562 §5.7), strictly increasing within a process.

Ids sort by creation, which keeps the primary keys' B-trees append-only. Not secret: never use one
as a credential.
"""

import secrets
import threading
import time
import uuid
from array import array

_RANDOM_BITS = 74  # rand_a (12) and rand_b (62) together, used as one counter (§6.2, method 2)
_STEP_BYTES = 4
_VERSION = 0x7 << 76
_VARIANT = 0b10 << 62
_LOW_62 = (1 << 62) - 1

_lock = threading.Lock()
_last_ms = 0
_counter = 0


def uuid7() -> uuid.UUID:
    """Return one identifier, greater than every earlier one of this process."""
    return uuid7s(1)[0]


def uuid7s(count: int) -> list[uuid.UUID]:
    """Return `count` identifiers in increasing order, as for one bulk insert."""
    return [uuid.UUID(int=number) for number in _take(count)]


def uuid7s_as_bytes(count: int) -> list[bytes]:
    """The same as 16 bytes each: for rows that are written in binary, by the ten thousand."""
    return [number.to_bytes(16) for number in _take(count)]


def _take(count: int) -> list[int]:
    """Count up by random steps, in the clock's millisecond or later ones."""
    global _last_ms, _counter  # noqa: PLW0603 - the generator's whole state, guarded by _lock
    # One system call for all steps.
    steps = array("I", secrets.token_bytes(count * _STEP_BYTES))
    with _lock:
        _follow_clock()
        taken: list[int] = []
        for step in steps:
            _counter += 1 + step
            if _counter >> _RANDOM_BITS:
                _last_ms += 1
                _counter = secrets.randbits(_RANDOM_BITS - 1)
            rand_a, rand_b = _counter >> 62, _counter & _LOW_62
            taken.append(_last_ms << 80 | _VERSION | rand_a << 64 | _VARIANT | rand_b)
    return taken


def _follow_clock() -> None:
    """Move the clock part forward once a batch; a clock that stepped back is ignored."""
    global _last_ms, _counter  # noqa: PLW0603 - see _take
    now_ms = time.time_ns() // 1_000_000
    if now_ms > _last_ms:
        _last_ms = now_ms
        # The top bit stays free, so that a batch has room to count up within its millisecond.
        _counter = secrets.randbits(_RANDOM_BITS - 1)
