"""What the command line prints: tables and progress for people on a terminal, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Rows at most.")]

console = Console(soft_wrap=True, highlight=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

STATE_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "finished": "green",
}


def print_json(value: object) -> None:
    """Print one JSON document: indented on a terminal, one line elsewhere."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under their columns, or say what their absence means."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table if table.row_count else f"[dim]{escape(empty)}[/]")


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one object, a line a field that has a value."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        if value not in (None, [], {}):
            console.print(f"[dim]{name:<{width}}[/]  {_cell(value)}")


def _cell(value: object) -> str:
    if value is None:
        return "[dim]-[/]"
    if isinstance(value, Mapping | list):
        return escape(json.dumps(value, ensure_ascii=False))
    text = escape(str(value))
    style = STATE_STYLES.get(text)
    return f"[{style}]{text}[/]" if style else text


class Meter:
    """One progress bar on stderr; silent when that is no terminal."""

    def __init__(self, progress: Progress, bar: TaskID) -> None:
        self._progress = progress
        self._bar = bar

    def show(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
        """Say what is going on, and how far it is."""
        self._progress.update(self._bar, description=escape(text), completed=done, total=total)

    def advance_to(self, done: float, total: float | None) -> None:
        """Say how far it is; the text stays."""
        self._progress.update(self._bar, completed=done, total=total)


@contextmanager
def meter(text: str, *, quiet: bool = False) -> Iterator[Meter]:
    """A progress bar that goes away when the work is done."""
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),  # knows what to print while the total is unknown
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=quiet or not errors.is_terminal,
    )
    with progress:
        yield Meter(progress, progress.add_task(escape(text), total=None))


def short_error(error: object) -> str:
    """One line about a job's error."""
    if not isinstance(error, Mapping):
        return ""
    return f"{error.get('type', 'error')}: {error.get('detail', '')}"
