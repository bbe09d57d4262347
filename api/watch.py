"""Waits for things to happen: one Redis subscription a process wakes whoever watches a job, a batch
or a tenant.

A wake-up is only a hint to read the ledger again. All watchers also look together every few
seconds, so that with Redis gone everything works, slower.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import anyio

from jobs.dispatch import UNAVAILABLE
from jobs.live import LiveStream, Signal
from jobs.model import TenantId
from runtime.logs import logger

# How often everybody looks unasked, with and without wake-ups.
POLL_S = 2.0
POLL_WITHOUT_REDIS_S = 0.5
RESUBSCRIBE_S = 1.0
# Of one watcher: what overflows is only progress, of which the last counts, and tokens, which a
# look at their stream finds.
SIGNALS_BUFFERED_MAX = 100

log = logger("watch")


@dataclass(eq=False, slots=True)
class Watcher:
    """One who waits. `signals` holds the progress and tokens that came since the last look."""

    tenant_id: TenantId
    signals: deque[Signal] = field(default_factory=lambda: deque(maxlen=SIGNALS_BUFFERED_MAX))
    is_nudged: bool = True
    _woken: anyio.Event = field(default_factory=anyio.Event)

    def push(self, signal: Signal) -> None:
        """Keep what only this signal tells, or note that the ledger has news, and wake."""
        if signal.touched:
            self.is_nudged = True
        else:
            self.signals.append(signal)
        self._woken.set()

    def wake(self) -> None:
        """Let the one who waits look at once."""
        self.is_nudged = True
        self._woken.set()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Return when something happened since the last wait, or after `timeout_s`."""
        with anyio.move_on_after(timeout_s):
            await self._woken.wait()
        self._woken = anyio.Event()

    def take(self) -> tuple[bool, list[Signal]]:
        """Whether to look at the ledger, and what else came since the last time."""
        taken = self.is_nudged, list(self.signals)
        self.is_nudged = False
        self.signals.clear()
        return taken


class Hub:
    """Fans one subscription out to the watchers of this process."""

    def __init__(self, live: LiveStream) -> None:
        self._live = live
        # By the bytes of the watched job's or batch's id, as signals bring them, or by the tenant.
        self._watchers: dict[bytes | TenantId, set[Watcher]] = {}
        self.is_subscribed = False
        self.is_closing = False

    @contextmanager
    def watch(self, tenant_id: TenantId, id_: UUID | None = None) -> Iterator[Watcher]:
        """Watch a job or a batch, or (None) all of a tenant. Begin before the first look, or a
        change may be missed.
        """
        watcher = Watcher(tenant_id)
        key = tenant_id if id_ is None else id_.bytes
        self._watchers.setdefault(key, set()).add(watcher)
        try:
            yield watcher
        finally:
            watchers = self._watchers[key]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[key]

    def close(self) -> None:
        """End every wait and stream: the process shuts down."""
        self.is_closing = True
        self._wake_all()

    async def run(self) -> None:
        """Wake watchers for ever; owned by the application's task group."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen)
            group.start_soon(self._remind)

    async def _listen(self) -> None:
        """Listen, and again whenever Redis comes back."""
        while True:
            try:
                async for signal in self._live.signals(self._subscribed):
                    self._deliver(signal)
            except UNAVAILABLE as error:
                if self.is_subscribed:
                    log.warning("subscription_lost", error=str(error))
                self.is_subscribed = False
            await anyio.sleep(RESUBSCRIBE_S)

    async def _remind(self) -> None:
        """Have everybody look together, whatever signals were lost: it is one look for all."""
        while True:
            await anyio.sleep(POLL_S if self.is_subscribed else POLL_WITHOUT_REDIS_S)
            self._wake_all()

    def _subscribed(self) -> None:
        """Wake-ups come from now on; those until now may be missing, so everybody looks once."""
        self.is_subscribed = True
        self._wake_all()

    def _wake_all(self) -> None:
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.wake()

    def _deliver(self, signal: Signal) -> None:
        for key in self._about(signal):
            for watcher in self._watchers.get(key, ()):
                if watcher.tenant_id == signal.tenant_id:
                    watcher.push(signal)

    def _about(self, signal: Signal) -> Iterable[bytes | TenantId]:
        """Whose watchers the signal concerns: a tenant's and a batch's care for the ledger only."""
        if signal.touched:
            return (*(self._watchers.keys() & signal.touched), TenantId(signal.tenant_id))
        return () if signal.job_id is None else (signal.job_id.bytes,)
