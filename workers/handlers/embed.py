"""Embeds documents, or texts on request: cut into chunks, made vectors, stored window by window.

What one attempt stored, the next finds and leaves: a second run changes nothing twice. A document
that cannot be embedded fails alone. The chunks are found by searches when the index job has run.
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import batched
from typing import TYPE_CHECKING
from uuid import UUID

from corpus import chunks, collections, documents
from corpus.chunks import EditionPlan
from corpus.collections import EmbeddingModel
from corpus.errors import ModelMismatch
from corpus.model import Edition, NewChunk, Text
from engines.embed import Embedder, load_embedder
from engines.errors import EngineError
from engines.models import installed_models_dir
from engines.split import Chunk, Splitter
from jobs.errors import Fail
from jobs.kinds import EmbedPayload
from jobs.model import JsonObject, NewJob
from jobs.outcomes import Completed
from workers.run import Run

if TYPE_CHECKING:
    from engines.embed import Embeddings

ENGINE = "embed"
# Enough chunks to sort by length (PARTS: windows of 256), and one commit each.
WINDOW = 256
DOCUMENTS_READ = 16
# The split's own version: raise it when the same text would be cut otherwise.
SPLIT = "split-1"
HEADING_CHARS = 200
# What can go wrong with one text inside the engine, beside the engine's own errors.
ITEM_ERRORS = (EngineError, RuntimeError, ValueError)


class Stopped(Exception):
    """The job was told to stop while its engine was at work."""


@dataclass(frozen=True, slots=True)
class Work:
    """A chunk to embed: `words` is what the model and the text search see of it."""

    edition_id: int
    document_id: UUID
    ordinal: int
    chunk: Chunk
    words: str


@dataclass(slots=True)
class Tally:
    """What became of the documents; `lengths` counts the chunks of those that are stored."""

    lengths: dict[UUID, int] = field(default_factory=dict)
    failed: dict[UUID, tuple[str, str]] = field(default_factory=dict)

    def fail(self, document_id: UUID, error: Exception) -> None:
        """Note why a document could not be embedded."""
        type_ = error.code if isinstance(error, EngineError) else "embedding_failed"
        self.failed[document_id] = (type_, str(error)[:500])
        self.lengths.pop(document_id, None)


@dataclass(frozen=True, slots=True)
class Target:
    """Where this attempt's chunks go, and what makes them."""

    embedder: Embedder
    collection_id: int
    tally: Tally = field(default_factory=Tally)


async def handle(run: Run[EmbedPayload]) -> Completed | JsonObject:
    """Embed the payload's documents, or answer with the vectors of its texts."""
    embedder = await _embedder(run)
    if run.payload.texts is not None:
        return await _embed_texts(run, embedder, run.payload.texts)
    return await _embed_documents(run, embedder, run.payload.document_ids or ())


async def _embed_texts(
    run: Run[EmbedPayload], embedder: Embedder, texts: Sequence[str]
) -> JsonObject:
    vectors: list[list[float]] = []
    truncated: list[int] = []
    for window in batched(texts, WINDOW):
        found = await run.in_thread(partial(_embed, embedder, window))
        truncated += [len(vectors) + i for i, is_cut in enumerate(found.is_truncated) if is_cut]
        vectors += [[round(value, 7) for value in row] for row in found.vectors.tolist()]
        await run.progress(len(vectors), len(texts), "texts embedded")
    return {
        "chunks": len(vectors),
        "dimensions": embedder.dimensions,
        "model": embedder.name,
        "truncated": truncated,
        "vectors": vectors,
    }


