"""Uploads: the bytes of `POST /documents` until their ingest job has made a document of them.

They lie in Postgres, not on a disk, because the worker that ingests may be on another host.
"""

from uuid import UUID

from corpus.collections import QUERIES
from corpus.errors import UploadNotFound, UploadsFull, UploadTooLarge
from corpus.model import Upload
from jobs.model import TenantId
from runtime.postgres import Connection

MAX_UPLOAD_BYTES = 32 * 1024 * 1024
MAX_WAITING_BYTES = 1024 * 1024 * 1024
EXPIRES_AFTER_S = 7 * 86_400.0


async def put(connection: Connection, tenant_id: TenantId, upload: Upload) -> None:
    """Keep a file until `delete`; raises UploadTooLarge and UploadsFull."""
    size_bytes = len(upload.content)
    if size_bytes > MAX_UPLOAD_BYTES:
        detail = f"the file has {size_bytes} bytes, at most {MAX_UPLOAD_BYTES} are taken"
        raise UploadTooLarge(detail)
    waiting = await connection.fetchval(QUERIES["waiting_upload_bytes"], tenant_id)
    if waiting + size_bytes > MAX_WAITING_BYTES:
        detail = f"{waiting} bytes wait for their ingest jobs: try again when some have finished"
        raise UploadsFull(detail)
    await connection.execute(
        QUERIES["put_upload"],
        upload.id,
        tenant_id,
        upload.collection,
        upload.key,
        upload.file_name,
        upload.media_type,
        upload.title,
        upload.url,
        list(upload.tags),
        upload.content,
    )


async def get(connection: Connection, tenant_id: TenantId, upload_id: UUID) -> Upload:
    """The file; raises UploadNotFound."""
    row = await connection.fetchrow(QUERIES["get_upload"], tenant_id, upload_id)
    if row is None:
        raise UploadNotFound(upload_id)
    return Upload(
        id=row["id"],
        collection=row["collection"],
        key=row["key"],
        media_type=row["media_type"],
        content=row["content"],
        file_name=row["file_name"],
        title=row["title"],
        url=row["url"],
        tags=tuple(row["tags"]),
    )


async def delete(connection: Connection, tenant_id: TenantId, upload_id: UUID) -> None:
    """Drop the file, in the transaction that puts its document; idempotent."""
    await connection.execute(QUERIES["delete_upload"], tenant_id, upload_id)


async def expire(connection: Connection) -> int:
    """Drop files whose ingest job never came to an end; returns how many."""
    rows = await connection.fetch(QUERIES["expire_uploads"], EXPIRES_AFTER_S)
    return len(rows)
