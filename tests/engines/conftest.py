"""The real models, loaded once a test process; tests that share one share an xdist group."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.embed import Embedder, load_embedder
from engines.generate import TextModel, load_text_model
from engines.models import DEFAULT_EMBED_MODEL, DEFAULT_TEXT_MODEL, text_model_files
from engines.split import Splitter


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all xdist workers, so that the default model is converted once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    text_model_files(DEFAULT_TEXT_MODEL, folder)
    return folder


@pytest.fixture(scope="session")
def embedder(models_dir: Path) -> Embedder:
    return load_embedder(DEFAULT_EMBED_MODEL, threads=1, models_dir=models_dir)


@pytest.fixture(scope="session")
def splitter(embedder: Embedder) -> Splitter:
    return Splitter(embedder.tokenizer.count, embedder.tokenizer.offsets)


@pytest.fixture(scope="session")
def on_ctransformers(models_dir: Path) -> Iterator[TextModel]:
    model = load_text_model(
        DEFAULT_TEXT_MODEL, threads=1, models_dir=models_dir, backend="ctransformers"
    )
    yield model
    model.close()


@pytest.fixture(scope="session")
def on_xllamacpp(models_dir: Path) -> Iterator[TextModel]:
    model = load_text_model(
        DEFAULT_TEXT_MODEL, threads=1, models_dir=models_dir, backend="xllamacpp"
    )
    yield model
    model.close()


@pytest.fixture(params=["ctransformers", "xllamacpp"])
def text_model(request: pytest.FixtureRequest) -> TextModel:
    """The same model on each backend."""
    model: TextModel = request.getfixturevalue(f"on_{request.param}")
    return model
