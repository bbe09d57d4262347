"""How an attempt ends, and when a failed one runs again. Pure: no clock, no I/O."""

import random
from dataclasses import dataclass, field

from jobs.model import JsonObject, JsonValue, NewJob


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an attempt failed, kept with the job. `type` is a stable word that programs can match."""

    type: str
    detail: str
    retryable: bool = True
    after_s: float | None = None

    def as_json(self) -> JsonObject:
        """The stored and public form."""
        return {"type": self.type, "detail": self.detail, "retryable": self.retryable}


@dataclass(frozen=True, slots=True)
class Completed:
    """The handler returned; follow-up jobs are enqueued in the finishing transaction."""

    result: JsonValue
    follow_ups: tuple[NewJob, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed; the ledger retries or buries the job by its budget."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The attempt ended because the job was cancelled, or cancelled itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """The attempt is given back without counting as a failure (shutdown, a neighbour's crash)."""

    reason: str


# A server that asks for more than this is asked again all the same.
AFTER_S_MAX = 86_400.0

type Ending = Completed | Failed | Cancelled | Released


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter and a cap, in seconds.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: "full jitter"
    spreads jobs that failed together over the whole pause, and needs the fewest calls of them all.
    """

    base_s: float = 2.0
    cap_s: float = 3600.0

    def delay_s(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after so many failures (1 or more), uniform in (0, ceiling]."""
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(failures - 1, 30))
        return ceiling * (1.0 - rng.random())

    def pause_s(self, problem: Problem, failures: int, rng: random.Random) -> float:
        """Seconds to wait after a failure: what it asks for (`Retry-After`), which the cap of our
        own guesses does not shorten, else `delay_s`.
        """
        if problem.after_s is None:
            return self.delay_s(failures, rng)
        return min(max(0.0, problem.after_s), AFTER_S_MAX)
