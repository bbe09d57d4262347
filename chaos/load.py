"""What the clients of a run ask for, and when: drawn from a seed alone, as its faults are.

Pure: `chaos.clients` sends it.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from jobs.model import JsonValue

COLLECTION = "chaos"
# Concurrency keys and how many of each may run: set before the first job comes.
LIMITS: dict[str, int] = {"narrow": 1, "pair": 2, "wide": 5}
# How often each is asked for: what goes one by one must be done before the time is over.
_KEYS = ("narrow", "pair", "pair", *("wide",) * 6)
SINGLE_SHARE = 0.15
JSON_SHARE = 0.25
JSON_JOBS = 40
NDJSON_JOBS = 250
UNIQUE_SHARE = 0.25
DOCUMENTS_MAX = 8
JOBS_A_DOCUMENT = 500
SCHEDULES = 2

type Body = dict[str, JsonValue]
type What = Literal["job", "json", "ndjson", "document", "cancel", "retry", "cancel-batch"]


@dataclass(frozen=True, slots=True)
class Act:
    """One request of a client, `at_s` into the window.

    `jobs` are the bodies to submit; `target` names the act whose job or batch is meant, and
    `parents` those whose jobs the job depends on.
    """

    number: int
    at_s: float
    what: What
    jobs: tuple[Body, ...] = ()
    target: int | None = None
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """Everything that a run asks for."""

    seed: int
    acts: tuple[Act, ...]
    schedules: tuple[Body, ...] = field(default=())

    @property
    def jobs(self) -> int:
        """How many jobs are submitted, those of schedules not counted."""
        return sum(len(act.jobs) for act in self.acts)


def draw_load(
    seed: int, jobs: int, window_s: float, *, callback_url: str, with_documents: bool
) -> Load:
    """Spread `jobs` jobs over the window, with cancels and retries of some."""
    rng = random.Random(f"load {seed}")  # noqa: S311 - drawn to be repeated
    drawn = list(_submits(rng, jobs, callback_url))
    if with_documents:
        drawn += [("document", (_document(rng, n),)) for n in range(_documents(jobs))]
    rng.shuffle(drawn)
    pause_s = window_s / max(1, len(drawn))
    submits = [
        Act(n, round((n + rng.random()) * pause_s, 3), what, bodies)
        for n, (what, bodies) in enumerate(drawn)
    ]
    submits = [_with_parents(act, submits, rng) for act in submits]
    later = list(_interventions(rng, submits, window_s))
    acts = sorted([*submits, *later], key=lambda act: act.at_s)
    return Load(seed, tuple(acts), tuple(_schedule(n) for n in range(SCHEDULES)))


def _documents(jobs: int) -> int:
    return min(DOCUMENTS_MAX, max(2, jobs // JOBS_A_DOCUMENT))


def _submits(
    rng: random.Random, jobs: int, callback_url: str
) -> Iterator[tuple[What, tuple[Body, ...]]]:
    """Single jobs and batches, which have `jobs` jobs together."""
    single = max(1, int(jobs * SINGLE_SHARE))
    in_json = int(jobs * JSON_SHARE)
    for _ in range(single):
        # Not in batches: a job that is there already would be none of the batch's.
        unique: Body = {"unique": _unique(rng)} if rng.random() < UNIQUE_SHARE else {}
        yield "job", (_job(rng, callback_url) | unique,)
    for size in _parts(in_json, JSON_JOBS):
        yield "json", _batch(rng, size, callback_url)
    for size in _parts(jobs - single - in_json, NDJSON_JOBS):
        yield "ndjson", _batch(rng, size, callback_url)


def _parts(total: int, size: int) -> Iterator[int]:
    for done in range(0, total, size):
        yield min(size, total - done)


def _job(rng: random.Random, callback_url: str) -> Body:
    """One job's body: mostly quick and plain, some of everything that a job can be."""
    body = rng.choices((_effect, _effect_alone, _probe, _misbehaving), weights=(70, 6, 21, 3))[0](
        rng
    )
    additions: tuple[tuple[float, Callable[[], Body]], ...] = (
        (0.30, lambda: {"priority": rng.randint(0, 9)}),
        (0.10, lambda: {"concurrency_key": rng.choice(_KEYS)}),
        (0.10, lambda: {"delay_s": round(rng.uniform(0.1, 4.0), 2)}),
        (0.08, lambda: {"callback_url": f"{callback_url}/job"}),
        (0.02, lambda: {"max_attempts": rng.randint(1, 3)}),
        (0.10, lambda: {"tags": [f"tag-{rng.randint(0, 3)}"]}),
    )
    for share, addition in additions:
        if rng.random() < share:
            body |= addition()
    return body


