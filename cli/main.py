"""The `xnai` command: one verb a line of docs/cli.md, and the boundary where errors become one
line.
"""

import errno
import os
import sys

import typer
from rich.markup import escape

from cli import (
    backup,
    batches,
    bench,
    chaos,
    dead,
    doctor,
    egress,
    ingest,
    jobs,
    keys,
    knowledge,
    operate,
    operations,
    processes,
    watch,
    webhooks,
)
from cli.output import errors
from runtime.errors import EXIT_FAILED, XnaiError

app = typer.Typer(
    name="xnai",
    help="Durable jobs on your own machines: crawl, embed, index, generate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up", rich_help_panel="Stack")(processes.up)
app.command("api", rich_help_panel="Stack")(processes.api)
app.command("work", rich_help_panel="Stack")(processes.work)
app.command("tick", rich_help_panel="Stack")(processes.tick)
app.command("search-server", rich_help_panel="Stack")(processes.search_server)
app.command("migrate", rich_help_panel="Stack")(processes.migrate)
app.command("env", rich_help_panel="Stack")(processes.env)
app.command("service", rich_help_panel="Stack")(processes.service)
app.command("doctor", rich_help_panel="Stack")(doctor.doctor)
app.command("chaos", rich_help_panel="Stack")(chaos.chaos)
app.command("bench", rich_help_panel="Stack")(bench.bench)
app.command("rebuild", rich_help_panel="Stack")(processes.rebuild)
app.command("backup", rich_help_panel="Stack")(backup.backup)
app.command("restore", rich_help_panel="Stack")(backup.restore)
app.command("submit", rich_help_panel="Jobs")(jobs.submit)
app.add_typer(jobs.jobs, name="jobs", rich_help_panel="Jobs")
app.add_typer(batches.batch, name="batch", rich_help_panel="Jobs")
app.command("watch", rich_help_panel="Jobs")(watch.watch)
app.add_typer(dead.dead, name="dead", rich_help_panel="Jobs")
app.add_typer(operations.operations, name="operations", rich_help_panel="Jobs")
app.command("crawl", rich_help_panel="Text")(knowledge.crawl)
app.command("ingest", rich_help_panel="Text")(ingest.ingest)
app.command("search", rich_help_panel="Text")(knowledge.search)
app.command("ask", rich_help_panel="Text")(knowledge.ask)
app.add_typer(operate.schedules, name="schedules", rich_help_panel="Operate")
app.add_typer(webhooks.webhooks, name="webhooks", rich_help_panel="Operate")
app.add_typer(operate.pools, name="pools", rich_help_panel="Operate")
app.command("workers", rich_help_panel="Operate")(operate.workers)
app.add_typer(egress.egress, name="egress", rich_help_panel="Operate")
app.add_typer(keys.keys, name="keys", rich_help_panel="Operate")
app.add_typer(keys.quotas, name="quotas", rich_help_panel="Operate")
app.command("audit", rich_help_panel="Operate")(keys.audit)


def main() -> None:
    """Run the command line; never ends in a traceback for what a user can mend."""
    try:
        app()
    except XnaiError as error:
        sys.exit(_say(str(error), error.exit_code))
    except BrokenPipeError:
        # The reader of a pipe has gone: nothing to say to anybody, and no second error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except OSError as error:
        if (text := _explain(error)) is None:
            raise
        sys.exit(_say(text, EXIT_FAILED))


def _say(text: str, code: int) -> int:
    errors.print(f"[red]xnai:[/] {escape(text)}")
    return code


def _explain(error: OSError) -> str | None:
    """One line for an error that the user can mend; None for all others."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk of {error.filename or 'the data directory'}: free some"
    if error.errno in (errno.EACCES, errno.EROFS, errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
        return f"{error.filename}: {error.strerror}"
    return None


if __name__ == "__main__":
    main()
