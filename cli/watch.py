"""`xnai watch`: follows a job or a batch to its end, for people, for logs, for programs."""

from functools import partial
from typing import Annotated

import typer

from cli import batches, jobs
from cli.client import Api, ApiError
from cli.options import settings_of
from cli.output import AsJson, errors
from cli.patience import persistently
from cli.watching import JsonLines, Lines, Teller, follow_batch, follow_job


def watch(
    context: typer.Context,
    id_: Annotated[str, typer.Argument(metavar="ID", help="Of a job or a batch.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Watch a job or a batch until it has settled; Ctrl-C stops watching, and nothing else.

    A bar on a terminal, lines in a pipe; --json: every event as a line.
    """
    with Api(settings_of(context)) as api:
        is_job = _is_job(api, id_)
        follow = follow_job if is_job else follow_batch
        found = follow(api, id_, teller=_teller(as_json=as_json))
    if not as_json:
        (jobs.show_job if is_job else batches.show_batch)(found)
    (jobs.end_by if is_job else batches.end_by)(found)


def _is_job(api: Api, id_: str) -> bool:
    try:
        persistently(partial(api.get, f"/v1/jobs/{id_}"))
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


def _teller(*, as_json: bool) -> Teller | None:
    """None: the bar, which is shown where somebody sees it."""
    if as_json:
        return JsonLines()
    return None if errors.is_terminal else Lines()
