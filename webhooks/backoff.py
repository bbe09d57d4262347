"""When a delivery that was not accepted is tried again, and a lane that fails is probed. Pure: no
clock, no I/O.

The schedule is the one that Standard Webhooks 1.0.0 recommends ("Deliverability and reliability").
"""

import random

# Seconds before the first, second, … attempt, each counted from the one before it.
DELAYS_S = (
    0.0,
    5.0,
    5 * 60.0,
    30 * 60.0,
    2 * 3600.0,
    5 * 3600.0,
    10 * 3600.0,
    14 * 3600.0,
    20 * 3600.0,
    24 * 3600.0,
)
# Only ever later, so that a receiver is never asked earlier than the schedule says.
JITTER = 0.1
# So many failures in a row open a lane's circuit.
OPEN_AFTER = 5
PROBE_FIRST_S = 5.0
PROBE_LAST_S = 15 * 60.0
_DOUBLINGS_MAX = 10


def delay_s(failures: int, rng: random.Random, retry_after_s: float | None = None) -> float | None:
    """Seconds until the next attempt after so many failures; None when there is none any more.

    What the receiver asked for in `Retry-After` counts if it is more than the schedule's.
    """
    if failures >= len(DELAYS_S):
        return None
    planned_s = DELAYS_S[failures] * (1.0 + JITTER * rng.random())
    return max(planned_s, retry_after_s or 0.0)


def probe_in_s(failures: int, rng: random.Random, retry_after_s: float = 0.0) -> float | None:
    """Seconds until a lane that failed so often in a row may be probed; None while it is closed.

    They double up to a quarter of an hour, so that a receiver that is back is found soon. What it
    asked for in `Retry-After` opens the circuit of its lane at once.
    """
    if failures < OPEN_AFTER:
        return retry_after_s or None
    doublings = min(failures - OPEN_AFTER, _DOUBLINGS_MAX)
    pause_s = min(PROBE_FIRST_S * 2.0**doublings, PROBE_LAST_S) * (1.0 + JITTER * rng.random())
    return max(pause_s, retry_after_s)