async def _embed_documents(
    run: Run[EmbedPayload], embedder: Embedder, document_ids: Sequence[UUID]
) -> Completed:
    target = Target(embedder, await _bound_collection(run, embedder))
    tally = target.tally
    window: list[Work] = []
    async with aclosing(_missing(run, target)) as missing:
        async for work in missing:
            window.append(work)
            if len(window) == WINDOW:
                await _store(run, target, window)
                window = []
    await _store(run, target, window)
    if tally.failed and not tally.lengths:
        type_, detail = next(iter(tally.failed.values()))
        raise Fail(f"none of {len(tally.failed)} documents: {detail}", type_=type_)
    return Completed(_result(embedder, document_ids, tally), _follow_ups(run, tally))


async def _bound_collection(run: Run[EmbedPayload], embedder: Embedder) -> int:
    """The collection's id, bound to this slot's model from now on."""
    name = run.payload.collection
    model = EmbeddingModel(embedder.name, embedder.digest, embedder.dimensions)
    async with run.fenced() as connection:
        collection_id = await collections.find(connection, run.job.tenant_id, name)
        if collection_id is None:
            raise Fail(f"no collection {name!r}: it was deleted", type_="collection_not_found")
        try:
            await collections.bind_model(connection, collection_id, model)
        except ModelMismatch as error:
            raise Fail(str(error), type_="model_mismatch") from error
    return collection_id


async def _missing(run: Run[EmbedPayload], target: Target) -> AsyncGenerator[Work]:
    """The chunks that are not stored yet, a few documents at a time."""
    ids = tuple(dict.fromkeys(run.payload.document_ids or ()))
    embedder, collection_id, tally = target.embedder, target.collection_id, target.tally
    splitter = Splitter(embedder.tokenizer.count, embedder.tokenizer.offsets)
    chunker = f"{SPLIT}/{splitter.max_tokens}/{embedder.digest[:16]}"
    for place, some in enumerate(batched(ids, DOCUMENTS_READ)):
        async with run.services.postgres.acquire() as connection:
            texts = await documents.texts(connection, collection_id, some)
        cut = await run.in_thread(partial(_split, splitter, texts, tally))
        plans = [EditionPlan(text.document_id, text.version, len(found)) for text, found in cut]
        async with run.fenced() as connection:
            editions = await chunks.begin(connection, collection_id, chunker, plans)
            unfinished = [edition.id for edition in editions if not edition.is_complete]
            stored = await chunks.stored_ordinals(connection, unfinished)
        tally.lengths |= {edition.document_id: edition.chunks for edition in editions}
        for work in _works(cut, editions, stored):
            yield work
        await run.progress(place * DOCUMENTS_READ + len(some), len(ids), "documents read")


def _split(
    splitter: Splitter,
    texts: Sequence[Text],
    tally: Tally,
    should_stop: Callable[[], bool],
) -> list[tuple[Text, list[Chunk]]]:
    cut = []
    for text in texts:
        if should_stop():
            raise Stopped
        try:
            cut.append((text, splitter.split(text.text)))
        except ITEM_ERRORS as error:
            tally.fail(text.document_id, error)
    return cut


def _works(
    cut: Sequence[tuple[Text, list[Chunk]]],
    editions: Sequence[Edition],
    stored: set[tuple[int, int]],
) -> Iterator[Work]:
    open_editions = {
        edition.document_id: edition.id for edition in editions if not edition.is_complete
    }
    for text, found in cut:
        edition_id = open_editions.get(text.document_id)
        if edition_id is None:
            continue
        for ordinal, chunk in enumerate(found):
            if (edition_id, ordinal) not in stored:
                words = _words(text, chunk)
                yield Work(edition_id, text.document_id, ordinal, chunk, words)


def _words(text: Text, chunk: Chunk) -> str:
    """A chunk under its title and headings: a passage alone rarely says what it is about."""
    path = [part for part in (text.title, *chunk.headings) if part]
    heading = " > ".join(dict.fromkeys(path))[:HEADING_CHARS]
    body = text.text[chunk.start : chunk.end]
    return f"{heading}\n{body}" if heading else body


