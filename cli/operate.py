"""Verbs of operators and admins: pools, workers, schedules."""

import json
from typing import Annotated

import typer

from cli.client import Api, Document
from cli.options import settings_of
from cli.output import AsJson, Limit, console, print_fields, print_json, print_table

pools = typer.Typer(help="List, pause and resume pools.", invoke_without_command=True)
schedules = typer.Typer(help="Run jobs by the clock.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID")]


def _print_list(
    context: typer.Context,
    path: str,
    columns: tuple[str, ...],
    *,
    empty: str,
    as_json: bool,
    limit: int = 1000,
) -> None:
    """A list of the API as a table of some of its fields."""
    with Api(settings_of(context)) as api:
        rows = list(api.pages(path, params={}, most=limit))
    if as_json:
        print_json(rows)
    else:
        print_table(columns, ([row.get(name) for name in columns] for row in rows), empty=empty)


def _print_one(document: Document, *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        print_fields({name: value for name, value in document.items() if name != "links"})


def _act(context: typer.Context, path: str, body: object = None, *, as_json: bool) -> None:
    with Api(settings_of(context)) as api:
        _print_one(api.post(path, body), as_json=as_json)


def _verb(app: typer.Typer, name: str, path: str, text: str) -> None:
    """A command that posts to the path of one object."""

    def act(context: typer.Context, id_: Id, *, as_json: AsJson = False) -> None:
        _act(context, path.format(id=id_), as_json=as_json)

    app.command(name, help=text)(act)


def _deletion(app: typer.Typer, name: str, path: str, text: str) -> None:
    """A command that deletes one object."""

    def delete(context: typer.Context, id_: Id) -> None:
        with Api(settings_of(context)) as api:
            api.send("DELETE", path.format(id=id_))
        console.print("deleted")

    app.command(name, help=text)(delete)


@pools.callback()
def pools_(context: typer.Context) -> None:
    """List, pause and resume pools; alone, list them."""
    if context.invoked_subcommand is None:
        list_pools(context)


@pools.command("list")
def list_pools(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Every pool: depth, oldest job, rate; since when, by whom and why it is paused."""
    columns = (
        *("name", "queued", "running", "slots", "oldest_s", "drained_per_s"),
        *("paused_at", "paused_by", "paused_reason"),
    )
    _print_list(context, "/v1/pools", columns, empty="no pools", as_json=as_json)


@pools.command("pause")
def pause(
    context: typer.Context,
    pool: str,
    *,
    reason: Annotated[str | None, typer.Option(help="Shown to everybody who asks why.")] = None,
    as_json: AsJson = False,
) -> None:
    """Let no slot claim from a pool; what runs goes on."""
    _act(context, f"/v1/pools/{pool}/pause", {"reason": reason} if reason else {}, as_json=as_json)


def workers(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Every live slot: where it runs, on which cores, what it holds."""
    columns = ("id", "pool", "number", "host", "cores", "state", "running", "beat_at")
    _print_list(
        context,
        "/v1/workers",
        columns,
        empty="no live slots: start some with `xnai work POOL`",
        as_json=as_json,
    )


@schedules.command("list")
def list_schedules(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Every schedule and its next fire."""
    columns = ("id", "name", "cron", "every_s", "timezone", "next_fire_at", "paused_at")
    _print_list(context, "/v1/schedules", columns, empty="no schedules", as_json=as_json)


@schedules.command("create")
def create_schedule(
    context: typer.Context,
    name: str,
    kind: Annotated[str, typer.Argument(help="Kind of the job.")],
    payload: Annotated[str, typer.Argument(help="The job's payload as JSON.")],
    *,
    cron: Annotated[str | None, typer.Option(help="Five fields, e.g. '0 3 * * *'.")] = None,
    every_s: Annotated[float | None, typer.Option(help="Seconds between fires.")] = None,
    timezone: Annotated[str, typer.Option(help="IANA name, for cron.")] = "UTC",
    as_json: AsJson = False,
) -> None:
    """Create a schedule by cron or by interval."""
    try:
        job = {"kind": kind, "payload": json.loads(payload)}
    except ValueError as error:
        raise typer.BadParameter(f"the payload is no JSON: {error}") from error
    body: Document = {"name": name, "job": job, "timezone": timezone}
    body |= {"cron": cron} if cron is not None else {}
    body |= {"every_s": every_s} if every_s is not None else {}
    _act(context, "/v1/schedules", body, as_json=as_json)


@schedules.command("show")
def show_schedule(context: typer.Context, schedule_id: Id, *, as_json: AsJson = False) -> None:
    """One schedule and its next fires."""
    with Api(settings_of(context)) as api:
        found = api.get(f"/v1/schedules/{schedule_id}")
        found["preview"] = api.get(f"/v1/schedules/{schedule_id}/preview", params={"n": 5})["data"]
    _print_one(found, as_json=as_json)


@schedules.command("runs")
def runs(
    context: typer.Context, schedule_id: Id, *, limit: Limit = 50, as_json: AsJson = False
) -> None:
    """Past fires of a schedule."""
    _print_list(
        context,
        f"/v1/schedules/{schedule_id}/runs",
        ("fire_at", "outcome", "job_id"),
        empty="it has not fired yet",
        as_json=as_json,
        limit=limit,
    )


_verb(pools, "resume", "/v1/pools/{id}/resume", "Let slots claim from a pool again.")
_verb(schedules, "pause", "/v1/schedules/{id}/pause", "Fire no more until resumed.")
_verb(schedules, "resume", "/v1/schedules/{id}/resume", "Fire again.")
_verb(schedules, "trigger", "/v1/schedules/{id}/trigger", "Fire now, beside the schedule.")
_deletion(schedules, "delete", "/v1/schedules/{id}", "Delete a schedule; its jobs stay.")
