"""The recrawl policy: look more often at what changes, less often at what does not. Pure.

Halving on change and growing otherwise is the additive-free form of the adaptive fetch schedule
that Apache Nutch ships (AdaptiveFetchSchedule); it needs no model of the page and forgets within a
few runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.model import JsonValue
from schedules.model import Adaptive

SHRINK = 0.5
GROW_FIRST = 1.5
GROW_AGAIN = 2.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What a run found: pages that were new or had changed, and pages that were as before."""

    changed: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class Pace:
    """The present interval in seconds, and how many runs in a row found nothing new."""

    interval_s: float
    unchanged_runs: int = 0


def adapt(pace: Pace, bounds: Adaptive, seen: Observation | None) -> Pace:
    """Half the interval after a change; 1.5 times it after a run without, twice from the second on.

    A run that saw no page, or failed, says nothing about change and leaves the pace as it is.
    """
    if seen is None or seen.changed + seen.unchanged == 0:
        return Pace(_clamp(pace.interval_s, bounds), pace.unchanged_runs)
    if seen.changed:
        return Pace(_clamp(pace.interval_s * SHRINK, bounds), 0)
    factor = GROW_AGAIN if pace.unchanged_runs else GROW_FIRST
    return Pace(_clamp(pace.interval_s * factor, bounds), pace.unchanged_runs + 1)


def _clamp(interval_s: float, bounds: Adaptive) -> float:
    return min(bounds.max_s, max(bounds.min_s, interval_s))


def observe(result: JsonValue) -> Observation | None:
    """Read a crawl's result: `pages: {fetched, unchanged}` and, if told, `documents_changed`.

    Where a site has no validators, a page fetched anew may have the content that was known. None
    when the result tells of no pages.
    """
    pages = result.get("pages") if isinstance(result, Mapping) else None
    if not isinstance(result, Mapping) or not isinstance(pages, Mapping):
        return None
    fetched, unchanged = pages.get("fetched", 0), pages.get("unchanged", 0)
    changed = result.get("documents_changed", fetched)
    if not (isinstance(fetched, int) and isinstance(unchanged, int) and isinstance(changed, int)):
        return None
    return Observation(changed=changed, unchanged=max(0, fetched + unchanged - changed))
