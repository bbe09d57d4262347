"""Which faults strike when: drawn from a seed alone, so that the same seed tells the same story."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

SPACING_S = 1.6
# Where in the window Redis goes for good: late enough for the faults that need it.
GONE_FROM = 0.8


class Fault(StrEnum):
    """What can be done to a stack on purpose; each name is one of `--faults`."""

    KILL_SLOT = "kill-slot"
    KILL_SUPERVISOR = "kill-supervisor"
    KILL_TICK = "kill-tick"
    KILL_SEARCH = "kill-search"
    KILL_API = "kill-api"
    KILL_POSTGRES = "kill-postgres"
    KILL_VALKEY = "kill-valkey"
    STOP_SLOT = "stop-slot"
    STOP_SUPERVISOR = "stop-supervisor"
    STOP_TICK = "stop-tick"
    STOP_SEARCH = "stop-search"
    STOP_API = "stop-api"
    STOP_POSTGRES = "stop-postgres"
    STOP_VALKEY = "stop-valkey"
    DRAIN_SUPERVISOR = "drain-supervisor"
    ROLLING_RESTART = "rolling-restart"
    REDIS_FLUSH = "redis-flush"
    REDIS_DOWN = "redis-down"
    REDIS_REFUSES = "redis-refuses"
    REDIS_SLOW = "redis-slow"
    REDIS_PARTITION = "redis-partition"
    REDIS_GONE = "redis-gone"
    POSTGRES_RESTART = "postgres-restart"
    POSTGRES_CRASH = "postgres-crash"
    POSTGRES_BACKENDS = "postgres-backends"
    POSTGRES_SLOW = "postgres-slow"
    POSTGRES_PARTITION = "postgres-partition"
    HOST_PARTITION = "host-partition"
    DISK_FULL = "disk-full"


MEANINGS: dict[Fault, str] = {
    Fault.KILL_SLOT: "SIGKILL of a slot",
    Fault.KILL_SUPERVISOR: "SIGKILL of a supervisor, and so of its slots",
    Fault.KILL_TICK: "SIGKILL of the tick role",
    Fault.KILL_SEARCH: "SIGKILL of the search role",
    Fault.KILL_API: "SIGKILL of the API",
    Fault.KILL_POSTGRES: "SIGKILL of PostgreSQL's main process",
    Fault.KILL_VALKEY: "SIGKILL of Valkey",
    Fault.STOP_SLOT: "SIGSTOP of a slot, SIGCONT later: a zombie that writes late",
    Fault.STOP_SUPERVISOR: "SIGSTOP of a supervisor, whose slots go on unwatched",
    Fault.STOP_TICK: "SIGSTOP of the tick role",
    Fault.STOP_SEARCH: "SIGSTOP of the search role",
    Fault.STOP_API: "SIGSTOP of the API",
    Fault.STOP_POSTGRES: "SIGSTOP of PostgreSQL, every process of it",
    Fault.STOP_VALKEY: "SIGSTOP of Valkey",
    Fault.DRAIN_SUPERVISOR: "SIGTERM of a supervisor: it drains and is started again",
    Fault.ROLLING_RESTART: "SIGTERM of every role, one after the other",
    Fault.REDIS_FLUSH: "FLUSHALL",
    Fault.REDIS_DOWN: "Valkey shut down for some seconds",
    Fault.REDIS_REFUSES: "Valkey refuses writes: out of memory, or too few replicas",
    Fault.REDIS_SLOW: "every answer of Valkey comes late",
    Fault.REDIS_PARTITION: "Valkey's bytes stop flowing",
    Fault.REDIS_GONE: "Valkey shut down for the rest of the faults, back empty",
    Fault.POSTGRES_RESTART: "PostgreSQL restarted, fast",
    Fault.POSTGRES_CRASH: "PostgreSQL restarted, immediate: it recovers from its log",
    Fault.POSTGRES_BACKENDS: "pg_terminate_backend of every connection",
    Fault.POSTGRES_SLOW: "every answer of PostgreSQL comes late",
    Fault.POSTGRES_PARTITION: "PostgreSQL's bytes stop flowing",
    Fault.HOST_PARTITION: "one host loses PostgreSQL and Valkey, while its slots go on",
    Fault.DISK_FULL: "no space left where the index files are",
}

# How long it lasts, in seconds; what is over at once is not here. A stopped or parted owner must
# sometimes outlast `dead_after_s`, so that its jobs run elsewhere while it still believes in them.
_LASTS: dict[Fault, tuple[float, float]] = {
    Fault.STOP_SLOT: (1.0, 8.0),
    Fault.STOP_SUPERVISOR: (1.0, 8.0),
    Fault.STOP_TICK: (1.0, 5.0),
    Fault.STOP_SEARCH: (1.0, 5.0),
    Fault.STOP_API: (0.5, 3.0),
    Fault.STOP_POSTGRES: (0.5, 3.0),
    Fault.STOP_VALKEY: (0.5, 4.0),
    Fault.REDIS_DOWN: (1.0, 5.0),
    Fault.REDIS_REFUSES: (1.0, 5.0),
    Fault.REDIS_SLOW: (1.0, 5.0),
    Fault.REDIS_PARTITION: (1.0, 5.0),
    Fault.POSTGRES_SLOW: (1.0, 4.0),
    Fault.POSTGRES_PARTITION: (0.5, 3.0),
    Fault.HOST_PARTITION: (2.0, 8.0),
    Fault.DISK_FULL: (2.0, 6.0),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One fault: when it begins and how long it lasts, in seconds of the window.

    `pick` (0 to 1) chooses among equals, such as the slots that live then.
    """

    number: int
    at_s: float
    fault: Fault
    lasts_s: float
    pick: float


