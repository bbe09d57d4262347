"""An ingest job: an uploaded file becomes a document, and its embed job follows."""

from corpus import documents, uploads
from corpus.errors import UploadNotFound
from corpus.model import Page
from crawl.errors import ExtractionError
from jobs.errors import Fail
from jobs.kinds import IngestPayload
from jobs.model import JsonObject
from workers.handlers.crawl import embed_job, tools_of
from workers.run import Run


async def handle(run: Run[IngestPayload]) -> JsonObject:
    """Extract the file's text and keep it; the upload goes in the same transaction."""
    tenant_id = run.job.tenant_id
    try:
        async with run.services.postgres.acquire() as connection:
            upload = await uploads.get(connection, tenant_id, run.payload.upload_id)
    except UploadNotFound as error:
        raise Fail(str(error), type_="upload_not_found") from error
    try:
        found = await tools_of(run.services).extractor.file(
            upload.content, name=upload.file_name or upload.key, media_type=upload.media_type
        )
    except ExtractionError as error:
        raise Fail(error.detail, type_=error.reason.value) from error
    page = Page(
        key=upload.key,
        text=found.text,
        url=upload.url,
        title=upload.title or found.title,
        tags=upload.tags,
    )
    async with run.fenced() as connection:
        put = await documents.put_page(connection, tenant_id, upload.collection, page)
        await uploads.delete(connection, tenant_id, upload.id)
        if put.needs_embedding:
            await run.spawn(connection, (embed_job(upload.collection, [put.document_id]),))
    return {
        "document_id": str(put.document_id),
        "outcome": put.outcome.value,
        "version": put.version,
        "characters": len(page.text),
    }
