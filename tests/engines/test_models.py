"""Finding, verifying, converting and mending model files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines.conversion import CONVERTED_GGUF, SCRATCH
from engines.embed import load_embedder
from engines.errors import ModelDamaged, ModelMissing, ModelUnsupported
from engines.generate import load_text_model
from engines.models import (
    DEFAULT_EMBED_MODEL,
    DEFAULT_TEXT_MODEL,
    SMOLLM2,
    embed_model_files,
    problems,
    text_model_files,
)

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("engines-embed")]

NATIVE = {"numpy", "onnxruntime", "faiss", "tokenizers", "gguf", "xllamacpp", "ctransformers"}


@pytest.fixture
def own_embed_model(tmp_path: Path, models_dir: Path) -> Path:
    """A private copy of the default embedding model, as a user's own folder."""
    files = embed_model_files(DEFAULT_EMBED_MODEL, models_dir)
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(files.onnx, folder / "model.onnx")
    shutil.copy(files.tokenizer, folder / "tokenizer.json")
    return folder


def flip_byte(path: Path, place: int) -> None:
    """Alter one byte without changing the size."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0xFF]))


def test_importing_the_engines_loads_no_native_library() -> None:
    names = [path.stem for path in Path("engines").glob("*.py") if path.stem != "__init__"]
    imports = ", ".join(f"engines.{name}" for name in names)
    code = f"import sys, {imports}; print(*({NATIVE!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""


def test_default_models_are_found_and_sound(models_dir: Path) -> None:
    assert (
        problems(models_dir, text_model=DEFAULT_TEXT_MODEL, embed_model=DEFAULT_EMBED_MODEL) == []
    )
    assert text_model_files(DEFAULT_TEXT_MODEL, models_dir).digest == SMOLLM2.locate()[1]


def test_unknown_names_say_what_is_possible(models_dir: Path) -> None:
    with pytest.raises(ModelMissing, match=DEFAULT_TEXT_MODEL):
        text_model_files("gpt-17", models_dir)
    with pytest.raises(ModelMissing, match=DEFAULT_EMBED_MODEL):
        embed_model_files("no/such/folder", models_dir)


def test_missing_file_of_a_folder_is_named(own_embed_model: Path, tmp_path: Path) -> None:
    (own_embed_model / "tokenizer.json").unlink()
    with pytest.raises(ModelMissing, match=r"tokenizer\.json"):
        load_embedder(str(own_embed_model), threads=1, models_dir=tmp_path)


@pytest.mark.parametrize("size", [0, 1_000_000])
def test_truncated_model_is_refused(own_embed_model: Path, tmp_path: Path, size: int) -> None:
    load_embedder(str(own_embed_model), threads=1, models_dir=tmp_path)
    os.truncate(own_embed_model / "model.onnx", size)
    with pytest.raises(ModelDamaged, match="xnai doctor --fix"):
        load_embedder(str(own_embed_model), threads=1, models_dir=tmp_path)


def test_model_never_seen_whole_is_refused_by_the_library(
    own_embed_model: Path, tmp_path: Path
) -> None:
    os.truncate(own_embed_model / "model.onnx", 1_000_000)
    with pytest.raises(ModelDamaged, match="onnxruntime"):
        load_embedder(str(own_embed_model), threads=1, models_dir=tmp_path)


def test_altered_model_is_refused(own_embed_model: Path, tmp_path: Path) -> None:
    embed_model_files(str(own_embed_model), tmp_path)
    flip_byte(own_embed_model / "model.onnx", 5_000_000)
    with pytest.raises(ModelDamaged):
        embed_model_files(str(own_embed_model), tmp_path)


def test_full_check_sees_what_size_and_time_hide(own_embed_model: Path, tmp_path: Path) -> None:
    onnx = own_embed_model / "model.onnx"
    embed_model_files(str(own_embed_model), tmp_path)
    before = onnx.stat()
    flip_byte(onnx, 5_000_000)
    os.utime(onnx, ns=(before.st_atime_ns, before.st_mtime_ns))
    embed_model_files(str(own_embed_model), tmp_path)
    with pytest.raises(ModelDamaged):
        embed_model_files(str(own_embed_model), tmp_path, full=True)


def test_broken_tokenizer_is_refused(own_embed_model: Path, tmp_path: Path) -> None:
    (own_embed_model / "tokenizer.json").write_text('{"model": 7}')
    with pytest.raises(ModelDamaged, match="tokenizer"):
        load_embedder(str(own_embed_model), threads=1, models_dir=tmp_path)


def test_models_on_a_read_only_disk_still_verify(own_embed_model: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the seals' folder should be")
    first = embed_model_files(str(own_embed_model), blocked)
    assert embed_model_files(str(own_embed_model), blocked).digest == first.digest


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"", ModelDamaged), (b"not a model at all", ModelUnsupported)],
    ids=["empty", "other format"],
)
def test_file_that_is_no_gguf(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(content)
    with pytest.raises(error):
        load_text_model(str(path), threads=1, models_dir=tmp_path)


def test_truncated_gguf_is_refused_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    with SMOLLM2.locate()[0].open("rb") as file:
        path.write_bytes(file.read(3_000_000))
    with pytest.raises(ModelUnsupported, match="xllamacpp cannot load"):
        load_text_model(str(path), threads=1, models_dir=tmp_path)


def test_damaged_conversion_is_refused_then_mended_once_by_two_set_ups(
    models_dir: Path, tmp_path: Path
) -> None:
    sound = text_model_files(DEFAULT_TEXT_MODEL, models_dir, backend="ctransformers")
    folder = tmp_path / sound.gguf.parent.name
    shutil.copytree(sound.gguf.parent, folder)
    os.truncate(folder / CONVERTED_GGUF, 64_000_000)
    with pytest.raises(ModelDamaged):
        load_text_model(DEFAULT_TEXT_MODEL, threads=1, models_dir=tmp_path, backend="ctransformers")
    leftover = tmp_path / f"{SCRATCH}of-a-killed-set-up"
    leftover.mkdir()

    command = [sys.executable, "-m", "engines.models", "prepare", "--dir", str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = "".join(process.communicate(timeout=90)[0] for process in both)

    assert [process.returncode for process in both] == [0, 0]
    assert printed.count("converting") == 1
    assert not leftover.exists()
    assert problems(tmp_path, text_model=DEFAULT_TEXT_MODEL, embed_model=DEFAULT_EMBED_MODEL) == []


def test_conversion_that_lost_a_file_is_missing(models_dir: Path, tmp_path: Path) -> None:
    sound = text_model_files(DEFAULT_TEXT_MODEL, models_dir, backend="ctransformers")
    folder = tmp_path / sound.gguf.parent.name
    folder.mkdir()
    shutil.copy(sound.gguf.parent / "manifest.json", folder)
    with pytest.raises(ModelMissing, match=CONVERTED_GGUF):
        text_model_files(DEFAULT_TEXT_MODEL, tmp_path, backend="ctransformers")
