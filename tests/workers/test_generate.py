"""Generate jobs with the real model: answers that cite, and typed failures for what cannot be."""

from pathlib import Path

import pytest

from engines.generate import TextModel, load_text_model
from engines.models import installed_models_dir
from jobs.errors import Fail, Retry
from jobs.model import JsonObject
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.support.corpus import Desk

pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.xdist_group("text-model")]


@pytest.fixture(scope="module")
def text_model() -> TextModel:
    return load_text_model("smollm2-135m-instruct", threads=1, models_dir=installed_models_dir())


@pytest.fixture
def desk(db: Pool, redis: Client, settings: Settings, text_model: TextModel) -> Desk:
    return Desk(db, redis, settings, engines={"text_model": text_model})


async def test_a_prompt_is_answered_and_counted(desk: Desk) -> None:
    result = await desk.work("generate", {"prompt": "Say hello.", "max_tokens": 8, "seed": 1})
    assert result["text"]
    assert result["model"] == "smollm2-135m-instruct"
    assert result["citations"] == []
    usage = result["usage"]
    assert isinstance(usage, dict)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_the_same_seed_gives_the_same_text(desk: Desk) -> None:
    payload: JsonObject = {
        "prompt": "Name a colour.",
        "max_tokens": 8,
        "seed": 7,
        "temperature": 0.9,
    }
    texts = {str((await desk.work("generate", payload))["text"]) for _ in range(2)}
    assert len(texts) == 1


async def test_text_is_shown_to_watchers_while_it_is_written(desk: Desk, redis: Client) -> None:
    run = await desk.claimed("generate", {"prompt": "Count to five.", "max_tokens": 12, "seed": 1})
    result = await desk.finish(run)
    (pieces,) = await run.services.live.tokens_after([(run.job.id, "0-0")])
    assert "".join(text for _, _, text in pieces) == result["text"]


async def test_a_prompt_longer_than_the_context_is_a_typed_failure(desk: Desk) -> None:
    with pytest.raises(Fail) as raised:
        await desk.work("generate", {"prompt": "word " * 5000})
    assert raised.value.type == "prompt_too_long"


async def test_no_other_model_than_the_configured_one_is_loaded(desk: Desk) -> None:
    with pytest.raises(Fail) as raised:
        await desk.work("generate", {"prompt": "Hello", "model": "/etc/passwd"})
    assert raised.value.type == "model_not_served"


async def test_a_stopped_job_ends_soon(desk: Desk) -> None:
    run = await desk.claimed("generate", {"prompt": "Tell a long story.", "max_tokens": 1500})
    run.stop.set()
    result = await desk.finish(run)
    assert result["finish_reason"] == "aborted"


async def test_without_a_search_process_the_job_is_worth_another_attempt(desk: Desk) -> None:
    with pytest.raises(Retry) as raised:
        await desk.work("generate", {"prompt": "Hello", "retrieve": {}})
    assert raised.value.type == "search_unavailable"


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
async def test_a_damaged_model_file_is_a_typed_failure(
    db: Pool, redis: Client, settings: Settings, tmp_path: Path, damage: str
) -> None:
    model = tmp_path / "model.gguf"
    if damage == "truncated":
        model.write_bytes(b"GGUF\x03\x00\x00\x00")
    elif damage == "altered":
        model.write_bytes(b"no model at all" * 1000)
    broken = settings.model_copy(update={"llm_model": str(model)})
    with pytest.raises(Fail) as raised:
        await Desk(db, redis, broken, engines={}).work("generate", {"prompt": "Hello"})
    assert raised.value.type in {"model_missing", "model_damaged", "model_unsupported"}
