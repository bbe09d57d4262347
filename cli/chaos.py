"""`xnai chaos`: faults on purpose against a stack of its own, and a report of what is left."""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Annotated

import anyio
import typer
from anyio.abc import TaskStatus

from cli.output import AsJson, errors, print_json
from runtime import logs
from runtime.errors import EXIT_FAILED
from runtime.settings import load_settings

if TYPE_CHECKING:
    from chaos.plan import Fault
    from chaos.run import Order, Outcome

JOBS_MAX = 200_000
MINUTES_MAX = 24 * 60.0
SEEDS = 1_000_000
EXIT_INTERRUPTED = 130


def chaos(
    *,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Repeat the plan of this seed; without it a new one."),
    ] = None,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.2, max=MINUTES_MAX, help="How long it may take.")
    ] = 2.0,
    jobs: Annotated[
        int, typer.Option("--jobs", min=10, max=JOBS_MAX, help="How many jobs are submitted.")
    ] = 5_000,
    faults: Annotated[
        str | None,
        typer.Option("--faults", help="Only these, separated by commas; `help` lists them."),
    ] = None,
    rates: Annotated[
        bool,
        typer.Option(help="Compare the drain rates before and after: not on a busy machine."),
    ] = True,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the run's folder, with logs and database.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Break a stack of its own on purpose, and check that every promise was kept.

    Touches nothing of yours: it runs in a temporary folder, on free ports of the loopback.
    """
    from chaos.plan import MEANINGS
    from chaos.run import Order

    if faults == "help":
        for fault, meaning in MEANINGS.items():
            typer.echo(f"{fault:<20} {meaning}")
        return
    logs.configure(load_settings(log_level="error"), role="chaos")
    chosen = SystemRandom().randrange(SEEDS) if seed is None else seed
    order = Order(chosen, jobs=jobs, minutes=minutes, faults=_faults(faults), with_rates=rates)
    sys.exit(_run(order, keep=keep, as_json=as_json))


def _faults(text: str | None) -> "tuple[Fault, ...]":
    from chaos.plan import Fault

    if text is None:
        return tuple(Fault)
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [str(fault) for fault in Fault]
    for name in names:
        if name not in known:
            message = f"no fault {name!r}: `xnai chaos --faults help` lists them"
            raise typer.BadParameter(message, param_hint="--faults")
    return tuple(Fault(name) for name in names)


def _run(order: "Order", *, keep: bool, as_json: bool) -> int:
    """Run, print the report and keep it in a file; the exit code."""
    from chaos import report

    errors.print(f"seed {order.seed}", markup=False)
    outcome = anyio.run(_interruptible, order, keep)
    if outcome is None:
        errors.print("interrupted: everything that was started has been stopped")
        return EXIT_INTERRUPTED
    document = report.as_json(outcome)
    errors.print(f"report: {_write(document, order.seed)}", markup=False)
    if as_json:
        print_json(document)
    else:
        sys.stdout.write(report.as_text(outcome))
    return 0 if outcome.is_clean else EXIT_FAILED


async def _interruptible(order: "Order", keep: bool) -> "Outcome | None":
    """The run's outcome; None when a signal ended it."""
    outcome = None
    async with anyio.create_task_group() as group:
        await group.start(_end_on_signal, group.cancel_scope)
        outcome = await _in_workplace(order, keep=keep)
        group.cancel_scope.cancel()
    return outcome


async def _in_workplace(order: "Order", *, keep: bool) -> "Outcome":
    from chaos.run import run_chaos
    from chaos.workplace import workplace

    async with workplace(keep=keep) as folder:
        if keep:
            errors.print(f"folder: {folder}", markup=False)
        return await run_chaos(order, folder, _teller())


async def _end_on_signal(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


def _teller() -> Callable[[str], None]:
    """Progress on standard error, with the seconds since now."""
    began = time.monotonic()

    def say(text: str) -> None:
        errors.print(f"{time.monotonic() - began:6.1f}  {text}", markup=False)

    return say


def _write(document: object, seed: int) -> Path:
    """Keep the report beside the run's folder, which goes away."""
    descriptor, name = tempfile.mkstemp(prefix=f"xnai-chaos-report-{seed}-", suffix=".json")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
    return Path(name)
