"""/v1/documents: upload, list, read and delete what searches find."""

import hashlib
from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query, Request, Response, status
from fastapi.datastructures import FormData
from pydantic import ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from api import paging
from api.auth import Reader, Submitter
from api.deps import (
    LIST_DEFAULT,
    Cursor,
    IdempotencyKey,
    Limit,
    Prefer,
    Services,
    WithAudit,
    WithServices,
    wait_seconds,
)
from api.errors import Problem, ProblemType, field_error, from_pydantic, invalid, invalid_fields
from api.idempotency import answer_once, fingerprint
from api.job_requests import RequestModel
from api.limits import DOCUMENT_BYTES, MIB, check_announced, too_large
from api.openapi import json_or_multipart, problems
from api.routes.jobs import accepted_response, settled_response
from api.routing import media_type_of, read_model
from api.routing import router as make_router
from api.submissions import Submitted, enqueue
from api.views import JobView, Page, View
from corpus import documents, uploads
from corpus.model import Document, Upload
from jobs.enqueue import ready_of
from jobs.idempotency import StoredAnswer
from jobs.kinds import CollectionName, Text
from jobs.model import NewJob
from runtime.ids import uuid7
from runtime.postgres import Connection

router = make_router("documents")

DocumentId = Annotated[UUID, Path(description="The document's id.")]
_FORM_OVERHEAD_BYTES = MIB
_FORM_FIELDS = frozenset({"collection", "key", "title", "url", "tags"})


class DocumentFields(RequestModel):
    """What may accompany a text or a file. `key` names it in its collection: the same key, a new
    version.
    """

    collection: CollectionName = "default"
    key: Annotated[Text, Field(min_length=1, max_length=512)] | None = None
    title: Annotated[Text, Field(max_length=1000)] | None = None
    url: Annotated[Text, Field(min_length=1, max_length=2048)] | None = None
    tags: Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=128)]],
        Field(max_length=32, default_factory=list),
    ]


class DocumentRequest(DocumentFields):
    """A document as text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"text": "# Notes\n\nPostgres decides, Redis wakes.", "key": "notes.md"}]
        }
    )

    text: Annotated[Text, Field(min_length=1)]
    media_type: Annotated[str, Field(pattern=r"^text/[a-z.+-]{1,64}$")] = "text/markdown"


class DocumentView(View):
    """A document. `indexed_version` is what a search finds now."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    collection: str
    key: str
    url: str | None
    title: str | None
    tags: list[str]
    version: int
    indexed_version: int | None
    chars: int
    chunks: int
    created_at: datetime
    changed_at: datetime
    fetched_at: datetime


class DocumentWithText(DocumentView):
    """A document and the text of its current version."""

    text: str


class VersionView(View):
    """One immutable text of a document."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    title: str | None
    content_hash: str
    chars: int
    fetched_at: datetime
    created_at: datetime


@router.post(
    "/documents",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=JobView,
    responses={
        200: {"model": JobView, "description": "It has settled in time: it can be found."},
        **problems(
            ProblemType.IN_FLIGHT,
            ProblemType.TOO_LARGE,
            ProblemType.QUEUE_FULL,
            ProblemType.MEDIA_TYPE,
        ),
    },
    openapi_extra=json_or_multipart(DocumentRequest, DocumentFields),
)
async def create_document(
    request: Request,
    services: WithServices,
    principal: Submitter,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Take a text (JSON) or a file (multipart, field `file`) and answer with the job that ingests
    it.
    """
    upload, digest = await _read_upload(request)
    job = NewJob(
        kind="ingest", payload={"upload_id": str(upload.id), "collection": upload.collection}
    )
    pool = services.kinds[job.kind].pool
    services.backlog.check(pool, 1, services.owned)
    await services.quotas.admit_jobs(principal.tenant_id, principal.quotas, {pool: 1})
    await services.quotas.admit_stored(principal.tenant_id, principal.quotas)
    submitted: list[Submitted] = []

    async def work(connection: Connection) -> StoredAnswer:
        await uploads.put(connection, principal.tenant_id, upload)
        submitted.extend(
            await enqueue(
                connection,
                principal.tenant_id,
                [job],
                kinds=services.kinds,
                ageing_s=services.settings.ageing_s,
            )
        )
        return accepted_response(submitted[0])

    if idempotency_key is not None:
        request_hash = fingerprint(request, digest=digest)
        response = await answer_once(services, principal, idempotency_key, request_hash, work=work)
        services.announcer.announce(ready_of(s.accepted for s in submitted))
        return response
    async with services.transaction() as connection:
        await work(connection)
    services.announcer.announce(ready_of(s.accepted for s in submitted))
    return await _answer(request, services, submitted[0], prefer)


async def _answer(
    request: Request, services: Services, submitted: Submitted, prefer: str | None
) -> Response:
    wait_s = wait_seconds(prefer, services.settings.wait_max_s)
    return await settled_response(request, services, submitted, wait_s)


