"""Fits retrieved passages and a question into a model's context, and tells which ones went in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engines.errors import PromptTooLong
from engines.generate import Message, Prompt, TextModel

# Chosen by trial with the default model, which is small: longer rules only confuse it.
INSTRUCTION = "You answer questions by quoting the given sources."
REQUEST = "Using only the sources above, answer in one or two sentences:"
# A shorter rest of a passage says nothing and costs attention.
MIN_PASSAGE_TOKENS = 24
# Number and line ends of a passage; the whole is counted exactly before it is used.
SLACK_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved text; `label` (its title and section) is shown to the model above it."""

    text: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class GroundedPrompt:
    """A prompt that fits. `used` has the positions of the passages in it: [1] is `used[0]`."""

    prompt: Prompt
    used: tuple[int, ...]


def grounded_prompt(
    model: TextModel,
    messages: Sequence[Message],
    passages: Sequence[Passage],
    *,
    max_tokens: int,
) -> GroundedPrompt:
    """A prompt of the messages, the last one asked about `passages` (best first).

    Room for `max_tokens` of answer, at most half the context, is kept free of passages: the last
    ones are cut or left out. The messages are never cut; PromptTooLong when they do not fit alone.
    """
    room = model.context_tokens - min(max_tokens, model.context_tokens // 2)
    left = room - len(_render(model, messages, [Passage("")]).ids)
    while chosen := _fill(model, passages, left):
        prompt = _render(model, messages, [passage for _, passage in chosen])
        if len(prompt.ids) <= room:
            return GroundedPrompt(prompt, tuple(place for place, _ in chosen))
        # Tokens merge across the parts' borders, so that a sum can be off by a few: try smaller.
        left -= len(prompt.ids) - room
    prompt = model.chat(messages)
    if len(prompt.ids) >= model.context_tokens:
        raise PromptTooLong(len(prompt.ids), model.context_tokens)
    return GroundedPrompt(prompt, ())


def _fill(model: TextModel, passages: Sequence[Passage], room: int) -> list[tuple[int, Passage]]:
    chosen: list[tuple[int, Passage]] = []
    for place, passage in enumerate(passages):
        room -= len(model.tokenize(passage.label)) + SLACK_TOKENS
        fitting = _cut(model, passage, room)
        if fitting is None:
            break
        chosen.append((place, fitting))
        room -= len(model.tokenize(fitting.text))
    return chosen


def _cut(model: TextModel, passage: Passage, room: int) -> Passage | None:
    """The passage, or its beginning up to the end of a word; None when too little is left."""
    if room < MIN_PASSAGE_TOKENS:
        return None
    ids = model.tokenize(passage.text)
    if len(ids) <= room:
        return passage
    begun = passage.text[: len(model.detokenize(ids[:room]).rstrip("\ufffd"))]
    words, space, _ = begun.rpartition(" ")
    return replace(passage, text=words if space else begun)


def _render(model: TextModel, messages: Sequence[Message], passages: Sequence[Passage]) -> Prompt:
    if not passages:
        return model.chat(messages)
    sources = "\n\n".join(
        f"[{number}] {passage.label}\n{passage.text}".strip()
        for number, passage in enumerate(passages, start=1)
    )
    *earlier, question = messages
    if not earlier or earlier[0].role != "system":
        earlier = [Message("system", INSTRUCTION), *earlier]
    asked = f"Sources:\n\n{sources}\n\n{REQUEST} {question.content}"
    return model.chat([*earlier, replace(question, content=asked)])
