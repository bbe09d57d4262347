"""Webhooks: who is told of what, what was sent to them, and sending it again."""

import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from cli.client import Api, Document
from cli.listen import listen
from cli.options import settings_of
from cli.output import (
    AsJson,
    Limit,
    console,
    meter,
    print_fields,
    print_json,
    print_table,
)

webhooks = typer.Typer(
    help="Have events delivered to your own addresses, and see what was.", no_args_is_help=True
)
webhooks.command("listen")(listen)

POLL_S = 0.5

Id = Annotated[str, typer.Argument(metavar="ID")]
Events = Annotated[
    list[str], typer.Argument(help="Event types or families, e.g. job.settled batch.*; * is all.")
]
Overlap = Annotated[
    float | None, typer.Option("--overlap-s", help="Seconds that the old secret signs along.")
]
Type = Annotated[str | None, typer.Option(help="Only events of this type.")]
After = Annotated[str | None, typer.Option(metavar="TIME", help="Of events since then.")]
Before = Annotated[str | None, typer.Option(metavar="TIME", help="Of events before then.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Wait = Annotated[bool, typer.Option(help="Follow it until all of it is owed again.")]


class State(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@webhooks.command("list")
def list_(context: typer.Context, *, limit: Limit = 1000, as_json: AsJson = False) -> None:
    """Every webhook, and whether it answers."""
    with Api(settings_of(context)) as api:
        rows = list(api.pages("/v1/webhooks", params={}, most=limit))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "url", "events", "state"),
        ((row["id"], row["url"], " ".join(row["events"]), _state(row)) for row in rows),
        empty="no webhooks",
    )


def _state(webhook: Document) -> str:
    if not webhook["enabled"]:
        return f"disabled: {webhook['disabled_reason']}"
    circuit = webhook["circuit"]
    return "answers" if circuit is None else f"fails since {circuit['failing_since']}"


@webhooks.command("create")
def create(
    context: typer.Context,
    url: str,
    events: Events,
    *,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Create a webhook; its secret is shown once."""
    body = {"url": url, "events": events, "description": description}
    with Api(settings_of(context)) as api:
        _print(api.post("/v1/webhooks", body), as_json=as_json)


@webhooks.command("show")
def show(context: typer.Context, webhook_id: Id, *, as_json: AsJson = False) -> None:
    """One webhook, and what is held against it."""
    with Api(settings_of(context)) as api:
        _print(api.get(f"/v1/webhooks/{webhook_id}"), as_json=as_json)


@webhooks.command("update")
def update(
    context: typer.Context,
    webhook_id: Id,
    *,
    url: Annotated[str | None, typer.Option(help="Where events go from now on.")] = None,
    events: Annotated[
        list[str] | None, typer.Option("--event", help="Only these; several times.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Send to it, or no more.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change a webhook; what is not given stays."""
    given = {"url": url, "events": events, "description": description, "enabled": enabled}
    body = {name: value for name, value in given.items() if value is not None}
    if not body:
        raise typer.BadParameter("say what to change: --url, --event, --description, --enable")
    with Api(settings_of(context)) as api:
        changed = api.send("PATCH", f"/v1/webhooks/{webhook_id}", json=body).json()
    _print(changed, as_json=as_json)


@webhooks.command("delete")
def delete(context: typer.Context, webhook_id: Id) -> None:
    """Delete a webhook and what is owed to it."""
    with Api(settings_of(context)) as api:
        api.send("DELETE", f"/v1/webhooks/{webhook_id}")
    console.print("deleted")


@webhooks.command("rotate")
def rotate(
    context: typer.Context, webhook_id: Id, *, overlap_s: Overlap = None, as_json: AsJson = False
) -> None:
    """Make a new secret, shown once; the old one signs along for a day."""
    with Api(settings_of(context)) as api:
        made = api.post(f"/v1/webhooks/{webhook_id}/rotate", _overlap(overlap_s))
    _print(made, as_json=as_json)


@webhooks.command("callback-secret")
def callback_secret(
    context: typer.Context,
    *,
    rotated: Annotated[bool, typer.Option("--rotate", help="Make a new one.")] = False,
    overlap_s: Overlap = None,
    as_json: AsJson = False,
) -> None:
    """The secret that signs what goes to a `callback_url`."""
    with Api(settings_of(context)) as api:
        if rotated:
            found = api.post("/v1/callback-secret/rotate", _overlap(overlap_s))
        else:
            found = api.get("/v1/callback-secret")
    _print(found, as_json=as_json)


def _overlap(overlap_s: float | None) -> Document:
    return {} if overlap_s is None else {"overlap_s": overlap_s}


@webhooks.command("test")
def send_test(context: typer.Context, webhook_id: Id, *, as_json: AsJson = False) -> None:
    """Send a test event to a webhook, disabled or not."""
    with Api(settings_of(context)) as api:
        _print(api.post(f"/v1/webhooks/{webhook_id}/test"), as_json=as_json)


@webhooks.command("deliveries")
def deliveries(
    context: typer.Context,
    webhook_id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
    *,
    state: Annotated[State | None, typer.Option(help="Only in this state.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Only events of this type.")] = None,
    after: After = None,
    before: Before = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """What was and is to be sent, to one webhook or to all of them and callbacks, newest first."""
    params = {
        "webhook_id": webhook_id,
        "state": state,
        "type": type_,
        "occurred_after": after,
        "occurred_before": before,
    }
    with Api(settings_of(context)) as api:
        rows = list(api.pages("/v1/deliveries", params=params, most=limit))
    if as_json:
        print_json(rows)
        return
    columns = ("id", "type", "state", "attempt", "reason", "due_at", "occurred_at", "url")
    cells = ([row[name] for name in columns] for row in rows)
    print_table(columns, cells, empty="nothing delivered yet")


@webhooks.command("delivery")
def delivery(context: typer.Context, delivery_id: Id, *, as_json: AsJson = False) -> None:
    """One delivery and each of its attempts: what was sent where, and what was answered."""
    with Api(settings_of(context)) as api:
        found = api.get(f"/v1/deliveries/{delivery_id}")
    if as_json:
        print_json(found)
        return
    print_fields({name: found[name] for name in found if name not in ("attempts", "links")})
    columns = ("attempt", "started_at", "duration_s", "address", "status", "error_type")
    cells = (
        [*(line[name] for name in columns), line["error_detail"] or _body(line)]
        for line in found["attempts"]
    )
    print_table((*columns, "answer"), cells, empty="not sent yet")


def _body(attempt: Document) -> str:
    return str((attempt["response"] or {}).get("body", ""))[:200]


@webhooks.command("redeliver")
def redeliver(
    context: typer.Context,
    delivery_id: Annotated[str | None, typer.Argument(metavar="[DELIVERY]")] = None,
    *,
    webhook: Annotated[str | None, typer.Option(help="All that match of this webhook.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Of all, callbacks too.")] = False,
    state: Annotated[State, typer.Option(help="Those in this state.")] = State.DEAD,
    type_: Annotated[str | None, typer.Option("--type", help="Only events of this type.")] = None,
    after: After = None,
    before: Before = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Send one delivery again, or all that match, each under its own webhook-id."""
    if [delivery_id is not None, webhook is not None, everything].count(True) != 1:
        raise typer.BadParameter("name one DELIVERY, or a --webhook, or --all")
    with Api(settings_of(context)) as api:
        if delivery_id is not None:
            _print(api.post(f"/v1/deliveries/{delivery_id}/redeliver"), as_json=as_json)
            return
        given = {
            "webhook_id": webhook,
            "state": state.value,
            "type": type_,
            "occurred_after": after,
            "occurred_before": before,
        }
        body = {"filter": {name: value for name, value in given.items() if value is not None}}
        if (dry_run or not yes) and not _is_meant(api, body, dry_run=dry_run, as_json=as_json):
            return
        started = api.post("/v1/redeliveries", body)
        _print(_follow(api, started) if wait else started, as_json=as_json)


def _is_meant(api: Api, body: Document, *, dry_run: bool, as_json: bool) -> bool:
    """Count first, and ask; a dry run only counts."""
    counted = api.post("/v1/redeliveries", {**body, "dry_run": True})
    if dry_run and as_json:
        print_json(counted)
        return False
    more = "at least " if counted["at_least"] else ""
    typer.echo(f"{more}{counted['matched']} deliveries match", err=as_json)
    if dry_run or not counted["matched"]:
        return False
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to be asked: add --yes (or --dry-run)")
    return typer.confirm("send them again?", err=True)


def _follow(api: Api, redelivery: Document) -> Document:
    with meter("sending again") as bar:
        while redelivery["state"] == "running":
            # A redelivery sends no events: its progress is asked for.
            time.sleep(POLL_S)
            redelivery = api.get(redelivery["links"]["self"])
            bar.advance_to(redelivery["done"], redelivery["expected"])
    return redelivery


def _print(document: Document, *, as_json: bool, hidden: Sequence[str] = ("links",)) -> None:
    if as_json:
        print_json(document)
    else:
        print_fields({name: value for name, value in document.items() if name not in hidden})
