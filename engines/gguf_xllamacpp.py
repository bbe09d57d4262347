"""Any modern GGUF file, on xllamacpp: llama.cpp's server inside this process.

Generation goes by direct calls. Only tokenizing and templating go through the server's listener,
which the library opens on a free loopback port; a random key closes it to everybody else.
"""

import contextlib
import http.client
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from engines.errors import (
    EngineUnavailable,
    GenerationFailed,
    ModelUnsupported,
    PromptTooLong,
    RequestInvalid,
)
from engines.generate import (
    MAX_SEED,
    FinishReason,
    Generation,
    Message,
    OnToken,
    Prompt,
    Request,
    ShouldStop,
    room_for,
)
from engines.models import TextModelFiles
from engines.schema import JsonSchema
from engines.stream import TextStream
from engines.tokens import clean

# The library hears of an abort between two batches of the prompt.
BATCH_TOKENS = 64
TOP_K = 40
# Low, because the library counts the prompt too, and an answer must be free to quote it.
REPETITION_PENALTY = 1.05
CALL_TIMEOUT_S = 30.0


class _Server(Protocol):
    """What this module uses of `xllamacpp.Server` (the library has no types)."""

    listening_address: str

    def handle_completions(
        self, request: Mapping[str, object], on_chunk: Callable[[dict[str, Any]], bool]
    ) -> None:
        """Run a completion, calling `on_chunk` from this thread until it returns True."""
        ...


