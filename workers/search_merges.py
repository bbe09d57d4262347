"""Which segments to merge: few segments make searches fast, few merges keep indexing cheap."""

from collections.abc import Sequence

from corpus.model import Segment

# Tiers grow by this factor; as many segments of one tier are merged into one of the next. So a
# vector is rewritten about once a tier: five times until a million lie beside it.
FAN_OUT = 8
SMALLEST_TIER = 256
# Below this, dead vectors cost too little to rewrite anything for them.
DEAD_MIN = 1000


def choose_merge(segments: Sequence[Segment], *, live_chunks: int) -> Sequence[Segment]:
    """Neighbours to merge into one, in order; empty when there is nothing worth it.

    `segments` are the live ones by range, of which `live_chunks` vectors are still found.
    """
    dead = sum(segment.vectors for segment in segments) - live_chunks
    if dead > max(DEAD_MIN, live_chunks):
        return segments
    for tier in sorted({_tier(segment) for segment in segments}):
        newest = _newest_run(segments, tier)
        # Smaller ones join, but do not count: seven small additions must not rewrite a large one.
        if sum(_tier(segment) == tier for segment in newest) >= FAN_OUT:
            return newest
    return ()


def _newest_run(segments: Sequence[Segment], tier: int) -> Sequence[Segment]:
    """The longest run at the new end whose segments are of this tier or below."""
    first = len(segments)
    while first and _tier(segments[first - 1]) <= tier:
        first -= 1
    return segments[first:]


def _tier(segment: Segment) -> int:
    tier, size = 0, SMALLEST_TIER
    while segment.vectors > size:
        tier, size = tier + 1, size * FAN_OUT
    return tier
