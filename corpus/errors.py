"""Errors of the corpus.

CorpusError
├── CollectionNotFound, DocumentNotFound, UploadNotFound    no such name or id in this tenant
├── ModelMismatch         the collection holds another model's vectors
├── GenerationConflict    the compare-and-set lost: somebody else moved the generation
├── DocumentTooLarge, UploadTooLarge, UploadsFull           bounds
└── SearchError
    ├── SearchUnavailable     no search process answered
    └── SearchRefused         the search process refused the request; `type` says why
"""

from uuid import UUID


class CorpusError(Exception):
    """The corpus refused; nothing was written."""


class CollectionNotFound(CorpusError):
    """No collection of this name in this tenant."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no collection {name!r}")
        self.name = name


class DocumentNotFound(CorpusError):
    """No document of this id in this tenant, or it was deleted."""

    def __init__(self, document_id: UUID) -> None:
        super().__init__(f"no document {document_id}")
        self.document_id = document_id


class UploadNotFound(CorpusError):
    """The upload was ingested already, or has expired."""

    def __init__(self, upload_id: UUID) -> None:
        super().__init__(f"no upload {upload_id}: it was ingested already, or has expired")
        self.upload_id = upload_id


class ModelMismatch(CorpusError):
    """The collection is bound to another embedding model; vectors of two models never mix."""

    def __init__(self, collection: str, bound: str, offered: str) -> None:
        super().__init__(
            f"collection {collection!r} holds vectors of {bound}, this process has {offered}: "
            "set XNAI_EMBED_MODEL to the former, or use a new collection"
        )
        self.bound = bound
        self.offered = offered


class GenerationConflict(CorpusError):
    """Another writer moved the collection's generation or segments first: read again, try again."""


class DocumentTooLarge(CorpusError):
    """The document's text is longer than a document may be."""


class UploadTooLarge(CorpusError):
    """The file is larger than an upload may be."""


class UploadsFull(CorpusError):
    """The tenant has too many bytes waiting for their ingest jobs."""


class SearchError(CorpusError):
    """A search did not happen."""


class SearchUnavailable(SearchError):
    """No search process answered."""


class SearchRefused(SearchError):
    """The search process refused the request; `type` is a stable word."""

    def __init__(self, type_: str, detail: str) -> None:
        super().__init__(detail)
        self.type = type_
