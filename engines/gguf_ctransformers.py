"""The default language model, on the native library of ctransformers.

Its tokenizer, template and context bookkeeping are here, because the library's are not to be used.
"""

import os
import secrets
from collections.abc import Sequence

from engines.convert import byte_alphabet
from engines.ctransformers_library import NativeModel
from engines.errors import GenerationFailed, ModelUnsupported
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
from engines.stream import TextStream
from engines.tokens import clean, load_tokenizer

# Bigger slices read a prompt no faster; this one takes 0.4 s on one core, the time to an abort.
SLICE_TOKENS = 64
TOP_K = 40
REPETITION_PENALTY = 1.1
REPETITION_WINDOW = 64
OPEN, CLOSE, END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class CtransformersModel:
    """A ChatML model converted by `engines.convert`."""

    def __init__(self, files: TextModelFiles, *, threads: int, context_tokens: int) -> None:
        """Load it; raises ModelDamaged, ModelUnsupported or EngineUnavailable."""
        if files.tokenizer is None:
            raise ModelUnsupported(f"{files.gguf} is not converted for ctransformers")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.name, self.digest = files.name, files.digest
        self._tokenizer = load_tokenizer(files.tokenizer)
        words = self._tokenizer.get_vocab()
        if not {OPEN, CLOSE, END} <= words.keys():
            raise ModelUnsupported(f"{files.gguf} does not speak ChatML")
        self._control = {word: words[word] for word in (OPEN, CLOSE, END)}
        # From here on, a text that contains a control token's name is only text.
        self._tokenizer.encode_special_tokens = True
        self._native = NativeModel(files.gguf, context_tokens=context_tokens)
        if not self._native.is_loaded:
            raise ModelUnsupported(f"ctransformers cannot load {files.gguf}")
        self.context_tokens = self._native.context_tokens
        self._threads = threads
        self._evaluated: list[int] = []
        self._spelling: dict[int, bytes] = {}

    def tokenize(self, text: str) -> list[int]:
        """See TextModel."""
        ids: list[int] = self._tokenizer.encode(clean(text), add_special_tokens=False).ids
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """See TextModel."""
        return b"".join(map(self._spell, ids)).decode(errors="replace")

    def chat(self, messages: Sequence[Message]) -> Prompt:
        """See TextModel; the template is ChatML with SmolLM2's own system message."""
        if not messages or messages[0].role != "system":
            messages = [Message("system", DEFAULT_SYSTEM), *messages]
        newline = self.tokenize("\n")
        ids: list[int] = []
        for message in messages:
            turn = self.tokenize(f"{message.role}\n{message.content}")
            ids += [self._control[OPEN], *turn, self._control[CLOSE], *newline]
        return Prompt((*ids, self._control[OPEN], *self.tokenize("assistant\n")))

    def generate(self, request: Request, on_token: OnToken, should_stop: ShouldStop) -> Generation:
        """See TextModel; a schema is refused, this library cannot enforce one."""
        if request.schema is not None:
            raise ModelUnsupported(
                f"{self.name} on ctransformers cannot follow a JSON schema: set XNAI_LLM_MODEL to "
                "the path of a GGUF file, which runs on xllamacpp"
            )
        room = room_for(request, self.context_tokens)
        seed = secrets.randbelow(MAX_SEED) if request.seed is None else request.seed % MAX_SEED
        stream = TextStream(request.stop, on_token)
        made = 0
        finish: FinishReason = "length"
        if not self._read(request.prompt.ids, should_stop):
            return Generation("", len(request.prompt.ids), 0, "aborted", seed)
        while made < room:
            if should_stop():
                finish = "aborted"
                break
            token = self._draw(request, seed + made)
            made += 1
            if token in self._control.values():
                finish = "stop"
                break
            stream.feed_bytes(self._spell(token))
            if stream.is_stopped:
                finish = "stop"
                break
            if made < room:
                self._evaluate([token])
        return Generation(stream.finish(), len(request.prompt.ids), made, finish, seed)

    def close(self) -> None:
        """See TextModel."""
        self._native.close()

    def _read(self, ids: Sequence[int], should_stop: ShouldStop) -> bool:
        """Evaluate the prompt, as far as the last one did not; false when asked to stop."""
        shared = 0
        # The last id is always evaluated again: its logits are what the first token is drawn from.
        while shared < min(len(self._evaluated), len(ids) - 1):
            if self._evaluated[shared] != ids[shared]:
                break
            shared += 1
        del self._evaluated[shared:]
        for start in range(shared, len(ids), SLICE_TOKENS):
            if should_stop():
                return False
            self._evaluate(list(ids[start : start + SLICE_TOKENS]))
        return True

    def _evaluate(self, ids: list[int]) -> None:
        past = len(self._evaluated)
        fits = past + len(ids) <= self.context_tokens
        if not fits or not self._native.evaluate(
            ids, past=past, batch=SLICE_TOKENS, threads=self._threads
        ):
            self._evaluated.clear()
            raise GenerationFailed(f"ctransformers failed to evaluate {len(ids)} after {past} ids")
        self._evaluated += ids

    def _draw(self, request: Request, seed: int) -> int:
        # The library seeds its generator anew at every token: the same seed would draw the same
        # number again and again.
        greedy = request.temperature <= 0
        # Only what was generated counts as repetition: an answer must be free to quote its sources.
        made = self._evaluated[len(request.prompt.ids) :][-REPETITION_WINDOW:]
        return self._native.sample(
            made,
            top_k=1 if greedy else TOP_K,
            top_p=request.top_p,
            temperature=1.0 if greedy else request.temperature,
            repetition_penalty=REPETITION_PENALTY,
            seed=seed % MAX_SEED,
        )

    def _spell(self, token: int) -> bytes:
        """The bytes of a token; control tokens have none."""
        if token not in self._spelling:
            word = self._tokenizer.id_to_token(token) or ""
            is_control = token in self._tokenizer.get_added_tokens_decoder()
            alphabet = byte_alphabet()
            spelled = b"" if is_control else bytes(alphabet[char] for char in word)
            self._spelling[token] = spelled
        return self._spelling[token]