@router.get("/documents")
async def list_documents(
    services: WithServices,
    principal: Reader,
    collection: Annotated[CollectionName | None, Query()] = None,
    tag: Annotated[str | None, Query(max_length=128)] = None,
    url: Annotated[str | None, Query(max_length=2048)] = None,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[DocumentView]:
    """Documents in the order they were created."""
    after = paging.decode_uuid("documents", cursor)
    async with services.connection() as connection:
        found = await documents.list_page(
            connection,
            principal.tenant_id,
            collection=collection,
            tag=tag,
            url=url,
            after=after,
            limit=limit,
        )
    return Page[DocumentView](
        data=[_view(document) for document in found],
        next_cursor=paging.next_cursor("documents", found, limit, lambda row: row.id),
    )


@router.get("/documents/{document_id}", responses=problems(ProblemType.NOT_FOUND))
async def get_document(
    services: WithServices, principal: Reader, document_id: DocumentId
) -> DocumentWithText:
    """A document with its current text."""
    async with services.transaction() as connection:
        document = await documents.get(connection, principal.tenant_id, document_id)
        text = await documents.text(connection, principal.tenant_id, document_id)
    return DocumentWithText(**_view(document).model_dump(), text=text)


@router.get("/documents/{document_id}/versions", responses=problems(ProblemType.NOT_FOUND))
async def list_versions(
    services: WithServices,
    principal: Reader,
    document_id: DocumentId,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[VersionView]:
    """A document's versions, newest first."""
    before = paging.decode("versions", cursor, _version_number)
    async with services.connection() as connection:
        found = await documents.versions(
            connection, principal.tenant_id, document_id, before=before, limit=limit
        )
    return Page[VersionView](
        data=[VersionView.model_validate(version) for version in found],
        next_cursor=paging.next_cursor("versions", found, limit, lambda row: row.number),
    )


@router.delete(
    "/documents/{document_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=problems(ProblemType.NOT_FOUND),
)
async def delete_document(
    services: WithServices, principal: Submitter, audit: WithAudit, document_id: DocumentId
) -> None:
    """Hide a document from every search that starts after the answer."""
    async with services.transaction() as connection:
        await documents.delete(connection, principal.tenant_id, document_id)
        await audit.record(connection, "document.deleted", document_id)


def _version_number(text: str) -> int:
    number = int(text)
    if not 0 < number < 2**31:
        message = f"{number} is no version"
        raise ValueError(message)
    return number


def _view(document: Document) -> DocumentView:
    return DocumentView.model_validate(document)


async def _read_upload(request: Request) -> tuple[Upload, bytes]:
    """The file or text of the request, and a hash of all that was sent."""
    if media_type_of(request) == "multipart/form-data":
        return await _read_form(request)
    body, sent = await read_model(
        request, DocumentRequest, DOCUMENT_BYTES, "application/json or multipart/form-data"
    )
    content = sent.text.encode()
    upload = _upload(sent, content, sent.media_type, None)
    return upload, hashlib.sha256(body).digest()


async def _read_form(request: Request) -> tuple[Upload, bytes]:
    check_announced(request, DOCUMENT_BYTES + _FORM_OVERHEAD_BYTES)
    parser = MultiPartParser(
        request.headers, _bounded(request), max_files=1, max_fields=64, max_part_size=64 * 1024
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError, LookupError) as error:
        detail = f"the form cannot be read: {error}"
        raise Problem(ProblemType.MALFORMED, detail) from None
    try:
        return await _upload_of_form(form)
    finally:
        await form.close()


async def _bounded(request: Request) -> AsyncGenerator[bytes]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > DOCUMENT_BYTES + _FORM_OVERHEAD_BYTES:
            raise too_large(DOCUMENT_BYTES)
        yield chunk


async def _upload_of_form(form: FormData) -> tuple[Upload, bytes]:
    files = [item for item in form.getlist("file") if isinstance(item, UploadFile)]
    if len(files) != 1:
        raise invalid("/file", "send exactly one file in the field `file`")
    content = await files[0].read()
    if len(content) > DOCUMENT_BYTES:
        raise too_large(DOCUMENT_BYTES, "a file")
    if not content:
        raise invalid("/file", "the file is empty")
    name = _file_name(files[0].filename)
    fields = _form_fields(form)
    media_type = (files[0].content_type or "application/octet-stream").partition(";")[0]
    if not media_type.isascii() or not media_type.isprintable() or len(media_type) > 127:
        raise invalid("/file", "its media type cannot be read")
    hasher = hashlib.sha256(content)
    hasher.update(repr((name, media_type, fields)).encode())
    return _upload(fields, content, media_type.strip().lower(), name), hasher.digest()


def _form_fields(form: FormData) -> DocumentFields:
    """The plain fields; `tags` may come several times, or once with commas."""
    values: dict[str, object] = {}
    errors = []
    for name in dict.fromkeys(form):
        texts = [item for item in form.getlist(name) if isinstance(item, str)]
        if name == "tags":
            values[name] = [tag for text in texts for tag in text.split(",") if tag]
        elif name in _FORM_FIELDS and len(texts) == 1:
            values[name] = texts[0]
        elif name != "file":
            detail = (
                "given more than once, or as a file" if name in _FORM_FIELDS else "unknown field"
            )
            errors.append(field_error(f"/{name}", detail))
    if errors:
        raise invalid_fields(errors)
    try:
        return DocumentFields.model_validate(values)
    except ValidationError as error:
        raise invalid_fields(from_pydantic(error.errors(include_input=False))) from None


def _file_name(name: str | None) -> str | None:
    """The last part of what the client called the file; never used as a path."""
    if not name:
        return None
    last = PurePosixPath(name.replace("\\", "/")).name
    kept = "".join(c for c in last if c.isprintable() and not "\ud800" <= c <= "\udfff")
    return kept[-255:] or None


def _upload(
    fields: DocumentFields, content: bytes, media_type: str, file_name: str | None
) -> Upload:
    upload_id = uuid7()
    return Upload(
        id=upload_id,
        collection=fields.collection,
        key=fields.key or fields.url or file_name or str(upload_id),
        media_type=media_type,
        content=content,
        file_name=file_name,
        title=fields.title,
        url=fields.url,
        tags=tuple(fields.tags),
    )