class XllamacppModel:
    """A model in llama.cpp's server, with one slot."""

    def __init__(self, files: TextModelFiles, *, threads: int, context_tokens: int) -> None:
        """Load it; raises ModelUnsupported or EngineUnavailable."""
        self.name, self.digest = files.name, files.digest
        self._key = secrets.token_urlsafe(24)
        self._server: _Server | None = _open_server(files, threads, context_tokens, self._key)
        address = urlsplit(self._server.listening_address)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 0
        settings = self._call("GET", "/props")["default_generation_settings"]
        self.context_tokens = int(settings["n_ctx"])

    def tokenize(self, text: str) -> list[int]:
        """See TextModel."""
        return self._tokenize(text, as_template=False)

    def detokenize(self, ids: Sequence[int]) -> str:
        """See TextModel."""
        return str(self._call("POST", "/detokenize", {"tokens": list(ids)})["content"])

    def chat(self, messages: Sequence[Message]) -> Prompt:
        """See TextModel; by the GGUF's own template, or ChatML when it has none.

        The template is filled with marks in place of the contents, so that only its own text may
        become control tokens.
        """
        marks = [f"xnai{secrets.token_hex(8)}" for _ in messages]
        turns = [
            {"role": message.role, "content": mark}
            for message, mark in zip(messages, marks, strict=True)
        ]
        rest = str(self._call("POST", "/apply-template", {"messages": turns})["prompt"])
        ids: list[int] = []
        for message, mark in zip(messages, marks, strict=True):
            before, found, rest = rest.partition(mark)
            if not found:
                raise ModelUnsupported(
                    f"the chat template of {self.name} leaves out a message of role {message.role}"
                )
            ids += self._tokenize(before, as_template=True) + self.tokenize(message.content)
        return Prompt((*ids, *self._tokenize(rest, as_template=True)))

    def generate(self, request: Request, on_token: OnToken, should_stop: ShouldStop) -> Generation:
        """See TextModel; a finished answer to a schema is checked against it."""
        server = self._open()
        room = room_for(request, self.context_tokens)
        schema = JsonSchema(request.schema) if request.schema is not None else None
        seed = secrets.randbelow(MAX_SEED) if request.seed is None else request.seed % MAX_SEED
        listener = _Listener(TextStream(request.stop, on_token), should_stop)
        server.handle_completions(_body(request, room, seed), listener.hear)
        listener.raise_failure(self.context_tokens)
        text = listener.stream.finish()
        finish = listener.finish_reason()
        if schema and finish == "stop" and not request.stop:
            schema.check(text, self.name)
        return Generation(text, len(request.prompt.ids), listener.completion_tokens, finish, seed)

    def close(self) -> None:
        """See TextModel."""
        self._server = None

    def _open(self) -> _Server:
        if self._server is None:
            raise GenerationFailed(f"{self.name} is closed")
        return self._server

    def _tokenize(self, text: str, *, as_template: bool) -> list[int]:
        body = {"content": clean(text), "add_special": False, "parse_special": as_template}
        return [int(token) for token in self._call("POST", "/tokenize", body)["tokens"]]

    def _call(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        """Ask the listener of this very process."""
        self._open()
        connection = http.client.HTTPConnection(self._host, self._port, timeout=CALL_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        with contextlib.closing(connection):
            try:
                connection.request(method, path, json.dumps(body), headers)
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                raise GenerationFailed(f"xllamacpp does not answer {path}: {error}") from error
        if response.status != http.HTTPStatus.OK:
            raise GenerationFailed(f"xllamacpp answered {response.status} to {path}")
        answer: dict[str, Any] = json.loads(content)
        return answer


class _Listener:
    """Hears the chunks of one completion; keeps what a callback raises, the library drops it."""

    def __init__(self, stream: TextStream, should_stop: ShouldStop) -> None:
        self.stream = stream
        self.completion_tokens = 0
        self._should_stop = should_stop
        self._reason = ""
        self._is_aborted = False
        self._error: dict[str, Any] = {}
        self._raised: BaseException | None = None

    def hear(self, chunk: dict[str, Any]) -> bool:
        """Take one chunk; True ends the completion."""
        try:
            self._take(chunk)
            self._is_aborted = not self._reason and self._should_stop()
        except BaseException as error:  # noqa: BLE001 - raised again by `raise_failure`
            self._raised = error
        return bool(self._raised or self._error or self._is_aborted or self.stream.is_stopped)

    def raise_failure(self, context_tokens: int) -> None:
        """Raise what a callback raised, or the library's refusal in our words."""
        if self._raised:
            raise self._raised
        if not self._error:
            return
        kind, facts = self._error.get("type"), str(self._error.get("message"))
        if kind == "exceed_context_size_error":
            raise PromptTooLong(int(self._error.get("n_prompt_tokens", 0)), context_tokens)
        if kind == "invalid_request_error":
            raise RequestInvalid(f"xllamacpp refused the request: {facts}")
        raise GenerationFailed(f"xllamacpp failed: {facts}")

    def finish_reason(self) -> FinishReason:
        """Why it ended."""
        if self._is_aborted:
            return "aborted"
        return "length" if self._reason == "length" and not self.stream.is_stopped else "stop"

    def _take(self, chunk: dict[str, Any]) -> None:
        self._error = chunk.get("error") or {}
        for choice in chunk.get("choices", ()):
            if choice["text"]:
                self.completion_tokens += 1
                self.stream.feed(choice["text"])
            self._reason = choice["finish_reason"] or ""
        # The last chunk knows better: a piece of text may be several tokens.
        usage = chunk.get("usage") or {}
        self.completion_tokens = int(usage.get("completion_tokens", self.completion_tokens))


def _body(request: Request, room: int, seed: int) -> dict[str, object]:
    body: dict[str, object] = {
        "prompt": list(request.prompt.ids),
        "max_tokens": room,
        "temperature": max(request.temperature, 0.0),
        "top_p": request.top_p,
        "top_k": TOP_K,
        "min_p": 0.0,
        "repeat_penalty": REPETITION_PENALTY,
        "seed": seed,
        "stream": True,
        "return_progress": True,
        "cache_prompt": True,
    }
    return body if request.schema is None else {**body, "json_schema": dict(request.schema)}


def _open_server(files: TextModelFiles, threads: int, context_tokens: int, key: str) -> _Server:
    try:
        import xllamacpp
    except ImportError as error:
        raise EngineUnavailable(
            f"xllamacpp cannot be loaded: {error}; it needs the system library libgomp1"
        ) from error
    settings = xllamacpp.CommonParams()
    settings.model.path = str(files.gguf)
    settings.n_ctx, settings.n_parallel = context_tokens, 1
    settings.n_batch = settings.n_ubatch = BATCH_TOKENS
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.n_threads_http = 1
    settings.n_gpu_layers = 0
    settings.cache_ram_mib = 0
    settings.api_keys = [key]
    settings.hostnames = ["127.0.0.1"]
    settings.verbosity = -1
    settings.offline = True
    settings.warmup = settings.fit_params = settings.ui = settings.endpoint_slots = False
    settings.endpoint_props = False
    try:
        server: _Server = xllamacpp.Server(settings)
    except RuntimeError as error:
        raise ModelUnsupported(f"xllamacpp cannot load {files.gguf}: {error}") from error
    return server
