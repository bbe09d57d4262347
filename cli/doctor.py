"""`xnai doctor`: what is wrong on this machine and how to mend it; the plan of pools and cores."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import anyio
import typer
from rich.markup import escape

from cli.client import Api
from cli.options import settings_of
from cli.output import AsJson, console, print_json, print_table
from runtime.errors import EXIT_FAILED, XnaiError
from runtime.settings import Settings

FREE_BYTES_MIN = 1024**3
_MARKS = {
    "ok": "[green]ok[/]      ",
    "degraded": "[yellow]degraded[/]",
    "bad": "[red]bad[/]     ",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, whether it is well, what was seen, and the fix."""

    check: str
    is_well: bool
    seen: str
    fix: str = ""
    is_needed: bool = True

    @property
    def status(self) -> str:
        """`ok`, `degraded` (everything works, something slower), or `bad`."""
        return "ok" if self.is_well else "bad" if self.is_needed else "degraded"


def doctor(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Check this machine, and show which slot runs on which cores."""
    from workers.topology import plan_slots

    settings = settings_of(context)
    findings = list(_examine(settings))
    plan = [asdict(slot) for slot in plan_slots(settings.pools)]
    if as_json:
        told = [{**asdict(finding), "status": finding.status} for finding in findings]
        print_json({"findings": told, "slots": plan})
    else:
        _print(findings)
        console.print()
        rows = ((s["pool"], s["number"], ",".join(map(str, s["cpus"]))) for s in plan)
        print_table(("pool", "slot", "cpus"), rows, empty="no pools: set XNAI_POOLS")
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(EXIT_FAILED)


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        console.print(f"{_MARKS[finding.status]} {finding.check}: {escape(finding.seen)}")
        if not finding.is_well and finding.fix:
            console.print(f"     [bold]fix:[/] {escape(finding.fix)}")


def _examine(settings: Settings) -> Iterator[Finding]:
    yield _python()
    yield _torch_free()
    yield _disk(settings.data_dir)
    yield from _models(settings)
    yield _guarded("api", lambda: _api(settings), "start it with `xnai up`")
    yield _guarded(
        "postgres", lambda: _postgres(settings), "start it with `xnai up`, or set XNAI_DATABASE_URL"
    )
    yield _guarded(
        "redis",
        lambda: _redis(settings),
        "start it with `xnai up`, or set XNAI_REDIS_URL; jobs go on without it, slower",
        is_needed=False,
    )


def _guarded(check: str, look: Callable[[], str], fix: str, *, is_needed: bool = True) -> Finding:
    try:
        return Finding(check, True, look(), is_needed=is_needed)
    except (XnaiError, OSError) as error:
        return Finding(check, False, str(error), fix, is_needed)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 12), version, "install Python 3.12 or newer")


def _torch_free() -> Finding:
    found = [name for name in ("torch", "triton", "tensorflow") if find_spec(name)]
    seen = f"{', '.join(found)} is installed" if found else "no torch, no triton"
    return Finding("torch-free", not found, seen, f"pip uninstall {' '.join(found)}")


def _disk(data_dir: Path) -> Finding:
    existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    seen = f"{data_dir}, {free / 1024**3:.1f} GiB free"
    return Finding(
        "data directory", free >= FREE_BYTES_MIN, seen, "free some space, or set XNAI_DATA_DIR"
    )


def _models(settings: Settings) -> Iterator[Finding]:
    from engines.models import installed_models_dir, problems

    found = problems(
        installed_models_dir(), text_model=settings.llm_model, embed_model=settings.embed_model
    )
    if not found:
        yield Finding("models", True, f"{settings.llm_model} and {settings.embed_model} are sound")
    for problem in found:
        yield Finding("models", False, str(problem), "make setup prepares the default models")


def _api(settings: Settings) -> str:
    with Api(settings) as api:
        api.get("/v1/jobs", params={"limit": 1})
        return api.url


def _postgres(settings: Settings) -> str:
    from runtime.postgres import connect, database_url
    from runtime.stack import local_settings

    async def version() -> str:
        connection = await connect(database_url(local_settings(settings)), role="doctor")
        try:
            return ".".join(map(str, connection.get_server_version()[:2]))
        finally:
            await connection.close()

    return f"PostgreSQL {anyio.run(version)}"


def _redis(settings: Settings) -> str:
    from jobs.dispatch import UNAVAILABLE
    from runtime.redis import connect
    from runtime.stack import local_settings

    async def version() -> str:
        redis = connect(local_settings(settings))
        try:
            info = await redis.info("server")
        except UNAVAILABLE as error:
            raise XnaiError(f"no answer: {error}") from error
        finally:
            await redis.aclose()
        return str(info.get("valkey_version") or info.get("redis_version"))

    return f"version {anyio.run(version)}"
