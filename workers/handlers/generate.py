"""A generate job: retrieve passages, fit them into the prompt, write the answer, cite what was
used.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import anyio
import anyio.from_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from corpus.errors import CollectionNotFound, SearchRefused, SearchUnavailable
from corpus.search import Hit, SearchRequest
from corpus.search_client import SearchClient
from engines.errors import EngineError
from engines.generate import Generation, Message, Request, TextModel, load_text_model
from engines.models import installed_models_dir
from engines.prompt import GroundedPrompt, Passage, grounded_prompt
from jobs.errors import Fail, Retry
from jobs.kinds import GeneratePayload
from jobs.model import JsonObject
from runtime.groups import single_error
from workers.run import Run, Services

# Pieces that wait for Redis; beyond that watchers miss some, and the result still has all.
PIECES_WAITING_MAX = 1000


@dataclass(frozen=True, slots=True)
class Written:
    """A generation and the prompt it rests on."""

    generation: Generation
    grounded: GroundedPrompt
    model: str


async def handle(run: Run[GeneratePayload]) -> JsonObject:
    """Generate text; what the model cannot do with this input fails with the engine's own code."""
    hits = await _retrieve(run)
    send, receive = anyio.create_memory_object_stream[str](PIECES_WAITING_MAX)
    with single_error():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_publish, run, receive)
            with send:
                show = send.send_nowait
                written = await run.in_thread(lambda stop: _write(run, hits, show, stop))
    return _result(written, hits)


async def _retrieve(run: Run[GeneratePayload]) -> list[Hit]:
    """The passages that the answer may cite, best first; none when nothing was asked for."""
    retrieve = run.payload.retrieve
    if retrieve is None:
        return []
    query = retrieve.query or _messages(run.payload)[-1].content
    request = SearchRequest(
        tenant_id=run.job.tenant_id,
        query=query[:8192],
        collection=retrieve.collection,
        k=retrieve.k,
        mode=retrieve.mode,
    )
    try:
        return list((await _search_client(run.services).search(request)).hits)
    except SearchUnavailable as error:
        raise Retry(str(error), type_="search_unavailable") from error
    except CollectionNotFound as error:
        raise Fail(str(error), type_="collection_not_found") from error
    except SearchRefused as error:
        raise Fail(str(error), type_="search_refused") from error


def _search_client(services: Services) -> SearchClient:
    client = services.engines.get("search_client")
    if not isinstance(client, SearchClient):
        client = SearchClient(services.postgres, services.settings)
        services.engines["search_client"] = client
    return client


def _messages(payload: GeneratePayload) -> list[Message]:
    if payload.messages is None:
        return [Message("user", payload.prompt or "")]
    return [Message(message.role, message.content) for message in payload.messages]


def _write(
    run: Run[GeneratePayload],
    hits: list[Hit],
    show: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> Written:
    """The blocking part, in a thread: load the model on first need, build the prompt, generate."""
    try:
        return _write_with(_model(run.services, run.payload.model), run, hits, (show, should_stop))
    except EngineError as error:
        raise Fail(str(error), type_=error.code) from error


def _write_with(
    model: TextModel,
    run: Run[GeneratePayload],
    hits: list[Hit],
    ends: tuple[Callable[[str], None], Callable[[], bool]],
) -> Written:
    payload = run.payload
    show, should_stop = ends
    passages = [Passage(hit.text, hit.document.title or "") for hit in hits]
    grounded = grounded_prompt(model, _messages(payload), passages, max_tokens=payload.max_tokens)
    request = Request(
        prompt=grounded.prompt,
        max_tokens=payload.max_tokens,
        temperature=payload.temperature,
        top_p=payload.top_p,
        seed=payload.seed,
        stop=payload.stop,
        schema=payload.json_schema,
    )

    def on_token(text: str) -> None:
        with suppress(anyio.WouldBlock):
            anyio.from_thread.run_sync(show, text)

    return Written(model.generate(request, on_token, should_stop), grounded, model.name)


def _model(services: Services, wanted: str | None) -> TextModel:
    """The slot's one model. A job may name it, so that its answer is by no other; no other path."""
    spec = services.settings.llm_model
    if wanted is not None and wanted != spec:
        raise Fail(
            f"this stack runs the model {spec!r}, not {wanted!r}: leave `model` out, or set "
            "XNAI_LLM_MODEL",
            type_="model_not_served",
        )
    model = services.engines.get("text_model")
    if model is None:
        model = load_text_model(spec, threads=services.cores, models_dir=installed_models_dir())
        services.engines["text_model"] = model
    return model  # type: ignore[return-value] # only this function puts it there


async def _publish(run: Run[GeneratePayload], receive: MemoryObjectReceiveStream[str]) -> None:
    """Show the text to watchers, as many pieces at once as have gathered."""
    async with receive:
        async for piece in receive:
            pieces = [piece]
            with suppress(anyio.WouldBlock, anyio.EndOfStream):
                while True:
                    pieces.append(receive.receive_nowait())
            await run.token("".join(pieces))


def _result(written: Written, hits: list[Hit]) -> JsonObject:
    generation = written.generation
    return {
        "text": generation.text,
        "model": written.model,
        "seed": generation.seed,
        "finish_reason": generation.finish_reason,
        "usage": {
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": generation.completion_tokens,
            "total_tokens": generation.prompt_tokens + generation.completion_tokens,
        },
        "citations": [_citation(hits[place]) for place in written.grounded.used],
    }


def _citation(hit: Hit) -> JsonObject:
    return {
        "document_id": str(hit.document.id),
        "chunk_id": str(hit.chunk_id),
        "url": hit.document.url,
        "title": hit.document.title,
        "score": hit.score,
    }
