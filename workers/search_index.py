"""The vector indexes that a search process holds, one a collection, brought up to date on demand.

A view is immutable and swapped whole: searches never wait for a lock, only for a generation that
they want, and only for so long.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
import asyncpg

from corpus import generations
from corpus.errors import CorpusError
from corpus.model import IndexState
from engines.errors import EngineError
from engines.index import IndexView
from jobs.model import TenantId
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Pool
from workers import search_segments
from workers.search_segments import IndexDiskError, Place

# How long a search waits for the newest generation before it answers with the one at hand.
PATIENCE_S = 0.5
# With nothing at hand at all there is no answer to give sooner.
COLD_PATIENCE_S = 10.0
COLLECTIONS_MAX = 64

CATCH_UP_ERRORS = (
    *UNREACHABLE,
    asyncpg.PostgresError,
    CorpusError,
    EngineError,
    IndexDiskError,
)

log = logger("search_index")


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """What one search looks at: a generation and the view that holds its vectors.

    `view` is None when nothing could be loaded in time: the vectors must do without.
    """

    generation: int
    view: IndexView | None
    stale: bool


@dataclass(slots=True, eq=False)
class _Held:
    """One collection's newest view; `catching_up` is set while somebody brings it forward."""

    generation: int = 0
    view: IndexView | None = None
    catching_up: anyio.Event | None = None
    words: dict[str, int] = field(default_factory=dict)


class SearchIndexes:
    """All collections' views of one process, the least lately used dropped first."""

    def __init__(
        self, pool: Pool, data_dir: Path, owner: anyio.abc.TaskGroup, *, threads: int
    ) -> None:
        """`owner` outlives the searches: catching up goes on when nobody waits for it any more."""
        self._pool = pool
        self._data_dir = data_dir
        self._owner = owner
        self._threads = threads
        self._held: OrderedDict[int, _Held] = OrderedDict()

    async def pin(self, tenant_id: TenantId, collection: str, state: IndexState) -> Pin:
        """The view of `state`'s generation or a later one; after a while, the one at hand."""
        held = self._of(state.collection_id)
        if _is_behind(held, state):
            await self._wait(tenant_id, collection, state, held)
        elif held.view is not None and held.view.names != _names(state):
            # A merge shows nothing new: adopt it in passing.
            self._start(tenant_id, collection, held)
        if held.view is None:
            return Pin(state.generation, None, stale=True)
        return Pin(held.generation, held.view, stale=held.generation < state.generation)

    def words_of(self, pinned_generation: int, collection_id: int) -> dict[str, int]:
        """How many chunks have which word, remembered for the generation held."""
        held = self._of(collection_id)
        return held.words if held.generation == pinned_generation else {}

    def _of(self, collection_id: int) -> _Held:
        held = self._held.get(collection_id)
        if held is None:
            held = self._held[collection_id] = _Held()
            while len(self._held) > COLLECTIONS_MAX:
                self._held.popitem(last=False)
        self._held.move_to_end(collection_id)
        return held

    async def _wait(
        self, tenant_id: TenantId, collection: str, state: IndexState, held: _Held
    ) -> None:
        patience_s = COLD_PATIENCE_S if held.view is None else PATIENCE_S
        with anyio.move_on_after(patience_s):
            # A catch-up that was under way may end one generation short: start another, once.
            for _ in range(2):
                await self._start(tenant_id, collection, held).wait()
                if not _is_behind(held, state):
                    return

    def _start(self, tenant_id: TenantId, collection: str, held: _Held) -> anyio.Event:
        """Begin to catch up unless somebody does already; the event is set when that has ended."""
        if held.catching_up is None:
            held.catching_up = anyio.Event()
            self._owner.start_soon(self._catch_up, tenant_id, collection, held, held.catching_up)
        return held.catching_up

    async def _catch_up(
        self, tenant_id: TenantId, collection: str, held: _Held, ended: anyio.Event
    ) -> None:
        try:
            async with self._pool.acquire() as connection:
                state = await generations.state(connection, tenant_id, collection)
            view = await self._view_of(state, held)
        except CATCH_UP_ERRORS as error:
            log.warning("catch_up_failed", collection=collection, detail=str(error))
        else:
            if state.generation != held.generation:
                held.words = {}
            held.view, held.generation = view, state.generation
            # Not by its name, which is its tenant's affair: metrics are for everybody inside.
            label = str(state.collection_id)
            metrics.INDEX_GENERATION.labels(label).set(state.generation)
        finally:
            held.catching_up = None
            ended.set()

    async def _view_of(self, state: IndexState, held: _Held) -> IndexView:
        """The state's view, made from what is held by loading only what is new."""
        view = (held.view or IndexView()).keeping(_names(state))
        place = Place(self._data_dir, state.collection_id, self._threads)
        dead_after = held.generation
        for segment in state.segments:
            if str(segment.id) not in view.names:
                loaded = await search_segments.load(
                    self._pool,
                    place,
                    segment,
                    dimensions=state.dimensions or 0,
                    seen_from=state.generation,
                )
                view = view.with_segment(str(segment.id), loaded)
                dead_after = min(dead_after, segment.low_gen)
        async with self._pool.acquire() as connection:
            dead = await generations.dead_vectors(
                connection, state.collection_id, dead_after, state.generation
            )
        return view.without(dead)


def _names(state: IndexState) -> frozenset[str]:
    return frozenset(str(segment.id) for segment in state.segments)


def _is_behind(held: _Held, state: IndexState) -> bool:
    return held.view is None or held.generation < state.generation
