"""Verbs about batches: submit, list, show, results, cancel, retry, and a batch in parts."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO
from uuid import uuid4

import typer

from cli import uploads
from cli.client import Api, ApiError, ApiNotReachable, Document, lines_of
from cli.jobs import counts_text
from cli.options import settings_of
from cli.output import AsJson, Limit, console, meter, print_fields, print_json, print_table
from cli.patience import Patience, persistently
from cli.watching import follow_batch
from runtime.errors import EXIT_FAILED

batch = typer.Typer(help="Submit, watch, read and end many jobs at once.", no_args_is_help=True)

BatchId = Annotated[str, typer.Argument(help="Id of the batch.")]
# `exists` would look for a file of the name `-`.
JobsFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="NDJSON, one job a line; - for standard input.")
]
_WAIT_S = 30


def finish_batch(found: Document, *, as_json: bool) -> None:
    """Print a batch; exit 1 when some of its jobs ended without success."""
    if as_json:
        print_json(found)
    else:
        show_batch(found)
    end_by(found)


def show_batch(found: Document) -> None:
    """Print a batch and its counts."""
    print_fields(
        {
            "id": found["id"],
            "state": found["state"],
            "jobs": counts_text(found["counts"]),
            "follow-ups": counts_text(found["follow_ups"]),
            "tags": found["tags"],
            "callback": found["callback_url"],
            "created": found["created_at"],
            "finished": found["finished_at"],
        }
    )


def end_by(found: Document) -> None:
    """Exit 1 when some of the batch's jobs ended without success."""
    if any(found[name]["failed"] + found[name]["cancelled"] for name in ("counts", "follow_ups")):
        raise typer.Exit(EXIT_FAILED)


@batch.command("submit")
def submit(
    context: typer.Context,
    file: JobsFile,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the batch is finished.")] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="Makes a repeated submit harmless; goes on with a broken one."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on with a submit that broke off.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a batch: up to 100,000 jobs all or none, more of them part by part."""
    key = idempotency_key or f"cli-{uuid4()}"
    with Api(settings_of(context)) as api, uploads.opened(file) as source:
        with meter("uploading", quiet=as_json) as bar:
            if resume is not None:
                found = uploads.resume(api, resume, source, bar)
            else:
                found = uploads.submit(api, source, key, bar)
        if wait:
            found = follow_batch(api, found["id"], quiet=as_json)
    finish_batch(found, as_json=as_json)


@batch.command("open")
def open_(
    context: typer.Context,
    *,
    tag: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    callback_url: Annotated[
        str | None, typer.Option(help="Called when the batch is finished.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Open a batch to append to."""
    body: Document = {"state": "open", "tags": tag or [], "callback_url": callback_url}
    headers = {"Idempotency-Key": f"cli-{uuid4()}"}
    with Api(settings_of(context)) as api:
        found = persistently(partial(api.post, "/v1/batches", body, headers=headers))
    if as_json:
        print_json(found)
    else:
        # The id alone, so that a script can keep it.
        typer.echo(found["id"])


@batch.command("append")
def append(
    context: typer.Context,
    batch_id: BatchId,
    file: JobsFile,
    *,
    part: Annotated[
        str | None, typer.Option(help="The part's name; without one its content tells it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Append a file to an open batch. Repeating it adds nothing."""
    with Api(settings_of(context)) as api, uploads.opened(file) as source:
        done = [
            uploads.append(api, batch_id, piece, name=_name(part, number))
            for number, piece in enumerate(source.parts(), 1)
        ]
    if as_json:
        print_json(done)
        return
    for found in done:
        console.print(f"{found['jobs']} jobs{', added before' if found['replayed'] else ''}")


def _name(part: str | None, number: int) -> str | None:
    """A file too large for one part is several, each with a name of its own."""
    return part if part is None or number == 1 else f"{part}-{number}"


@batch.command("list")
def list_(
    context: typer.Context,
    *,
    state: Annotated[str | None, typer.Option(help="open, running or finished.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List batches, newest first."""
    with Api(settings_of(context)) as api:
        rows = list(api.pages("/v1/batches", params={"state": state}, most=limit))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "state", "jobs", "created", "tags"),
        (
            (
                row["id"],
                row["state"],
                counts_text(row["counts"]) or "none",
                row["created_at"],
                row["tags"],
            )
            for row in rows
        ),
        empty="no batches: submit one with `xnai batch submit FILE`",
    )


@batch.command("results")
def results(
    context: typer.Context,
    batch_id: BatchId,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write them to this file.")
    ] = None,
    cursor: Annotated[
        str | None, typer.Option(help="Go on after the line that had this cursor.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the batch is finished.")
    ] = False,
) -> None:
    """Print the results so far as NDJSON, one line a job that has ended."""
    lines = partial(_results, batch_id=batch_id, cursor=cursor, follow=follow)
    with Api(settings_of(context)) as api:
        if output is None:
            _write(lines(api), sys.stdout.buffer)
            return
        with output.open("wb") as file:
            _write(lines(api), file)


def _write(lines: Iterator[str], file: BinaryIO) -> None:
    for line in lines:
        file.write(line.encode() + b"\n")
        file.flush()  # whoever follows wants it now


def _results(api: Api, *, batch_id: str, cursor: str | None, follow: bool) -> Iterator[str]:
    """Each line once, whatever becomes of the connection meanwhile."""
    path, patience = f"/v1/batches/{batch_id}/results", Patience()
    headers = {"Prefer": f"wait={_WAIT_S}"} if follow else {}
    while True:
        try:
            with api.stream(path, params={"cursor": cursor}, headers=headers) as response:
                for line in lines_of(response):
                    cursor = json.loads(line)["cursor"]
                    patience.renew()
                    yield line
            if not follow or response.headers.get("Batch-State") == "finished":
                return
        except (ApiError, ApiNotReachable) as error:
            patience.wait(error)


def _one(verb: Callable[[Api, str], Document]) -> Callable[..., None]:
    """A command about one batch."""

    def command(context: typer.Context, batch_id: BatchId, *, as_json: AsJson = False) -> None:
        with Api(settings_of(context)) as api:
            found = verb(api, batch_id)
        if as_json:
            print_json(found)
        else:
            show_batch(found)

    return command


def _post(verb: str) -> Callable[[Api, str], Document]:
    return lambda api, id_: persistently(partial(api.post, f"/v1/batches/{id_}/{verb}"))


batch.command("show", help="Show a batch and its counts.")(
    _one(lambda api, id_: api.get(f"/v1/batches/{id_}"))
)
batch.command("seal", help="Let an open batch finish: it takes no more jobs.")(_one(_post("seal")))
batch.command("cancel", help="Cancel what is live in a batch; finished work is kept.")(
    _one(_post("cancel"))
)
batch.command("retry", help="Retry what failed or was cancelled; what succeeded is kept.")(
    _one(_post("retry"))
)
