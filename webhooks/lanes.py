"""How many deliveries one process has under way, by lane. Pure bookkeeping, no I/O.

A lane is as wide as its receiver has earned: one place at first, twice as many with each answer in
time, one again after a failure. All lanes that have earned nothing share a part of the places, so
that receivers that hang, however many, leave the others room.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass

TOTAL = 128
WIDTH_MAX = 8
REMEMBERED_MAX = 4_000


@dataclass(frozen=True, slots=True)
class KnownLane:
    """A lane that is wider than one place, or busy: how much of it is free."""

    name: str
    free: int
    is_proven: bool


@dataclass(frozen=True, slots=True)
class Room:
    """What a claim may take: in all, and of lanes that have not proven themselves. Of a lane that
    is not `known`, one.
    """

    total: int
    unproven: int
    known: tuple[KnownLane, ...] = ()


class Lanes:
    """The deliveries under way, and what each lane has earned."""

    def __init__(self, total: int = TOTAL, unproven: int | None = None) -> None:
        self._total = total
        self._unproven = total // 2 if unproven is None else unproven
        self._under_way: Counter[str] = Counter()
        # Of proven lanes only: their width is at least two.
        self._widths: OrderedDict[str, int] = OrderedDict()

    def room(self) -> Room:
        """What a claim may take now."""
        known = tuple(self._known(lane) for lane in {*self._under_way, *self._widths})
        unproven = sum(
            count for lane, count in self._under_way.items() if not self._is_proven(lane)
        )
        total = max(0, self._total - self._under_way.total())
        return Room(total, max(0, min(total, self._unproven - unproven)), known)

    def enter(self, lane: str) -> None:
        """A delivery begins."""
        self._under_way[lane] += 1

    def leave(self, lane: str, *, is_accepted: bool) -> None:
        """It ended; the receiver took it or did not."""
        self._under_way[lane] -= 1
        if not self._under_way[lane]:
            del self._under_way[lane]
        width = self._widths.pop(lane, 1)
        if is_accepted:
            self._widths[lane] = min(2 * width, WIDTH_MAX)
            if len(self._widths) > REMEMBERED_MAX:
                self._widths.popitem(last=False)

    def _known(self, lane: str) -> KnownLane:
        free = max(0, self._width(lane) - self._under_way[lane])
        return KnownLane(lane, free, self._is_proven(lane))

    def _width(self, lane: str) -> int:
        return self._widths.get(lane, 1)

    def _is_proven(self, lane: str) -> bool:
        return lane in self._widths