def draw_faults(seed: int, window_s: float, faults: Iterable[Fault] = tuple(Fault)) -> list[Step]:
    """Deal the faults over the window: every one once before any comes twice."""
    rng = random.Random(f"faults {seed}")  # noqa: S311 - drawn to be repeated
    chosen = sorted(set(faults))
    dealt = _deal([fault for fault in chosen if fault is not Fault.REDIS_GONE], window_s, rng)
    if Fault.REDIS_GONE in chosen:
        dealt = _while_redis_lives(dealt, GONE_FROM * window_s)
    drawn = [_step(at_s, fault, window_s, rng) for at_s, fault in dealt]
    if Fault.REDIS_GONE in chosen:
        drawn.append(_step(GONE_FROM * window_s, Fault.REDIS_GONE, window_s, rng))
    drawn.sort(key=lambda step: step.at_s)
    return [Step(n, s.at_s, s.fault, s.lasts_s, s.pick) for n, s in enumerate(drawn, start=1)]


def _deal(
    faults: Sequence[Fault], window_s: float, rng: random.Random
) -> list[tuple[float, Fault]]:
    """Faults at moments about `SPACING_S` apart, or further where there are few of them."""
    if not faults:
        return []
    count = max(1, int(window_s / SPACING_S))
    pause_s = window_s / count
    deck: list[Fault] = []
    dealt = []
    for place in range(count):
        if not deck:
            deck = list(faults)
            rng.shuffle(deck)
        dealt.append(((place + rng.random() * 0.8) * pause_s, deck.pop()))
    return dealt


def _while_redis_lives(
    dealt: Sequence[tuple[float, Fault]], gone_at_s: float
) -> list[tuple[float, Fault]]:
    """Swap what needs Redis after it has gone with something before that does not."""
    faults = [fault for _, fault in dealt]
    late = [n for n, (at_s, fault) in enumerate(dealt) if at_s >= gone_at_s and _needs_redis(fault)]
    free = [
        n for n, (at_s, fault) in enumerate(dealt) if at_s < gone_at_s and not _needs_redis(fault)
    ]
    for one, other in zip(late, reversed(free), strict=False):
        faults[one], faults[other] = faults[other], faults[one]
    return [(at_s, fault) for (at_s, _), fault in zip(dealt, faults, strict=True)]


def _needs_redis(fault: Fault) -> bool:
    return fault.value.startswith("redis-") or fault.value.endswith("-valkey")


def _step(at_s: float, fault: Fault, window_s: float, rng: random.Random) -> Step:
    shortest, longest = _LASTS.get(fault, (0.0, 0.0))
    lasts_s = min(rng.uniform(shortest, longest), max(0.0, window_s - at_s))
    if fault is Fault.REDIS_GONE:
        lasts_s = window_s - at_s
    return Step(0, round(at_s, 3), fault, round(lasts_s, 3), round(rng.random(), 6))
