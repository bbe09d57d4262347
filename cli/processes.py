"""Verbs that are processes of the stack, and those that prepare or describe it."""

import shlex
import sys
from typing import Annotated, Literal

import anyio
import typer

from cli.client import Api
from cli.options import settings_of
from cli.output import AsJson, console, print_json
from cli.roles import run_role
from runtime.errors import XnaiError
from runtime.settings import load_settings

Port = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="Port of the API; 0 takes a free one."),
]


def up(context: typer.Context, *, port: Port = None) -> None:
    """Run the whole stack on this machine; embedded servers where no URL is set."""
    from cli.up import run_stack
    from runtime import logs

    settings = settings_of(context) if port is None else load_settings(port=port)
    logs.configure(settings, role="up")
    # The standard loop: uvloop cannot start a server as another user.
    anyio.run(run_stack, settings)


def api(context: typer.Context, *, port: Port = None) -> None:
    """Run the HTTP front."""
    run_role("api", [], settings_of(context) if port is None else load_settings(port=port))


def work(
    context: typer.Context,
    pools: Annotated[
        list[str], typer.Argument(metavar="POOL…", help="Pools whose slots to run here.")
    ],
) -> None:
    """Run the slots of some pools, pinned to their cores."""
    settings = settings_of(context)
    unknown = [pool for pool in pools if pool not in settings.pools]
    if unknown:
        known = ", ".join(settings.pools)
        raise typer.BadParameter(
            f"no pool {unknown[0]!r} is configured (there are {known}): add it to XNAI_POOLS"
        )
    run_role("work", pools, settings)


def tick(context: typer.Context) -> None:
    """Run schedules, webhook deliveries and retention."""
    run_role("tick", [], settings_of(context))


def search_server(context: typer.Context) -> None:
    """Hold the vector index and answer searches."""
    run_role("search-server", [], settings_of(context))


def migrate(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Bring the database to this version's schema."""
    from runtime.migrate import migrate as apply
    from runtime.postgres import database_url
    from runtime.stack import local_settings

    applied = anyio.run(apply, database_url(local_settings(settings_of(context))))
    if as_json:
        print_json({"applied": applied})
    else:
        console.print("\n".join(applied) if applied else "the schema is up to date")


def env(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Print the local stack's addresses and key, for `eval "$(xnai env)"`."""
    from runtime.stack import local_api_url, local_settings

    settings = local_settings(settings_of(context))
    key_file = settings.data_dir / "admin.key"
    values = {
        "XNAI_DATABASE_URL": settings.database_url,
        "XNAI_REDIS_URL": settings.redis_url,
        "XNAI_API_URL": settings.api_url or local_api_url(settings),
        "XNAI_API_KEY": settings.api_key
        or (key_file.read_text("ascii").strip() if key_file.exists() else None),
    }
    if values["XNAI_DATABASE_URL"] is None:
        raise XnaiError(f"no stack runs on {settings.data_dir}: start it with `xnai up`")
    if as_json:
        print_json(values)
        return
    for name, value in values.items():
        if value is not None:
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


def service(context: typer.Context) -> None:
    """Print a systemd user unit that runs `xnai up`."""
    settings = settings_of(context)
    command = shlex.join([sys.executable, "-m", "cli.main", "up"])
    sys.stdout.write(
        "[Unit]\n"
        "Description=xnai, durable jobs\n"
        "After=network-online.target\n\n"
        "[Service]\n"
        f"Environment=XNAI_DATA_DIR={shlex.quote(str(settings.data_dir))}\n"
        f"ExecStart={command}\n"
        "Restart=on-failure\n"
        f"TimeoutStopSec={int(settings.grace_s) + 20}\n"
        "KillMode=mixed\n\n"
        "[Install]\n"
        "WantedBy=default.target\n"
    )


def rebuild(
    context: typer.Context,
    what: Annotated[
        Literal["index", "dispatch"],
        typer.Argument(
            help="index: build a collection's vector index again from Postgres. "
            "dispatch: announce again what is queued, after Redis was emptied."
        ),
    ],
    *,
    collection: Annotated[str, typer.Option("--collection", "-c")] = "default",
    as_json: AsJson = False,
) -> None:
    """Build derived data again from Postgres."""
    if what == "dispatch":
        _rebuild_dispatch(context, as_json=as_json)
    else:
        _rebuild_index(context, collection, as_json=as_json)


def _rebuild_index(context: typer.Context, collection: str, *, as_json: bool) -> None:
    from cli.jobs import finish_with
    from cli.watching import follow_job

    payload = {"collection": collection, "rebuild": True}
    with Api(settings_of(context)) as api_session:
        job = api_session.post("/v1/jobs", {"kind": "index", "payload": payload})
        finish_with(follow_job(api_session, job["id"], quiet=as_json), as_json=as_json)


def _rebuild_dispatch(context: typer.Context, *, as_json: bool) -> None:
    from cli.backup import reachable_settings
    from cli.redispatch import announce_queued

    announced = anyio.run(announce_queued, reachable_settings(settings_of(context)))
    if as_json:
        print_json({"pools": len(announced), "announced": announced})
        return
    for pool, jobs in announced.items():
        console.print(f"{pool}: announced {jobs} queued jobs")
    if not announced:
        console.print("nothing is queued in any pool that is not paused")
