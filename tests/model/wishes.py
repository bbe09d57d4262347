"""Wishes and endings: drawn, told in short, and as the ledger takes them."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta

from hypothesis import strategies as st

from jobs.model import NewJob, Unique
from jobs.outcomes import Cancelled, Completed, Ending, Failed, Problem, Released
from jobs.states import OnParentFailure
from tests.model.reference import EndingName, Until, Wish
from tests.model.world import KIND

KEYS = ("k1", "k2")
UNTIL: tuple[Until, ...] = ("started", "finished", "time")
ENDINGS: tuple[EndingName, ...] = ("succeed", "succeed", "retry", "fail", "cancel", "release")
AFTER_S = 20.0


@st.composite
def wishes(draw: st.DrawFn, *, plain: bool = False) -> Wish:
    """A job without its number and its parents; most have nothing special."""
    special = draw(st.integers(0, 9))
    wish = Wish(
        0, priority=draw(st.sampled_from((4, 4, 0, 9))), max_attempts=draw(st.integers(1, 3))
    )
    if special in {0, 8}:
        wish = replace(wish, key=draw(st.sampled_from(KEYS)))
    if special in {1, 8}:
        until = draw(st.sampled_from(UNTIL))
        seconds = 30.0 if until == "time" else None
        wish = replace(wish, unique=(draw(st.sampled_from("uv")), until), unique_s=seconds)
    if special in {2, 9}:
        wish = replace(wish, delay_s=draw(st.sampled_from((0.0, 5.0, 60.0))))
    if special in {3, 9} and not plain:
        wish = replace(wish, policy=draw(st.sampled_from(OnParentFailure)))
    if special == 4:
        wish = replace(wish, expires_s=draw(st.sampled_from((5.0, 60.0))))
    return replace(wish, callback=special == 5)


def new_job(wish: Wish, now: datetime) -> NewJob:
    until = None if wish.unique is None else Unique(*wish.unique, wish.unique_s)
    expires_at = None if wish.expires_s is None else now + timedelta(seconds=wish.expires_s)
    siblings = (f"c{number}" for number in wish.siblings)
    return NewJob(
        KIND,
        {"echo": wish.number},
        priority=wish.priority,
        delay_s=wish.delay_s,
        expires_at=expires_at,
        max_attempts=wish.max_attempts,
        unique=until,
        concurrency_key=wish.key,
        depends_on=(*map(str, wish.parents), *siblings),
        on_parent_failure=wish.policy,
        custom_id=f"c{wish.number}",
        callback_url="https://example.org/" if wish.callback else None,
    )


def told(wish: Wish) -> str:
    """Only what is special about it."""
    plain = asdict(Wish(wish.number))
    special = {name: value for name, value in asdict(wish).items() if value != plain[name]}
    return f"#{wish.number}" + "".join(f" {name}={value}" for name, value in special.items())


def ending_of(name: EndingName, follow_ups: Sequence[NewJob]) -> Ending:
    match name:
        case "succeed":
            return Completed(None, tuple(follow_ups))
        case "retry":
            return Failed(Problem("again", "it broke", after_s=AFTER_S))
        case "fail":
            return Failed(Problem("never", "it cannot work", retryable=False))
        case "cancel":
            return Cancelled("by itself")
        case "release":
            return Released("given back")
