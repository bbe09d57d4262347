"""The mapped copy of an embedding model: the same numbers, made once, never half."""

import shutil
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest

from engines.embed import Embedder, load_embedder
from engines.errors import ModelDamaged
from engines.mapped import WEIGHTS, mapped_model
from engines.models import embed_model_files, installed_models_dir

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("engines-embed")]

SPEC = "all-minilm-l6-v2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "models"
    found.mkdir()
    return found


def test_its_vectors_are_those_of_the_original(embedder: Embedder, folder: Path) -> None:
    mapped = load_embedder(SPEC, threads=1, models_dir=folder, mapped=True)
    texts = ["The keeper climbs 143 steps.", "灯台 🐦", "word " * 300]
    np.testing.assert_allclose(
        mapped.embed(texts).vectors, embedder.embed(texts).vectors, atol=1e-6
    )
    assert mapped.digest == embedder.digest


def test_two_at_once_make_one_copy_and_leave_no_scrap(folder: Path) -> None:
    files = embed_model_files(SPEC, installed_models_dir())
    together, found = Barrier(2), []

    def make() -> None:
        together.wait()
        found.append(mapped_model(files, folder))

    threads = [Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert sorted(path.name for path in folder.iterdir()) == [found[0].parent.name, "seals"]


def test_an_altered_copy_is_refused(folder: Path) -> None:
    files = embed_model_files(SPEC, installed_models_dir())
    weights = mapped_model(files, folder).parent / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ModelDamaged):
        mapped_model(files, folder)


def test_where_nothing_can_be_written_the_original_is_loaded(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file, where the folder of the models should be", encoding="utf-8")
    # The seals cannot be kept either: the files are hashed, and found right.
    assert load_embedder(SPEC, threads=1, models_dir=folder, mapped=True).dimensions == 384
