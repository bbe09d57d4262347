"""Vector search over many segments: immutable views, swapped whole, so that no search ever waits.

Speaks numpy only: ids are int64, scores are inner products of unit vectors (cosine).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engines.segments import Segment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    type Ids = NDArray[np.int64]
    type Vectors = NDArray[np.float32]
    type Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Per query (row) the best ids with their scores, best first; id -1 where there are fewer."""

    ids: "Ids"
    scores: "Vectors"


@dataclass(frozen=True, slots=True, eq=False)
class _Live:
    """A segment and which of its positions still count (None: all)."""

    segment: Segment
    alive: "Mask | None" = None

    def count(self) -> int:
        return len(self.segment.ids) if self.alive is None else int(self.alive.sum())


@dataclass(frozen=True, slots=True, eq=False)
class IndexView:
    """What one generation of a collection can find. Changing it means making another view."""

    _live: "Mapping[str, _Live]" = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """Names of its segments."""
        return frozenset(self._live)

    def __len__(self) -> int:
        """How many vectors it can find."""
        return sum(live.count() for live in self._live.values())

    def with_segment(self, name: str, segment: Segment) -> "IndexView":
        """A view with this segment too, all of it alive; replaces one of the same name."""
        return IndexView({**self._live, name: _Live(segment)})

    def keeping(self, names: Collection[str]) -> "IndexView":
        """A view of only these segments, as after a merge."""
        return IndexView({name: live for name, live in self._live.items() if name in names})

    def without(self, dead: "Ids | Collection[int]") -> "IndexView":
        """A view that no longer finds these ids; unknown ones are ignored."""
        import numpy as np

        gone = np.unique(np.asarray(list(dead), dtype=np.int64))
        return IndexView({name: _bury(live, gone) for name, live in self._live.items()})

    def search(
        self,
        queries: "Vectors",
        k: int,
        *,
        only: "Ids | Collection[int] | None" = None,
        threads: int = 1,
    ) -> Hits:
        """The best `k` a query among the living, or among `only` these ids; never blocks.

        `queries` is N × dimensions, float32, unit length. An id in two segments counts once.
        """
        import numpy as np

        queries = np.ascontiguousarray(np.atleast_2d(queries), dtype=np.float32)
        wanted = None if only is None else np.unique(np.asarray(list(only), dtype=np.int64))
        found = [
            live.segment.search(queries, k, alive=_allowed(live, wanted), threads=threads)
            for live in self._live.values()
        ]
        return _best(found, len(queries), k)

    def contains(self, ids: "Ids | Collection[int]") -> "Mask":
        """For each id, whether this view can find it: the audit's question."""
        import numpy as np

        asked = np.asarray(list(ids), dtype=np.int64)
        known = np.zeros(len(asked), dtype=np.bool_)
        for live in self._live.values():
            held = live.segment.ids if live.alive is None else live.segment.ids[live.alive]
            known |= np.isin(asked, held)
        return known

    def ids(self) -> "Ids":
        """All ids that it can find, sorted."""
        import numpy as np

        held = [
            live.segment.ids if live.alive is None else live.segment.ids[live.alive]
            for live in self._live.values()
        ]
        return np.unique(np.concatenate([np.empty(0, np.int64), *held]))


def _bury(live: _Live, dead: "Ids") -> _Live:
    import numpy as np

    places = _places(live.segment.ids, dead)
    if not len(places):
        return live
    alive = np.ones(len(live.segment.ids), np.bool_) if live.alive is None else live.alive.copy()
    alive[places] = False
    return _Live(live.segment, alive)


def _allowed(live: _Live, wanted: "Ids | None") -> "Mask | None":
    import numpy as np

    if wanted is None:
        return live.alive
    chosen = np.zeros(len(live.segment.ids), np.bool_)
    chosen[_places(live.segment.ids, wanted)] = True
    return chosen if live.alive is None else live.alive & chosen


def _places(held: "Ids", wanted: "Ids") -> "Ids":
    """Positions in `held` of those `wanted` that are there; both sorted, cost by `wanted`."""
    import numpy as np

    places = np.searchsorted(held, wanted)
    inside = places < len(held)
    places, wanted = places[inside], wanted[inside]
    found: Ids = places[held[places] == wanted]
    return found


def _best(found: "list[tuple[Vectors, Ids]]", queries: int, k: int) -> Hits:
    import numpy as np

    ids = np.full((queries, k), -1, dtype=np.int64)
    scores = np.full((queries, k), -np.inf, dtype=np.float32)
    if not found:
        return Hits(ids, scores)
    all_scores = np.concatenate([part[0] for part in found], axis=1)
    all_ids = np.concatenate([part[1] for part in found], axis=1)
    for row in range(queries):
        # Best first, ties by id, so that the order never depends on how segments were cut.
        order = np.lexsort((all_ids[row], -all_scores[row]))
        order = order[all_ids[row][order] >= 0]
        _, first = np.unique(all_ids[row][order], return_index=True)
        order = order[np.sort(first)][:k]
        ids[row, : len(order)] = all_ids[row][order]
        scores[row, : len(order)] = all_scores[row][order]
    return Hits(ids, scores)
