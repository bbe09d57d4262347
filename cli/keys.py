"""Verbs about who may do what and how much: API keys, tenants and their quotas, the log of acts."""

from typing import Annotated

import typer

from cli.client import Api, Document
from cli.options import settings_of
from cli.output import AsJson, Limit, console, print_fields, print_json, print_table

keys = typer.Typer(help="Create, rotate and revoke API keys.", no_args_is_help=True)
quotas = typer.Typer(help="What tenants may have, and what they use.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(metavar="ID")]
OfTenant = Annotated[
    str | None,
    typer.Option("--tenant", help="Another tenant; for keys of the tenant `default`."),
]
# The quotas by the names of the API.
_NAMES = (
    *("live_jobs", "documents", "stored_bytes", "schedules"),
    *("webhooks", "open_batches", "streams", "requests_per_minute"),
)


@keys.command("list")
def list_keys(context: typer.Context, *, tenant: OfTenant = None, as_json: AsJson = False) -> None:
    """Every key, without its secret."""
    columns = (
        *("id", "name", "prefix", "role", "created_at"),
        *("expires_at", "last_used_at", "revoked_at"),
    )
    with Api(settings_of(context)) as api:
        rows = list(api.pages("/v1/keys", params={"tenant": tenant}, most=100_000))
    _print_rows(rows, columns, empty="no keys", as_json=as_json)


@keys.command("create")
def create_key(
    context: typer.Context,
    name: str,
    *,
    role: Annotated[str, typer.Option(help="reader, submitter, operator or admin.")] = "submitter",
    tenant: Annotated[
        str | None,
        typer.Option(help="A tenant, made if need be; for keys of the tenant `default`."),
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(help="RFC 3339, e.g. 2027-01-31T00:00:00Z.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key; it is shown once."""
    body: Document = {"name": name, "role": role}
    body |= {"tenant": tenant} if tenant is not None else {}
    body |= {"expires_at": expires_at} if expires_at is not None else {}
    with Api(settings_of(context)) as api:
        _print_one(api.post("/v1/keys", body), as_json=as_json)


@keys.command("rotate")
def rotate_key(
    context: typer.Context,
    key_id: KeyId,
    *,
    overlap_s: Annotated[
        float, typer.Option(min=0, help="Seconds for which the old secret holds; 0 if it leaked.")
    ] = 86_400.0,
    tenant: OfTenant = None,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret, shown once; the old one holds for a while."""
    with Api(settings_of(context)) as api:
        rotated = api.post(
            f"/v1/keys/{key_id}/rotate", {"overlap_s": overlap_s}, params=_of(tenant)
        )
    _print_one(rotated, as_json=as_json)


@keys.command("revoke")
def revoke_key(context: typer.Context, key_id: KeyId, *, tenant: OfTenant = None) -> None:
    """Revoke a key at once."""
    with Api(settings_of(context)) as api:
        api.send("DELETE", f"/v1/keys/{key_id}", params=_of(tenant))
    console.print("revoked")


@quotas.command("list")
def list_tenants(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Every tenant, and what was granted to it otherwise than by default."""
    with Api(settings_of(context)) as api:
        rows = list(api.pages("/v1/tenants", params={}, most=100_000))
    if as_json:
        print_json(rows)
        return
    granted = [
        (row["tenant"], ", ".join(f"{name}={row['quotas'][name]}" for name in row["changed"]))
        for row in rows
    ]
    print_table(("tenant", "granted"), granted, empty="no tenants")


@quotas.command("show")
def show_quotas(
    context: typer.Context, *, tenant: OfTenant = None, as_json: AsJson = False
) -> None:
    """What a tenant may have, and has; the key's own tenant unless another is named."""
    path = "/v1/quotas" if tenant is None else f"/v1/tenants/{tenant}/quotas"
    with Api(settings_of(context)) as api:
        _print_quotas(api.get(path), as_json=as_json)


@quotas.command("set")
def set_quotas(
    context: typer.Context,
    tenant: str,
    grants: Annotated[
        list[str],
        typer.Argument(metavar="NAME=NUMBER…", help="A number, or `default`."),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Grant a tenant more or less, e.g. `xnai quotas set acme live_jobs=1000 schedules=default`."""
    body = dict(_grant(text) for text in grants)
    with Api(settings_of(context)) as api:
        changed = api.send("PATCH", f"/v1/tenants/{tenant}/quotas", json=body).json()
    _print_quotas(changed, as_json=as_json)


def audit(
    context: typer.Context,
    *,
    action: Annotated[str | None, typer.Option(help="Only these, e.g. key.revoked.")] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="Only what this key did.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """What admins and operators of the tenant did, newest first."""
    columns = ("at", "key_name", "action", "target", "details", "address", "request_id")
    params = {"action": action, "key_id": key}
    with Api(settings_of(context)) as api:
        rows = list(api.pages("/v1/audit", params=params, most=limit))
    _print_rows(rows, columns, empty="nothing was done yet", as_json=as_json)


def _of(tenant: str | None) -> dict[str, str]:
    return {} if tenant is None else {"tenant": tenant}


def _grant(text: str) -> tuple[str, int | None]:
    name, _, amount = text.partition("=")
    if name not in _NAMES or not (amount == "default" or amount.isdecimal()):
        message = f"{text!r}: write NAME=NUMBER or NAME=default; names: {', '.join(_NAMES)}"
        raise typer.BadParameter(message)
    return name, None if amount == "default" else int(amount)


def _print_quotas(found: Document, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        (
            name,
            found["quotas"][name],
            found["used"].get(name),
            "granted" if name in found["changed"] else "default",
        )
        for name in _NAMES
    ]
    print_table(("quota", "limit", "used", "by"), rows, empty="no quotas")


def _print_rows(
    rows: list[Document], columns: tuple[str, ...], *, empty: str, as_json: bool
) -> None:
    if as_json:
        print_json(rows)
    else:
        print_table(columns, ([row.get(name) for name in columns] for row in rows), empty=empty)


def _print_one(document: Document, *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        print_fields(document)
