"""Follows a job or a batch to its end by its events, over restarts of the API and broken
connections.

Nothing is told twice and nothing is left out: every connection but the first says which event was
the last one. Watching changes nothing: whoever stops watching stops nothing else.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import typer

from cli.client import Api, ApiError, ApiNotReachable, Document, ServerEvent
from cli.output import Meter, errors, meter
from cli.patience import Patience, persistently

# Long enough to be quiet, short enough that the bar moves with progress that is no change of state.
POLL_S = 2
TERMINAL = ("succeeded", "failed", "cancelled")
ENDS = ("job.settled", "batch.finished")
# The stream was ended by the other side, which wants us back: it is restarted, or its time is over.
COME_BACK_S = 0.2
# What a shell says of a command that Ctrl-C has ended.
EXIT_INTERRUPTED = 130
_LINES_EVERY_S = 1.0
_TAIL = 60


class Teller(Protocol):
    """Tells somebody what happens."""

    def tell(self, event: ServerEvent) -> None:
        """Take one event; of type `now`, what there was before the first."""


def follow_job(
    api: Api, job_id: str, *, quiet: bool = False, teller: Teller | None = None
) -> Document:
    """Wait until the job and all that it created are over; returns the job."""
    return _follow(api, f"/v1/jobs/{job_id}", _job_to_its_end, quiet=quiet, teller=teller)


def follow_batch(
    api: Api, batch_id: str, *, quiet: bool = False, teller: Teller | None = None
) -> Document:
    """Wait until the batch is finished, its follow-ups included."""
    return _follow(api, f"/v1/batches/{batch_id}", _batch_to_its_end, quiet=quiet, teller=teller)


def _follow(
    api: Api,
    path: str,
    to_its_end: Callable[[Api, str, Teller], Document],
    *,
    quiet: bool,
    teller: Teller | None,
) -> Document:
    with _harmless(path):
        if teller is not None:
            return to_its_end(api, path, teller)
        with meter("waiting", quiet=quiet) as bar:
            return to_its_end(api, path, Bar(bar))


@contextmanager
def _harmless(path: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        errors.print(f"no longer watching, it goes on: xnai watch {path.rsplit('/', 1)[1]}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _job_to_its_end(api: Api, path: str, teller: Teller) -> Document:
    job = persistently(partial(api.get, path))
    teller.tell(ServerEvent("now", job, None))
    for event in _events(api, path, lambda job: bool(job["settled"])):
        teller.tell(event)
        if event.type.removeprefix("job.") in TERMINAL and not event.data["settled"]:
            # Its follow-ups send their own events: how many are over is asked for.
            return _settled(api, path, teller)
    return persistently(partial(api.get, path))


def _settled(api: Api, path: str, teller: Teller) -> Document:
    etag: str | None = None
    while True:
        job, etag = persistently(partial(api.poll, path, etag, wait_s=POLL_S))
        if job is None:
            continue
        teller.tell(ServerEvent("job.settled" if job["settled"] else "now", job, None))
        if job["settled"]:
            return job


def _batch_to_its_end(api: Api, path: str, teller: Teller) -> Document:
    batch = persistently(partial(api.get, path))
    teller.tell(ServerEvent("now", batch, None))
    for event in _events(api, path, lambda batch: batch["state"] == "finished"):
        teller.tell(event)
        if event.type == "batch.finished":
            return event.data
    return persistently(partial(api.get, path))


def _events(api: Api, path: str, is_over: Callable[[Document], bool]) -> Iterator[ServerEvent]:
    """Every event once and in order, up to the one that ends the stream."""
    last_id: str | None = None
    patience = Patience()
    while True:
        try:
            with api.events(f"{path}/events", last_id=last_id) as events:
                for event in events:
                    patience.renew()
                    last_id = event.id or last_id
                    yield event
                    if event.type in ENDS:
                        return
            if is_over(api.get(path)):
                return
        except (ApiError, ApiNotReachable) as error:
            patience.wait(error)
        else:
            time.sleep(COME_BACK_S)


@dataclass(slots=True)
class Bar:
    """One line on a terminal that changes."""

    meter: Meter
    text: str = ""

    def tell(self, event: ServerEvent) -> None:
        """Show where the job or the batch stands, or the last words of what it writes."""
        if event.type == "job.token":
            self.text = (self.text + event.data["text"])[-_TAIL:]
            self.meter.show(" ".join(self.text.split()))
        elif event.type == "job.progress":
            data = event.data
            self.meter.show(data["message"] or "running", done=data["done"], total=data["total"])
        else:
            done, total = _distance(event.data)
            self.meter.show(_headline(event.data), done=done, total=total)


@dataclass(slots=True)
class Lines:
    """A line for each change, for logs and pipes; one a second where only numbers change."""

    headline: str = ""
    detail: str = ""
    said_at: float = 0.0

    def tell(self, event: ServerEvent) -> None:
        """Print a line if there is something new to say."""
        if event.type == "job.token":
            return
        if event.type == "job.progress":
            said = "progress", _progress(event.data)
        else:
            said = _headline(event.data), _detail(event.data)
        now = time.monotonic()
        is_due = said[1] != self.detail and now >= self.said_at + _LINES_EVERY_S
        if said[0] != self.headline or is_due:
            (self.headline, self.detail), self.said_at = said, now
            typer.echo(": ".join(part for part in said if part))


class JsonLines:
    """Every event as a line of JSON."""

    def tell(self, event: ServerEvent) -> None:
        """Print the event."""
        if event.type == "now":
            return
        line = {"type": event.type, "id": event.id, "data": event.data}
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def _progress(data: Document) -> str:
    distance = f"{data['done']} of {data['total'] or '?'}"
    return f"{distance} {data['message'] or ''}".strip()


def _headline(found: Document) -> str:
    if "counts" in found:
        return f"batch {found['state']}"
    text = f"{found['kind']} {found['state']}"
    if found["state"] in TERMINAL and not found["settled"]:
        return f"{text}, its follow-ups run"
    return text


def _detail(found: Document) -> str:
    if "counts" in found:
        done, total = _distance(found)
        return f"{done} of {total}, {_states(found)}"
    done, total = _distance(found)
    return "" if total is None else f"{done} of {total}"


def _states(batch: Document) -> str:
    both = (batch["counts"], batch["follow_ups"])
    sums = {state: sum(counts[state] for counts in both) for state in batch["counts"]}
    return ", ".join(f"{sums[s]} {s}" for s in sums if s != "total" and sums[s]) or "no jobs"


def _distance(found: Document) -> tuple[int | None, int | None]:
    """How many jobs are over, and of how many; of a job alone, what it says of itself."""
    follow_ups = found.get("follow_ups") or {}
    if "counts" in found:
        both = (found["counts"], follow_ups)
        over = sum(counts[state] for counts in both for state in TERMINAL)
        return over, sum(counts["total"] for counts in both)
    if found["state"] in TERMINAL and follow_ups.get("total"):
        return sum(follow_ups[state] for state in TERMINAL), follow_ups["total"]
    progress = found.get("progress") or {}
    return progress.get("done"), progress.get("total")
