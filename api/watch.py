"""Waits for things to happen: one Redis subscription a process wakes whoever watches a job or a
batch.

A wake-up is only a hint to read the ledger again. Watchers also look by themselves every `poll_s`,
so that with Redis gone everything works, slower.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import anyio

from jobs.dispatch import UNAVAILABLE
from jobs.live import LiveStream, Signal
from jobs.model import TenantId
from runtime.logs import logger

# How long a watcher goes without looking, with and without wake-ups.
POLL_S = 2.0
POLL_WITHOUT_REDIS_S = 0.5
RESUBSCRIBE_S = 1.0
SIGNALS_BUFFERED_MAX = 2_000

log = logger("watch")


@dataclass(eq=False, slots=True)
class Watcher:
    """One who waits. `signals` holds what came since the last look; it `lagged` when that
    overflowed.
    """

    tenant_id: TenantId
    job_id: UUID | None = None
    batch_id: UUID | None = None
    signals: deque[Signal] = field(default_factory=lambda: deque(maxlen=SIGNALS_BUFFERED_MAX))
    lagged: bool = False
    _woken: anyio.Event = field(default_factory=anyio.Event)

    def wants(self, signal: Signal) -> bool:
        """Whether the signal is about what this one watches; without a job or batch, all of the
        tenant.
        """
        if signal.tenant_id != self.tenant_id:
            return False
        if self.job_id is not None:
            return signal.is_about(self.job_id)
        return self.batch_id is None or signal.is_about(self.batch_id)

    def push(self, signal: Signal) -> None:
        """Keep the signal and wake the one who waits."""
        self.lagged = self.lagged or len(self.signals) == SIGNALS_BUFFERED_MAX
        self.signals.append(signal)
        self._woken.set()

    def wake(self) -> None:
        """Let the one who waits look at once."""
        self._woken.set()

    async def wait(self, timeout_s: float) -> None:
        """Return when something happened, or after `timeout_s`."""
        with anyio.move_on_after(timeout_s):
            await self._woken.wait()
        self._woken = anyio.Event()

    def take(self) -> list[Signal]:
        """What came since the last time."""
        taken = list(self.signals)
        self.signals.clear()
        return taken


class Hub:
    """Fans one subscription out to the watchers of this process."""

    def __init__(self, live: LiveStream) -> None:
        self._live = live
        self._by_id: dict[UUID | None, set[Watcher]] = {}
        self.is_subscribed = False
        self.is_closing = False

    @property
    def poll_s(self) -> float:
        """How long a watcher may wait before it looks by itself."""
        return POLL_S if self.is_subscribed else POLL_WITHOUT_REDIS_S

    @contextmanager
    def watch(
        self, tenant_id: TenantId, *, job_id: UUID | None = None, batch_id: UUID | None = None
    ) -> Iterator[Watcher]:
        """Watch a job, a batch, or all of a tenant. Begin before the first look, or a change may be
        missed.
        """
        watcher = Watcher(tenant_id, job_id, batch_id)
        key = job_id or batch_id
        self._by_id.setdefault(key, set()).add(watcher)
        try:
            yield watcher
        finally:
            watchers = self._by_id[key]
            watchers.discard(watcher)
            if not watchers:
                del self._by_id[key]

    def close(self) -> None:
        """End every wait and stream: the process shuts down."""
        self.is_closing = True
        self._wake_all()

    async def run(self) -> None:
        """Listen for ever, and again whenever Redis comes back; owned by the application's task
        group.
        """
        while True:
            try:
                async for signal in self._live.signals(self._subscribed):
                    self._deliver(signal)
            except UNAVAILABLE as error:
                if self.is_subscribed:
                    log.warning("subscription_lost", error=str(error))
                self.is_subscribed = False
            await anyio.sleep(RESUBSCRIBE_S)

    def _subscribed(self) -> None:
        """Wake-ups come from now on; those until now may be missing, so everybody looks once."""
        self.is_subscribed = True
        self._wake_all()

    def _wake_all(self) -> None:
        for watchers in self._by_id.values():
            for watcher in watchers:
                watcher.wake()

    def _deliver(self, signal: Signal) -> None:
        if signal.touched:
            keys = [key for key in self._by_id if key is None or signal.is_about(key)]
        else:
            keys = list({signal.job_id, signal.batch_id, None})
        for key in keys:
            for watcher in self._by_id.get(key, ()):
                if watcher.wants(signal):
                    watcher.push(signal)
