"""Verbs about single jobs: submit, list, show, cancel, retry."""

import json
import sys
from typing import Annotated, Any

import typer

from cli.client import Api, Document
from cli.options import settings_of
from cli.output import AsJson, Limit, console, print_fields, print_json, print_table, short_error
from cli.watching import follow_job
from runtime.errors import EXIT_FAILED

jobs = typer.Typer(help="List, show, cancel and retry jobs.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="Id of the job.")]


def submit(
    context: typer.Context,
    kind: Annotated[
        str, typer.Argument(help="crawl, embed, index, generate, or a kind of your own.")
    ],
    fields: Annotated[
        list[str] | None,
        typer.Argument(help="Payload as KEY=VALUE (JSON values), one JSON object, or - for stdin."),
    ] = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job is settled.")] = False,
    priority: Annotated[int, typer.Option(min=0, max=9, help="9 is most urgent.")] = 4,
    delay_s: Annotated[float, typer.Option(min=0, help="Seconds before it may start.")] = 0,
    max_attempts: Annotated[int | None, typer.Option(min=1)] = None,
    timeout_s: Annotated[float | None, typer.Option(min=0.001)] = None,
    callback_url: Annotated[
        str | None, typer.Option(help="Called when the job is settled.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Makes a repeated submit harmless.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit one job."""
    body: Document = {
        "kind": kind,
        "payload": _payload(fields or []),
        "priority": priority,
        "tags": tag or [],
    }
    optional = {
        "delay_s": delay_s or None,
        "max_attempts": max_attempts,
        "timeout_s": timeout_s,
        "callback_url": callback_url,
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    with Api(settings_of(context)) as api:
        job = api.post("/v1/jobs", body, headers=headers)
        if wait:
            job = follow_job(api, job["id"], quiet=as_json)
    finish_with(job, as_json=as_json)


def _payload(fields: list[str]) -> Document:
    """KEY=VALUE pairs, or a whole JSON object; a value that is no JSON is text."""
    if len(fields) == 1 and (fields[0] == "-" or fields[0].lstrip().startswith("{")):
        text = sys.stdin.read() if fields[0] == "-" else fields[0]
        return _object(text)
    payload: Document = {}
    for pair in fields:
        name, equals, text = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE, e.g. url=https://example.org/")
        payload[name] = _value(text)
    return payload


def _object(text: str) -> Document:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"the payload is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise typer.BadParameter("the payload must be a JSON object")
    return value


def _value(text: str) -> Any:  # noqa: ANN401 - a JSON value is any value
    try:
        return json.loads(text)
    except ValueError:
        return text


def finish_with(job: Document, *, as_json: bool) -> None:
    """Print a job; exit 1 when it ended without success."""
    if as_json:
        print_json(job)
    else:
        show_job(job)
    end_by(job)


def show_job(job: Document) -> None:
    """Print what a job came to."""
    print_fields(
        {
            "id": job["id"],
            "kind": job["kind"],
            "state": job["state"],
            "because": job.get("state_reason"),
            "result": job.get("result"),
            "error": short_error(job.get("error")) or None,
            "follow-ups": counts_text(job.get("follow_ups")),
        }
    )


def end_by(job: Document) -> None:
    """Exit 1 when the job, or one that it created, ended without success."""
    follow_ups = job.get("follow_ups") or {}
    if job["state"] in ("failed", "cancelled") or follow_ups.get("failed"):
        raise typer.Exit(EXIT_FAILED)


def counts_text(counts: Document | None) -> str | None:
    """Counts in words; None where there is nothing to count."""
    if not counts or not counts.get("total"):
        return None
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


@jobs.command("list")
def list_(
    context: typer.Context,
    *,
    kind: Annotated[str | None, typer.Option(help="Only this kind.")] = None,
    state: Annotated[str | None, typer.Option(help="Only this state.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only this batch.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    params = {"kind": kind, "state": state, "batch_id": batch, "tag": tag}
    with Api(settings_of(context)) as api:
        rows = list(api.pages("/v1/jobs", params=params, most=limit))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "kind", "state", "attempt", "created", "error"),
        (
            (
                r["id"],
                r["kind"],
                r["state"],
                r["attempt"],
                r["created_at"],
                short_error(r.get("error")),
            )
            for r in rows
        ),
        empty="no jobs: submit one with `xnai submit` or `xnai crawl URL`",
    )


@jobs.command("show")
def show(context: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Show one job and its attempts."""
    with Api(settings_of(context)) as api:
        job = api.get(f"/v1/jobs/{job_id}")
        attempts = api.get(f"/v1/jobs/{job_id}/attempts")["data"]
    if as_json:
        print_json({**job, "attempts": attempts})
        return
    print_fields({name: value for name, value in job.items() if name != "links"})
    console.print()
    print_table(
        ("attempt", "started", "finished", "outcome", "error"),
        (
            (
                a["attempt"],
                a.get("started_at"),
                a.get("finished_at"),
                a.get("outcome"),
                short_error(a.get("error")),
            )
            for a in attempts
        ),
        empty="no attempt yet",
    )


@jobs.command("cancel")
def cancel(context: typer.Context, job_ids: list[str], *, as_json: AsJson = False) -> None:
    """Cancel jobs, scheduled, queued or running."""
    _each(context, job_ids, "cancel", as_json=as_json)


@jobs.command("retry")
def retry(context: typer.Context, job_ids: list[str], *, as_json: AsJson = False) -> None:
    """Give failed or cancelled jobs a new budget."""
    _each(context, job_ids, "retry", as_json=as_json)


def _each(context: typer.Context, job_ids: list[str], verb: str, *, as_json: bool) -> None:
    with Api(settings_of(context)) as api:
        done = [api.post(f"/v1/jobs/{job_id}/{verb}") for job_id in job_ids]
    if as_json:
        print_json(done)
        return
    for job in done:
        console.print(f"{job['id']}  {job['state']}")