def _effect(rng: random.Random) -> Body:
    outcome = rng.choices(("succeed", "retry", "fail"), weights=(88, 9, 3))[0]
    work_s = rng.choices((0.0, 0.05, 0.5, 4.0), weights=(60, 34, 5, 1))[0]
    payload: Body = {"work_s": work_s, "outcome": outcome, "attempts": rng.randint(1, 3)}
    return {"kind": "effect", "payload": payload}


def _effect_alone(rng: random.Random) -> Body:
    payload: Body = {"work_s": rng.choice((0.0, 0.02, 0.1))}
    return {"kind": "effect-alone", "payload": payload}


def _probe(rng: random.Random) -> Body:
    outcome = rng.choices(("succeed", "retry", "fail"), weights=(92, 4, 4))[0]
    return {"kind": "probe", "payload": {"echo": rng.randint(0, 99), "outcome": outcome}}


def _misbehaving(rng: random.Random) -> Body:
    """A job that takes its slot with it, once; few, since each costs a start of a slot."""
    outcome = rng.choices(("crash", "crash-late", "hang", "retry"), weights=(1, 1, 1, 27))[0]
    body: Body = {
        "kind": rng.choice(("effect", "effect-alone", "effect-alone")),
        "payload": {"outcome": outcome, "attempts": 1, "work_s": 0.0},
    }
    return body | {"timeout_s": 1.0} if outcome == "hang" else body


def _unique(rng: random.Random) -> Body:
    key, until = f"unique-{rng.randint(0, 40)}", rng.choice(("started", "finished", "time"))
    unique: Body = {"key": key, "until": until}
    return unique | {"for_s": 5.0} if until == "time" else unique


def _batch(rng: random.Random, size: int, callback_url: str) -> tuple[Body, ...]:
    """Jobs of one batch, some of which wait for others of it by `custom_id`."""
    bodies = [_job(rng, callback_url) for _ in range(size)]
    for n, body in enumerate(bodies):
        body["custom_id"] = f"line-{n}"
        if n and rng.random() < 0.06:
            chosen = sorted({rng.randrange(n) for _ in range(rng.randint(1, 3))})
            body["depends_on"] = [f"line-{parent}" for parent in chosen]
            body["on_parent_failure"] = rng.choice(("run", "cancel", "fail"))
    return tuple(bodies)


def _with_parents(act: Act, submits: list[Act], rng: random.Random) -> Act:
    """Some single jobs depend on one to three earlier ones."""
    earlier = [other.number for other in submits[: act.number] if other.what == "job"]
    if act.what != "job" or not earlier or rng.random() > 0.08:
        return act
    parents = tuple(sorted(set(rng.choices(earlier, k=rng.randint(1, 3)))))
    body = act.jobs[0] | {"on_parent_failure": rng.choice(("run", "cancel", "fail"))}
    return Act(act.number, act.at_s, act.what, (body,), parents=parents)


def _interventions(rng: random.Random, submits: list[Act], window_s: float) -> Iterator[Act]:
    """Cancels and retries of single jobs, and of whole batches, a while after their submit."""
    number = len(submits)
    kinds: dict[str, tuple[tuple[What, float], ...]] = {
        "job": (("cancel", 0.06), ("retry", 0.05)),
        "json": (("cancel-batch", 0.05), ("retry", 0.15)),
        "ndjson": (("retry", 0.2),),
    }
    for act in submits:
        for what, share in kinds.get(act.what, ()):
            if rng.random() < share:
                at_s = min(window_s, act.at_s + rng.uniform(0.0, 6.0))
                yield Act(number, round(at_s, 3), what, target=act.number)
                number += 1


def _document(rng: random.Random, number: int) -> Body:
    words = ("harbour", "lantern", "granite", "tide", "keeper", "signal", "fog", "rope", "bell")
    text = " ".join(rng.choice(words) for _ in range(60))
    return {
        "key": f"chaos-{number % 5}",
        "collection": COLLECTION,
        "title": f"Log {number}",
        "text": f"# Log {number}\n\n{text}.",
    }


def _schedule(number: int) -> Body:
    job: Body = {"kind": "effect", "payload": {"work_s": 0.0}}
    overlap = ("skip", "queue")[number % 2]
    return {"name": f"chaos-{number}", "job": job, "every_s": 2 + number, "overlap": overlap}
