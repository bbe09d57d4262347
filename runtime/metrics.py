"""The catalogue of Prometheus metrics: every one of them is here, and in docs/metrics.md.

Slots are processes of their own: with PROMETHEUS_MULTIPROC_DIR set (by `xnai up`, before Python
starts) all processes of a stack write there, and the API's /metrics adds them up (decision 0002).
"""

import os
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from runtime.settings import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
REGISTRY = CollectorRegistry()

_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
_DURATIONS_S = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A line of the catalogue."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]


CATALOGUE: list[Metric] = []


def _counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
    CATALOGUE.append(Metric(name, "counter", text, tuple(labels)))
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(
    name: str,
    text: str,
    labels: Sequence[str] = (),
    mode: Literal["livesum", "mostrecent"] = "livesum",
) -> Gauge:
    CATALOGUE.append(Metric(name, "gauge", text, tuple(labels)))
    return Gauge(name, text, labels, registry=REGISTRY, multiprocess_mode=mode)


def _histogram(
    name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = _LATENCIES_S
) -> Histogram:
    CATALOGUE.append(Metric(name, "histogram", text, tuple(labels)))
    return Histogram(name, text, labels, registry=REGISTRY, buckets=buckets)


JOBS_ENQUEUED = _counter("xnai_jobs_enqueued_total", "Jobs accepted by the ledger.", ["kind"])
JOBS_CLAIMED = _counter("xnai_jobs_claimed_total", "Jobs taken in hand by slots.", ["pool"])
JOBS_FINISHED = _counter(
    "xnai_jobs_finished_total", "Attempts recorded, by outcome.", ["kind", "pool", "outcome"]
)
JOBS_RESCUED = _counter("xnai_jobs_rescued_total", "Jobs of dead slots that were put back.")
FENCED_WRITES = _counter(
    "xnai_fenced_writes_total", "Late writes of an attempt that had lost its job, refused."
)
START_LATENCY = _histogram(
    "xnai_job_start_latency_seconds",
    "Longest wait of a claim's jobs, from due to claimed.",
    ["pool"],
)
HANDLER_DURATION = _histogram(
    "xnai_handler_duration_seconds", "Time spent in a handler.", ["kind"], _DURATIONS_S
)
DISPATCH_FAILURES = _counter(
    "xnai_dispatch_failures_total", "Wake-ups and live signals that Redis did not take."
)
QUEUE_DEPTH = _gauge(
    "xnai_queue_depth", "Jobs waiting, by pool and state.", ["pool", "state"], "mostrecent"
)
QUEUE_OLDEST_AGE = _gauge(
    "xnai_queue_oldest_age_seconds", "Wait of the oldest claimable job.", ["pool"], "mostrecent"
)
POOL_PAUSED = _gauge("xnai_pool_paused", "1 while a pool is paused.", ["pool"], "mostrecent")
DEAD_LETTERS = _gauge(
    "xnai_dead_letters",
    "Failed jobs that nobody has retried or discarded, counted up to 10,000.",
    mode="mostrecent",
)
SLOTS_BUSY = _gauge("xnai_slots_busy", "Slots with a job in hand.", ["pool"])
SLOT_DEATHS = _counter("xnai_slot_deaths_total", "Slots that ended or were killed.", ["pool"])
SLOTS_RECYCLED = _counter(
    "xnai_slots_recycled_total",
    "Slots renewed in time: too big (rss), too old (age), or after enough jobs.",
    ["pool", "reason"],
)
SCHEDULE_FIRES = _counter(
    "xnai_schedule_fires_total", "Due times of schedules, by outcome.", ["outcome"]
)
WEBHOOKS_DELIVERED = _counter(
    "xnai_webhook_deliveries_total", "Attempts to deliver a webhook, by outcome.", ["outcome"]
)
WEBHOOKS_DISABLED = _counter(
    "xnai_webhooks_disabled_total", "Endpoints disabled by what they answered.", ["reason"]
)
WEBHOOK_CIRCUITS = _gauge(
    "xnai_webhook_circuits",
    "Receivers that fail: open ones wait for their next probe, half-open ones may be probed.",
    ["state"],
    "mostrecent",
)
CRAWL_PAGES = _counter("xnai_crawl_pages_total", "Pages visited, by outcome.", ["outcome"])
EGRESS_REFUSALS = _counter(
    "xnai_egress_refusals_total", "Connections that the egress guard refused."
)
SEARCH_LATENCY = _histogram("xnai_search_latency_seconds", "Time to answer a search.", ["mode"])
INDEX_GENERATION = _gauge(
    "xnai_index_generation", "Generation that searches see.", ["collection"], "mostrecent"
)
HTTP_REQUESTS = _counter(
    "xnai_http_requests_total", "Requests answered by the API.", ["method", "route", "status"]
)
HTTP_DURATION = _histogram(
    "xnai_http_request_duration_seconds", "Time to answer a request.", ["method", "route"]
)
KEYS_REFUSED = _counter(
    "xnai_keys_refused_total", "Requests that no API key let in, by reason.", ["reason"]
)
EVENTS_SENT = _counter("xnai_events_sent_total", "Server-sent events written.", ["stream"])
WATCHERS = _gauge("xnai_watchers", "Open event streams and long polls.", ["stream"])
SLOW_READERS = _counter(
    "xnai_slow_readers_total", "Event streams cut off because their reader took nothing."
)
PROCESS_RESTARTS = _counter(
    "xnai_process_restarts_total", "Processes of the stack that died and were restarted.", ["role"]
)


def observe_all(histogram: Histogram, amounts: Sequence[float]) -> None:
    """Observe many amounts at once: `observe` takes 2 µs, which a no-op job cannot afford.

    By the library's own attributes, since it offers nothing of the kind; a test compares with
    `observe`.
    """
    histogram._sum.inc(sum(amounts))  # noqa: SLF001
    bounds = histogram._upper_bounds  # noqa: SLF001
    for at, count in Counts(bisect_left(bounds, amount) for amount in amounts).items():
        histogram._buckets[at].inc(count)  # noqa: SLF001


def configure(settings: "Settings", *, role: str) -> None:
    """State which process this is; recording needs no set-up."""
    PROCESS_INFO.labels(role=role.partition(" ")[0]).set(1)
    del settings


def render() -> bytes:
    """Return the exposition text of the whole stack, or of this process where it stands alone."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return generate_latest(REGISTRY)
    forget_dead(Path(folder))
    merged = CollectorRegistry()
    MultiProcessCollector(merged, path=folder)  # type: ignore[no-untyped-call] # has no types
    return generate_latest(merged)


def forget_dead(folder: Path) -> None:
    """Remove the live gauges of processes that have died; their counters go on counting."""
    for file in folder.glob("gauge_live*.db"):
        if not Path(f"/proc/{file.stem.rpartition('_')[2]}").exists():
            with suppress(FileNotFoundError):
                file.unlink()


PROCESS_INFO = _gauge("xnai_processes", "Living processes of the stack.", ["role"])
