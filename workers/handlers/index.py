"""Makes embedded documents searchable: a segment of their chunks, and the generation that shows it.

A job takes all that is pending in its collection, so that of many jobs the first does the work. The
file is written first; the compare-and-set under the fence decides. A zombie may write a file, never
a generation.
"""

from collections.abc import Callable, Sequence
from functools import partial

import asyncpg

from corpus import generations
from corpus.errors import CollectionNotFound, GenerationConflict
from corpus.model import IndexState, PendingEdition, Segment
from jobs.errors import Fail, Retry
from jobs.kinds import IndexPayload
from jobs.model import JsonObject
from runtime.logs import logger
from workers import search_segments
from workers.run import Run
from workers.search_merges import choose_merge
from workers.search_segments import IndexDiskError, Place

# One step's chunks: bounds the transaction that shows them, and the segment's memory.
STEP_CHUNKS = 50_000
CONFLICTS_MAX = 20
BUSY_AFTER_S = 2.0
DISK_AFTER_S = 30.0

log = logger("index")


async def handle(run: Run[IndexPayload]) -> JsonObject:
    """Show what is pending, or build the whole index anew; then merge small segments."""
    try:
        if run.payload.rebuild:
            await _rebuild(run)
        await _show_pending(run)
        await _merge(run)
        return await _result(run)
    except CollectionNotFound as error:
        raise Fail(f"{error}: it was deleted", type_="collection_not_found") from error
    except IndexDiskError as error:
        raise Retry(str(error), type_=error.type, after_s=DISK_AFTER_S) from error
    except (GenerationConflict, asyncpg.LockNotAvailableError) as error:
        detail = f"other writers of this collection came first: {error}"
        raise Retry(detail, type_="index_busy", after_s=BUSY_AFTER_S) from error


async def _show_pending(run: Run[IndexPayload]) -> None:
    """Step by step until nothing is pending; another writer's step counts as well as ours."""
    conflicts = 0
    while True:
        state = await _state(run)
        async with run.services.postgres.acquire() as connection:
            found = await generations.pending(connection, state.collection_id)
        if not found:
            return
        try:
            await _advance(run, state, _step(found))
        except GenerationConflict:
            conflicts += 1
            if conflicts > CONFLICTS_MAX:
                raise


async def _advance(
    run: Run[IndexPayload], state: IndexState, editions: Sequence[PendingEdition]
) -> None:
    """Write the segment of these editions, then show it as the next generation."""
    low, high = state.generation, state.generation + 1
    pairs = [(edition.id, edition.chunks) for edition in editions]
    segment = await _write(run, state, pairs, low_gen=low, high_gen=high)
    async with run.fenced() as connection:
        await generations.advance(
            connection,
            state.collection_id,
            expected=state.generation,
            editions=[edition.id for edition in editions],
            segment=segment,
        )
    await run.progress(len(editions), None, f"generation {high}")


async def _merge(run: Run[IndexPayload]) -> None:
    """Keep the segments few. Nothing is shown or hidden, so nothing here fails the job."""
    state = await _state(run)
    async with run.services.postgres.acquire() as connection:
        live = await generations.live_chunks(connection, state.collection_id, None)
    old = choose_merge(state.segments, live_chunks=live)
    if not old:
        return
    try:
        await _replace(run, state, old, low_gen=old[0].low_gen, high_gen=old[-1].high_gen)
    except (GenerationConflict, IndexDiskError) as error:
        log.warning("merge_left_out", collection=run.payload.collection, detail=str(error))
        return
    await _sweep(run)


async def _rebuild(run: Run[IndexPayload]) -> None:
    """One new segment of everything, whatever became of the files of the old ones."""
    for _ in range(CONFLICTS_MAX):
        state = await _state(run)
        if not state.generation:
            return
        try:
            await _replace(run, state, state.segments, low_gen=0, high_gen=state.generation)
        except GenerationConflict:
            continue
        await _sweep(run)
        return
    raise GenerationConflict("the segments kept changing during the rebuild")


async def _replace(
    run: Run[IndexPayload],
    state: IndexState,
    old: Sequence[Segment],
    *,
    low_gen: int,
    high_gen: int,
) -> None:
    """Put one new segment of the range in the place of `old`."""
    async with run.services.postgres.acquire() as connection:
        pairs = await generations.segment_editions(
            connection, state.collection_id, low_gen, high_gen, seen_from=state.generation
        )
    segment = await _write(run, state, pairs, low_gen=low_gen, high_gen=high_gen)
    async with run.fenced() as connection:
        await generations.replace_segments(connection, state.collection_id, old, segment)


async def _write(
    run: Run[IndexPayload],
    state: IndexState,
    editions: Sequence[tuple[int, int]],
    *,
    low_gen: int,
    high_gen: int,
) -> Segment | None:
    """The file of a new segment, on disk and fsynced; None when there is nothing to hold."""
    stored = await search_segments.read_editions(
        run.services.postgres, editions, state.dimensions or 0
    )
    if not len(stored.ids):
        return None
    write = partial(
        search_segments.write_segment,
        _place(run, state),
        stored,
        low_gen=low_gen,
        high_gen=high_gen,
        token=run.job.token,
    )

    def work(_: Callable[[], bool]) -> Segment:
        return write()

    return await run.in_thread(work)


async def _sweep(run: Run[IndexPayload]) -> None:
    state = await _state(run)
    place = _place(run, state)
    await run.in_thread(lambda _: search_segments.sweep(place, state.segments))


async def _result(run: Run[IndexPayload]) -> JsonObject:
    """`indexed` counts the chunks of the job's documents that searches find, whoever showed them:
    the same after a second run.
    """
    state = await _state(run)
    async with run.services.postgres.acquire() as connection:
        indexed = await generations.live_chunks(
            connection, state.collection_id, run.payload.document_ids
        )
    return {"indexed": indexed, "index_generation": state.generation}


async def _state(run: Run[IndexPayload]) -> IndexState:
    async with run.services.postgres.acquire() as connection:
        return await generations.state(connection, run.job.tenant_id, run.payload.collection)


def _place(run: Run[IndexPayload], state: IndexState) -> Place:
    return Place(run.services.settings.data_dir, state.collection_id, run.services.cores)


def _step(found: Sequence[PendingEdition]) -> list[PendingEdition]:
    """As many of the oldest as fit in one step, at least one."""
    step: list[PendingEdition] = []
    chunks = 0
    for edition in found:
        if step and chunks + edition.chunks > STEP_CHUNKS:
            break
        step.append(edition)
        chunks += edition.chunks
    return step
