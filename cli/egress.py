"""`xnai egress`: what crawls and webhooks may reach although private, and why a URL may not."""

from typing import Annotated
from urllib.parse import quote

import typer

from cli.client import Api
from cli.options import settings_of
from cli.output import AsJson, console, print_fields, print_json, print_table
from runtime.errors import EXIT_FAILED

egress = typer.Typer(
    help="Let a tenant reach what is private, and ask why a URL is refused.", no_args_is_help=True
)

Tenant = Annotated[str, typer.Option(help="Name of the tenant.")]
Entry = Annotated[str, typer.Argument(help="10.20.0.0/16, wiki.internal, *.corp or host:8443.")]


@egress.command("allow")
def allow(
    context: typer.Context,
    entry: Entry,
    *,
    tenant: Tenant = "default",
    note: Annotated[str, typer.Option(help="Why, for whoever reads the list.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let a tenant reach a network, host, domain or host and port although private."""
    with Api(settings_of(context)) as api:
        made = api.post(_path(tenant), {"entry": entry, "note": note})
    if as_json:
        print_json(made)
    else:
        print_fields(made)


@egress.command("list")
def list_entries(
    context: typer.Context, *, tenant: Tenant = "default", as_json: AsJson = False
) -> None:
    """What a tenant may reach beside XNAI_EGRESS_ALLOW."""
    with Api(settings_of(context)) as api:
        rows = api.get(_path(tenant))["data"]
    if as_json:
        print_json(rows)
        return
    columns = ("entry", "note", "created_at")
    empty = "no entries of its own: XNAI_EGRESS_ALLOW holds for every tenant"
    print_table(columns, ([row[name] for name in columns] for row in rows), empty=empty)


@egress.command("remove")
def remove(context: typer.Context, entry: Entry, *, tenant: Tenant = "default") -> None:
    """Take an entry away; what is under way keeps it."""
    with Api(settings_of(context)) as api:
        api.send("DELETE", f"{_path(tenant)}?entry={quote(entry, safe='')}")
    console.print("removed")


@egress.command("check")
def check(
    context: typer.Context,
    url: str,
    *,
    tenant: Annotated[str | None, typer.Option(help="As which tenant.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a URL step by step as the guard would; exits 1 when it may not be reached."""
    with Api(settings_of(context)) as api:
        told = api.post("/v1/egress/check", {"url": url, "tenant": tenant})
    if as_json:
        print_json(told)
    else:
        print_table(
            ("step", "detail"), ((step["step"], step["detail"]) for step in told["steps"]), empty=""
        )
        print_fields({"allowed": told["allowed"], "detail": told["detail"]})
    if not told["allowed"]:
        raise typer.Exit(EXIT_FAILED)


def _path(tenant: str) -> str:
    return f"/v1/tenants/{quote(tenant, safe='')}/egress"
