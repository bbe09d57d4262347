"""Follows a job or a batch to its end, with progress on the way."""

from collections.abc import Callable

from cli.client import Api, Document
from cli.output import Meter, meter

# Long enough to be quiet, short enough that the bar moves with progress that is no change of state.
POLL_S = 2
TERMINAL = ("succeeded", "failed", "cancelled")


def follow_job(api: Api, job_id: str, *, quiet: bool = False) -> Document:
    """Wait until the job and all that it created are over; returns the job."""
    return _follow(
        api, f"/v1/jobs/{job_id}", lambda job: bool(job["settled"]), _show_job, quiet=quiet
    )


def follow_batch(api: Api, batch_id: str, *, quiet: bool = False) -> Document:
    """Wait until the batch is finished, its follow-ups included."""
    return _follow(
        api, f"/v1/batches/{batch_id}", lambda b: b["state"] == "finished", _show_batch, quiet=quiet
    )


def _follow(
    api: Api,
    path: str,
    is_over: Callable[[Document], bool],
    show: Callable[[Meter, Document], None],
    *,
    quiet: bool,
) -> Document:
    with meter("waiting", quiet=quiet) as bar:
        document, etag = api.poll(path, None, wait_s=0)
        if document is None:
            message = f"{path}: the API answered 304 to a first request"
            raise RuntimeError(message)
        while not is_over(document):
            show(bar, document)
            changed, etag = api.poll(path, etag, wait_s=POLL_S)
            document = changed or document
    return document


def _show_job(bar: Meter, job: Document) -> None:
    progress = job.get("progress") or {}
    follow_ups = job.get("follow_ups") or {}
    if job["state"] in TERMINAL and follow_ups.get("total"):
        over = sum(follow_ups[state] for state in TERMINAL)
        bar.show(
            f"{job['kind']} {job['state']}, its follow-ups run",
            done=over,
            total=follow_ups["total"],
        )
        return
    bar.show(
        f"{job['kind']} {job['state']} {progress.get('message') or ''}".strip(),
        done=progress.get("done"),
        total=progress.get("total"),
    )


def _show_batch(bar: Meter, batch: Document) -> None:
    both = (batch["counts"], batch["follow_ups"])
    total = sum(counts["total"] for counts in both)
    over = sum(counts[state] for counts in both for state in TERMINAL)
    bar.show(f"batch {batch['state']}", done=over, total=total)
