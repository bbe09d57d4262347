"""Bulk operations: one verb for every job that a filter names, followed to their end."""

import sys
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated
from uuid import uuid4

import typer

from cli.client import Api, Document
from cli.options import settings_of
from cli.output import AsJson, Limit, meter, print_fields, print_json, print_table
from runtime.errors import EXIT_FAILED

operations = typer.Typer(
    help="Retry, cancel or discard every job that a filter names.", no_args_is_help=True
)

POLL_S = 0.5
OVER = ("succeeded", "failed", "cancelled")

Kind = Annotated[str | None, typer.Option(help="Only this kind.")]
Pool = Annotated[str | None, typer.Option(help="Only of this pool.")]
Batch = Annotated[str | None, typer.Option(help="Only of this batch.")]
Schedule = Annotated[str | None, typer.Option(help="Only of this schedule.")]
Tag = Annotated[list[str] | None, typer.Option(help="Only with this tag; several: with all.")]
Error = Annotated[str | None, typer.Option(help="Only with this error type, e.g. timeout.")]
Moment = Annotated[str | None, typer.Option(metavar="TIME", help="As 2026-05-04T08:00:00Z.")]
Everything = Annotated[bool, typer.Option("--all", help="Every job; without any condition.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Wait = Annotated[bool, typer.Option(help="Follow it to its end.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Of the operation.")]


class Action(StrEnum):
    """What is done to each job."""

    RETRY = "retry"
    CANCEL = "cancel"
    DISCARD = "discard"


@operations.command("start")
def start(
    context: typer.Context,
    action: Annotated[Action, typer.Argument(help="What is done to each job.")],
    *,
    state: Annotated[str | None, typer.Option(help="Only in this state.")] = None,
    kind: Kind = None,
    pool: Pool = None,
    batch: Batch = None,
    schedule: Schedule = None,
    tag: Tag = None,
    error: Error = None,
    job: Annotated[list[str] | None, typer.Option(help="Only this job; several times.")] = None,
    created_after: Moment = None,
    created_before: Moment = None,
    finished_after: Moment = None,
    finished_before: Moment = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Start an operation. It shows first how many jobs it would touch, and asks."""
    conditions = {
        "state": state,
        "kind": kind,
        "pool": pool,
        "batch_id": batch,
        "schedule_id": schedule,
        "tags": tag,
        "error_type": error,
        "ids": job,
        "created_after": created_after,
        "created_before": created_before,
        "finished_after": finished_after,
        "finished_before": finished_before,
    }
    body = request(action, conditions, everything=everything)
    with Api(settings_of(context)) as api:
        run(api, body, dry_run=dry_run, yes=yes, wait=wait, as_json=as_json)


def request(action: Action, conditions: Mapping[str, object], *, everything: bool) -> Document:
    """The operation to ask for; a usage error when no condition was given."""
    given: Document = {name: value for name, value in conditions.items() if value}
    if not given and not everything:
        raise typer.BadParameter("name jobs or a condition, or --all for every job")
    return {"action": action.value, "filter": given | ({"all": True} if everything else {})}


def run(api: Api, body: Document, *, dry_run: bool, yes: bool, wait: bool, as_json: bool) -> None:
    """Count, ask, start and follow; exit 1 when some jobs could not be done."""
    if dry_run or not yes:
        found = api.post("/v1/operations", {**body, "dry_run": True})
        if dry_run and as_json:
            print_json(found)
        else:
            _show_matches(found, as_json=as_json)
        if dry_run or not _is_meant(found):
            return
    # The key makes it one operation, whatever the network does to the first answer.
    headers = {"Idempotency-Key": f"cli-{uuid4()}"}
    operation = api.post("/v1/operations", body, headers=headers)
    if wait:
        operation = follow(api, operation["id"], quiet=as_json)
    finish(operation, as_json=as_json)


def _show_matches(found: Document, *, as_json: bool) -> None:
    """Tell how many jobs match, beside the JSON if that is what stdout is for."""
    more = "at least " if found["at_least"] else ""
    jobs = "job" if found["matched"] == 1 else "jobs"
    typer.echo(f"{found['action']}: {more}{found['matched']} {jobs} match", err=as_json)
    for job_id in found["sample"]:
        typer.echo(f"  {job_id}", err=as_json)
    if found["matched"] > len(found["sample"]):
        typer.echo("  …", err=as_json)


def _is_meant(found: Document) -> bool:
    if not found["matched"]:
        return False
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to be asked: add --yes (or --dry-run)")
    return typer.confirm(f"{found['action']} them?", err=True)


def follow(api: Api, operation_id: str, *, quiet: bool = False) -> Document:
    """Wait until the operation is over, with its progress; it goes on without us."""
    with meter("waiting", quiet=quiet) as bar:
        while True:
            operation = api.get(f"/v1/operations/{operation_id}")
            progress = operation["progress"]
            text = f"{operation['action']} {operation['state']}"
            bar.show(text, done=progress["done"], total=progress["total"])
            if operation["state"] in OVER:
                return operation
            # An operation sends no events: its progress is asked for.
            time.sleep(POLL_S)


def finish(operation: Document, *, as_json: bool) -> None:
    """Print an operation; exit 1 when some of its jobs could not be done."""
    if as_json:
        print_json(operation)
    else:
        shown = ("id", "action", "filter", "state", "counts", "actor", "error")
        print_fields({name: operation[name] for name in shown})
    if operation["state"] == "failed":
        raise typer.Exit(EXIT_FAILED)


@operations.command("list")
def list_(context: typer.Context, *, limit: Limit = 50, as_json: AsJson = False) -> None:
    """Every operation, newest first."""
    with Api(settings_of(context)) as api:
        rows = list(api.pages("/v1/operations", params={}, most=limit))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "action", "state", "done", "skipped", "failed", "filter"),
        (
            (
                row["id"],
                row["action"],
                row["state"],
                *(row["counts"][name] for name in ("done", "skipped", "failed")),
                row["filter"],
            )
            for row in rows
        ),
        empty="no operations",
    )


def _one(verb: Callable[[Api, str], Document]) -> Callable[..., None]:
    """A command about one operation."""

    def command(context: typer.Context, operation_id: Id, *, as_json: AsJson = False) -> None:
        with Api(settings_of(context)) as api:
            finish(verb(api, operation_id), as_json=as_json)

    return command


operations.command("show", help="One operation and how far it is.")(
    _one(lambda api, id_: api.get(f"/v1/operations/{id_}"))
)
operations.command("watch", help="Follow an operation to its end.")(_one(follow))
operations.command("cancel", help="Do no more of it; what was done stays done.")(
    _one(lambda api, id_: api.post(f"/v1/operations/{id_}/cancel"))
)
