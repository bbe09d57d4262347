"""Runs jobs as a slot does: claimed from the real ledger, ended by its record."""

import os
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, cast
from uuid import UUID, uuid4

from corpus import documents
from corpus.model import Page, Put
from engines.embed import Embedder, load_embedder
from engines.models import installed_models_dir
from jobs import ledger, slots
from jobs.kinds import load_kinds
from jobs.live import LiveStream
from jobs.model import DEFAULT_TENANT, JsonObject, NewJob
from jobs.outcomes import Completed, Ending, Failed
from jobs.results import Ended
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from workers.execution import prepare
from workers.handlers import crawl, embed, generate, index, ingest, probe
from workers.run import Run, Services

KINDS = load_kinds()
# The handlers' payload types differ; a Run is made for each by its kind.
type AnyRun = Run[Any]

HANDLERS: Mapping[str, Callable[[AnyRun], Awaitable[Completed | JsonObject]]] = {
    "crawl": crawl.handle,
    "embed": embed.handle,
    "generate": generate.handle,
    "index": index.handle,
    "ingest": ingest.handle,
    "probe": probe.handle,
}


@cache
def embedder() -> Embedder:
    """The real model, loaded once a test process."""
    return load_embedder("all-minilm-l6-v2", threads=1, models_dir=installed_models_dir())


@dataclass(slots=True)
class Desk:
    """A slot's view of one data directory."""

    postgres: Pool
    redis: Client
    settings: Settings
    engines: dict[str, object] = field(default_factory=lambda: {"embed": embedder()})

    @property
    def services(self) -> Services:
        return Services(
            settings=self.settings,
            kinds=KINDS,
            postgres=self.postgres,
            live=LiveStream(self.redis),
            cores=1,
            engines=self.engines,
        )

    async def put(
        self, key: str, text: str, *, collection: str = "default", tags: tuple[str, ...] = ()
    ) -> Put:
        page = Page(key=key, url=key, text=text, title=key.rsplit("/", 1)[-1], tags=tags)
        async with self.postgres.acquire() as connection, connection.transaction():
            return await documents.put_page(connection, DEFAULT_TENANT, collection, page)

    async def claimed(self, kind: str, payload: JsonObject) -> AnyRun:
        """A job of this kind in a fresh slot's hands."""
        async with self.postgres.acquire() as connection:
            await ledger.enqueue(connection, DEFAULT_TENANT, [NewJob(kind, payload)], kinds=KINDS)
        found = await self.claim(kind)
        assert found is not None
        return found

    async def claim(self, kind: str) -> AnyRun | None:
        """The next queued job of this kind, held by a fresh slot."""
        async with self.postgres.acquire() as connection:
            slot_id = await slots.register(
                connection,
                supervisor_id=uuid4(),
                pool=KINDS[kind].pool,
                number=0,
                host="test",
                pid=os.getpid(),
                cores=[0],
                kinds=[kind],
            )
            jobs = await ledger.claim(
                connection, slot_id, KINDS[kind].pool, [kind], 1, alone_ok=True
            )
        if not jobs:
            return None
        run = prepare(jobs[0], KINDS[kind], self.services)
        assert not isinstance(run, Failed)
        return run

    async def end(self, run: AnyRun, ending: Ending) -> None:
        async with self.postgres.acquire() as connection:
            await ledger.record(
                connection,
                run.job.slot_id,
                [Ended(run.job, ending)],
                kinds=KINDS,
                rng=random.Random(1),
            )

    async def work(self, kind: str, payload: JsonObject) -> JsonObject:
        """Run one job to its end, as a slot does; its result."""
        return await self.finish(await self.claimed(kind, payload))

    async def finish(self, run: AnyRun) -> JsonObject:
        found = await HANDLERS[run.job.kind](run)
        ending = found if isinstance(found, Completed) else Completed(found)
        await self.end(run, ending)
        return cast("JsonObject", ending.result)

    async def drain(self, kind: str) -> list[JsonObject]:
        """Run all queued jobs of this kind."""
        results = []
        while (run := await self.claim(kind)) is not None:
            results.append(await self.finish(run))
        return results

    async def publish(self, texts: Mapping[str, str], *, collection: str = "default") -> list[UUID]:
        """Put, embed and index these texts by key: searchable when it returns."""
        puts = [await self.put(key, text, collection=collection) for key, text in texts.items()]
        ids = [put.document_id for put in puts]
        payload = {"document_ids": [str(item) for item in ids], "collection": collection}
        await self.work("embed", payload)
        await self.drain("index")
        return ids

    def on(self, settings: Settings) -> "Desk":
        """The same installation seen from another data directory."""
        return replace(self, settings=settings)
