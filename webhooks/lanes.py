"""How many deliveries one process has under way, by receiver. Pure bookkeeping, no I/O.

A lane is a receiver's host. None takes more than its share, and one whose last request timed out
gets a single place until it answers again: a receiver that hangs costs one place, not the process.
"""

from collections import Counter, OrderedDict

from webhooks.outbox import Room

TOTAL = 128
PER_HOST = 4
SLOW_PER_HOST = 1
SLOW_REMEMBERED_MAX = 10_000


class Lanes:
    """The deliveries under way and the hosts that were slow last time."""

    def __init__(self, total: int = TOTAL, per_host: int = PER_HOST) -> None:
        self._total = total
        self._per_host = per_host
        self._under_way: Counter[str] = Counter()
        self._slow: OrderedDict[str, None] = OrderedDict()

    def room(self) -> Room:
        """What a claim may take now."""
        hosts = {*self._under_way, *self._slow}
        free = {host: max(0, self._limit(host) - self._under_way[host]) for host in hosts}
        return Room(self._total - self._under_way.total(), self._per_host, free)

    def enter(self, host: str) -> None:
        """A delivery to this host begins."""
        self._under_way[host] += 1

    def leave(self, host: str, *, timed_out: bool) -> None:
        """It ended; a host that let it time out is slow until it answers."""
        self._under_way[host] -= 1
        if not self._under_way[host]:
            del self._under_way[host]
        self._slow.pop(host, None)
        if timed_out:
            self._slow[host] = None
            if len(self._slow) > SLOW_REMEMBERED_MAX:
                self._slow.popitem(last=False)

    def _limit(self, host: str) -> int:
        return SLOW_PER_HOST if host in self._slow else self._per_host