async def _store(run: Run[EmbedPayload], target: Target, window: Sequence[Work]) -> None:
    """Embed one window and store it in one fenced transaction."""
    embedder, tally = target.embedder, target.tally
    window = [work for work in window if work.document_id not in tally.failed]
    if not window:
        return
    made = await run.in_thread(partial(_embed_window, embedder, window, tally))
    async with run.fenced() as connection:
        await chunks.store(connection, target.collection_id, made)
        await chunks.complete(connection, sorted({edition_id for edition_id, _ in made}))


def _embed_window(
    embedder: Embedder, window: Sequence[Work], tally: Tally, should_stop: Callable[[], bool]
) -> list[tuple[int, NewChunk]]:
    """Vectors for a window; when it fails as a whole, document by document."""
    try:
        return _vectors(embedder, window, should_stop)
    except ITEM_ERRORS:
        made: list[tuple[int, NewChunk]] = []
        for document_id in dict.fromkeys(work.document_id for work in window):
            own = [work for work in window if work.document_id == document_id]
            try:
                made += _vectors(embedder, own, should_stop)
            except ITEM_ERRORS as error:
                tally.fail(document_id, error)
        return made


def _vectors(
    embedder: Embedder, window: Sequence[Work], should_stop: Callable[[], bool]
) -> list[tuple[int, NewChunk]]:
    found = _embed(embedder, [work.words for work in window], should_stop)
    rows = found.vectors.astype("<f4", copy=False)
    # One bad number would make every segment that holds it impossible to build.
    if not (abs(rows) <= 1.5).all():
        raise ValueError("the model made a vector that is not finite")
    return [
        (
            work.edition_id,
            NewChunk(
                ordinal=work.ordinal,
                start_at=work.chunk.start,
                end_at=work.chunk.end,
                heading=" > ".join(work.chunk.headings),
                words=work.words,
                vector=row.tobytes(),
            ),
        )
        for work, row in zip(window, rows, strict=True)
    ]


def _embed(
    embedder: Embedder, texts: Sequence[str], should_stop: Callable[[], bool]
) -> "Embeddings":
    def on_progress(_: int) -> None:
        if should_stop():
            raise Stopped

    return embedder.embed(texts, on_progress=on_progress)


def _result(embedder: Embedder, document_ids: Sequence[UUID], tally: Tally) -> JsonObject:
    """`missing` are documents that were deleted since, or never were in this collection."""
    known = tally.lengths.keys() | tally.failed.keys()
    return {
        "chunks": sum(tally.lengths.values()),
        "dimensions": embedder.dimensions,
        "model": embedder.name,
        "documents": len(tally.lengths),
        "missing": [str(item) for item in dict.fromkeys(document_ids) if item not in known],
        "failed": [
            {"document_id": str(item), "type": type_, "detail": detail}
            for item, (type_, detail) in tally.failed.items()
        ],
    }


def _follow_ups(run: Run[EmbedPayload], tally: Tally) -> tuple[NewJob, ...]:
    """The index job of these documents. Whichever index job comes first takes all that is pending,
    so those after it find nothing to do and cost a query.
    """
    if not tally.lengths:
        return ()
    ids = [str(document_id) for document_id in tally.lengths]
    payload = {"collection": run.payload.collection, "document_ids": ids}
    return (NewJob(kind="index", payload=payload),)


async def _embedder(run: Run[EmbedPayload]) -> Embedder:
    """The slot's embedding model, loaded by its first job."""
    services = run.services
    kept = services.engines.get(ENGINE)
    if isinstance(kept, Embedder):
        return kept
    spec = services.settings.embed_model

    def load(_: Callable[[], bool]) -> Embedder:
        # Mapped weights are shared by all slots and the search role: 100 MB less for each.
        return load_embedder(
            spec, threads=services.cores, models_dir=installed_models_dir(), mapped=True
        )

    try:
        embedder = await run.in_thread(load)
    except EngineError as error:
        raise Fail(str(error), type_=error.code) from error
    services.engines[ENGINE] = embedder
    return embedder
