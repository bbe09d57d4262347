"""Text from a language model: what a request and an answer are, whichever library runs the model.

A `TextModel` serves one thread at a time. Nothing here retries, retrieves or stores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from engines.errors import PromptTooLong, RequestInvalid
from engines.models import Backend, text_model_files

CONTEXT_TOKENS = 2048
MAX_SEED = 2**31

type FinishReason = Literal["stop", "length", "aborted"]
type OnToken = Callable[[str], None]
type ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, ready to evaluate. Control tokens in them come from the template only: text that
    looks like one was tokenized as plain text.
    """

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate. Temperature 0 is greedy; without a seed one is drawn and reported."""

    prompt: Prompt
    max_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: Mapping[str, object] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Generation:
    """What came out. `aborted`: the caller asked to stop, `text` is what there was by then."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    seed: int


class TextModel(Protocol):
    """A loaded language model."""

    @property
    def name(self) -> str:
        """Its name, for labels."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the model file as it was delivered."""
        ...

    @property
    def context_tokens(self) -> int:
        """How many tokens prompt and completion may have together."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, control tokens taken as plain text."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, incomplete characters replaced by U+FFFD."""
        ...

    def chat(self, messages: Sequence[Message]) -> Prompt:
        """Messages in the model's own chat template, open for the assistant's answer."""
        ...

    def generate(self, request: Request, on_token: OnToken, should_stop: ShouldStop) -> Generation:
        """Generate; `on_token` gets the text in pieces of whole characters as it comes.

        `should_stop` is asked at least about once a second, while the prompt is read too. Raises
        PromptTooLong before any work, ModelUnsupported for a schema that the backend cannot
        enforce, RequestInvalid for a schema that nobody can.
        """
        ...

    def close(self) -> None:
        """Free the model's memory; repeatable."""
        ...


def load_text_model(
    spec: str,
    *,
    threads: int,
    models_dir: Path,
    backend: Backend | None = None,
    context_tokens: int = CONTEXT_TOKENS,
) -> TextModel:
    """Verify and load a language model by name or GGUF path; raises ModelError.

    `threads` must not exceed the cores of the calling process: one more makes it hundreds of
    times slower.
    """
    files = text_model_files(spec, models_dir, backend=backend)
    if files.backend == "ctransformers":
        from engines.gguf_ctransformers import CtransformersModel

        return CtransformersModel(files, threads=threads, context_tokens=context_tokens)
    from engines.gguf_xllamacpp import XllamacppModel

    return XllamacppModel(files, threads=threads, context_tokens=context_tokens)


def room_for(request: Request, context_tokens: int) -> int:
    """How many tokens may be generated; raises PromptTooLong when there is no room for one, and
    RequestInvalid when nothing is given or asked for.
    """
    prompt_tokens = len(request.prompt.ids)
    if not prompt_tokens:
        raise RequestInvalid("the prompt is empty: there is nothing to continue")
    if request.max_tokens < 1:
        raise RequestInvalid(f"max_tokens is {request.max_tokens}: it must be 1 or more")
    if prompt_tokens >= context_tokens:
        raise PromptTooLong(prompt_tokens, context_tokens)
    return min(request.max_tokens, context_tokens - prompt_tokens)
