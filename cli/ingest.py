"""`xnai ingest`: mirrors a folder of md, html, txt and pdf files into a collection.

What the collection already holds is told by tags on its documents: `ingest:FOLDER` and `sha256:…`
of the file's bytes, so that a second run, from any machine, sends only what changed.
"""

import hashlib
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from cli.client import Api, ApiError, Document
from cli.options import settings_of
from cli.output import AsJson, Meter, console, errors, meter, print_json, short_error
from cli.watching import POLL_S
from runtime.errors import EXIT_FAILED

SUFFIXES = {".md", ".markdown", ".html", ".htm", ".txt", ".pdf"}
IN_FLIGHT_MAX = 64
DOCUMENTS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to mirror: `key` names it within the collection."""

    path: Path
    key: str


@dataclass(slots=True)
class Report:
    """What a run did, by the documents' keys."""

    sent: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def ingest(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(exists=True, help="A folder, or one file.", metavar="DIR|FILE")
    ],
    *,
    collection: Annotated[
        str, typer.Option("--collection", "-c", help="Collection of documents.")
    ] = "default",
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove documents whose files have vanished.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Mirror files into a collection; unchanged ones are skipped."""
    source = source.resolve()
    files = list(find_files(source))
    if not files:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise typer.BadParameter(f"{source} holds no file with one of {suffixes}")
    with Api(settings_of(context)) as api, meter("comparing", quiet=as_json) as bar:
        report = _mirror(api, Mirror(source, collection, delete=delete), files, bar)
    _finish(report, as_json=as_json)


@dataclass(frozen=True, slots=True)
class Mirror:
    """Which folder goes to which collection."""

    source: Path
    collection: str
    delete: bool

    @property
    def tag(self) -> str:
        """Marks the documents of this folder."""
        return f"ingest:{self.source.name}"


def find_files(source: Path) -> Iterator[LocalFile]:
    """The files below a folder that can be ingested, hidden ones left out; or the file itself."""
    if source.is_file():
        yield LocalFile(source, source.name)
        return
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        hidden = any(part.startswith(".") for part in parts)
        if not hidden and path.suffix.lower() in SUFFIXES and path.is_file():
            yield LocalFile(path, "/".join((source.name, *parts)))


def _mirror(api: Api, mirror: Mirror, files: list[LocalFile], bar: Meter) -> Report:
    known = _known(api, mirror)
    report = Report()
    waiting: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        bar.show(file.key, done=number, total=len(files))
        digest = f"sha256:{hashlib.sha256(file.path.read_bytes()).hexdigest()}"
        if digest in known.get(file.key, {}).get("tags", ()):
            report.unchanged.append(file.key)
            continue
        try:
            waiting[_send(api, mirror, file, digest)] = file.key
        except ApiError as error:
            report.failed[file.key] = str(error)
        if len(waiting) >= IN_FLIGHT_MAX:
            _settle(api, waiting, report, bar)
    _settle(api, waiting, report, bar)
    if mirror.delete:
        _delete_vanished(api, known, {file.key for file in files}, report)
    return report


def _known(api: Api, mirror: Mirror) -> dict[str, Document]:
    """The documents of this folder that the collection holds, by key."""
    params = {"collection": mirror.collection, "tag": mirror.tag}
    return {
        row["key"]: row for row in api.pages("/v1/documents", params=params, most=DOCUMENTS_MAX)
    }


def _send(api: Api, mirror: Mirror, file: LocalFile, digest: str) -> str:
    """Upload one file; returns its job's id."""
    media_type = mimetypes.guess_type(file.path.name)[0] or "text/plain"
    with file.path.open("rb") as content:
        job = api.post(
            "/v1/documents",
            files={"file": (file.path.name, content, media_type)},
            data={"collection": mirror.collection, "key": file.key, "tags": [mirror.tag, digest]},
        )
    return str(job["id"])


def _settle(api: Api, waiting: dict[str, str], report: Report, bar: Meter) -> None:
    """Wait for uploads until all of them are searchable."""
    for job_id, key in waiting.items():
        job, etag = api.poll(f"/v1/jobs/{job_id}", None, wait_s=POLL_S)
        while job is None or not job["settled"]:
            bar.show(f"indexing {key}")
            changed, etag = api.poll(f"/v1/jobs/{job_id}", etag, wait_s=POLL_S)
            job = changed or job
        if job["state"] == "succeeded" and not job["follow_ups"]["failed"]:
            report.sent.append(key)
        else:
            report.failed[key] = short_error(job.get("error")) or "a follow-up job failed"
    waiting.clear()


def _delete_vanished(
    api: Api, known: dict[str, Document], present: set[str], report: Report
) -> None:
    for key, document in known.items():
        if key not in present:
            api.send("DELETE", f"/v1/documents/{document['id']}")
            report.deleted.append(key)


def _finish(report: Report, *, as_json: bool) -> None:
    counts = {
        "sent": len(report.sent),
        "unchanged": len(report.unchanged),
        "deleted": len(report.deleted),
        "failed": len(report.failed),
    }
    if as_json:
        print_json({**counts, "failures": report.failed})
    else:
        console.print(", ".join(f"{count} {what}" for what, count in counts.items()))
        for key, why in report.failed.items():
            errors.print(f"[red]failed[/] {key}: {why}")
    if report.failed:
        raise typer.Exit(EXIT_FAILED)
