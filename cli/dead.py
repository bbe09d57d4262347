"""Dead letters: jobs that failed for good are listed, looked at, retried or discarded."""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from cli.client import Api, ApiError, Document
from cli.jobs import show
from cli.operations import (
    Action,
    Batch,
    DryRun,
    Error,
    Everything,
    Kind,
    Moment,
    Pool,
    Schedule,
    Tag,
    Wait,
    Yes,
    request,
    run,
)
from cli.options import settings_of
from cli.output import AsJson, Limit, console, errors, print_json, print_table, short_error
from runtime.errors import EXIT_FAILED

dead = typer.Typer(
    help="Dead letters: list, show, retry and discard jobs that failed for good.",
    no_args_is_help=True,
)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Of failed jobs.")]


@dead.command("list")
def list_(
    context: typer.Context,
    *,
    kind: Kind = None,
    batch: Batch = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    error: Error = None,
    discarded: Annotated[
        bool, typer.Option("--discarded", help="Those that were discarded, instead.")
    ] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    params = {
        "state": "failed",
        "kind": kind,
        "batch_id": batch,
        "tag": tag,
        "error_type": error,
        "discarded": "true" if discarded else None,
    }
    with Api(settings_of(context)) as api:
        rows = list(api.pages("/v1/jobs", params=params, most=limit))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "kind", "attempt", "finished", "error"),
        (
            (r["id"], r["kind"], r["attempt"], r["finished_at"], short_error(r["error"]))
            for r in rows
        ),
        empty="no dead letters" if not discarded else "nothing was discarded",
    )


dead.command("show", help="Show one job, its error and its attempts.")(show)


def _bulk(action: Action) -> Callable[..., None]:
    """A command for jobs by their ids, one by one, or by conditions, as an operation."""

    def command(
        context: typer.Context,
        ids: Ids = None,
        *,
        kind: Kind = None,
        pool: Pool = None,
        batch: Batch = None,
        schedule: Schedule = None,
        tag: Tag = None,
        error: Error = None,
        finished_after: Moment = None,
        finished_before: Moment = None,
        everything: Everything = False,
        dry_run: DryRun = False,
        yes: Yes = False,
        wait: Wait = True,
        as_json: AsJson = False,
    ) -> None:
        conditions = {
            "kind": kind,
            "pool": pool,
            "batch_id": batch,
            "schedule_id": schedule,
            "tags": tag,
            "error_type": error,
            "finished_after": finished_after,
            "finished_before": finished_before,
        }
        if ids and (any(conditions.values()) or everything or dry_run):
            raise typer.BadParameter("give ids, or conditions with --dry-run or --yes, not both")
        with Api(settings_of(context)) as api:
            if ids:
                _each(api, ids, action, as_json=as_json)
                return
            body = request(action, conditions, everything=everything)
            run(api, body, dry_run=dry_run, yes=yes, wait=wait, as_json=as_json)

    return command


dead.command("retry", help="Give dead letters a new budget: by id, or all that match.")(
    _bulk(Action.RETRY)
)
dead.command("discard", help="Take dead letters off the list: by id, or all that match.")(
    _bulk(Action.DISCARD)
)


def _each(api: Api, ids: Sequence[str], action: Action, *, as_json: bool) -> None:
    """One request a job; what one refuses does not keep the others."""
    done: list[Document] = []
    refused = 0
    for job_id in dict.fromkeys(ids):
        try:
            done.append(api.post(f"/v1/jobs/{job_id}/{action}"))
        except ApiError as error:
            refused += 1
            errors.print(f"[red]xnai:[/] {job_id}: {error}", markup=True)
    if as_json:
        print_json(done)
    else:
        for job in done:
            word = "discarded" if job["discarded_at"] else job["state"]
            console.print(f"{job['id']}  {word}")
    if refused:
        raise typer.Exit(EXIT_FAILED)
