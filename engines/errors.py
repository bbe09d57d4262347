"""Everything the engines raise on purpose: a library's own errors are translated into this tree.

`code` is the stable name of a failure, for results and metrics; the text has the facts and the fix.
"""

from pathlib import Path
from typing import ClassVar

FIX = "run `xnai doctor --fix` or `make setup`"


class EngineError(Exception):
    """Base of the tree."""

    code: ClassVar[str] = "engine_error"


class EngineUnavailable(EngineError):
    """A native library is not installed, or this machine cannot load it."""

    code = "engine_unavailable"


class ModelError(EngineError):
    """A model's files cannot be used."""

    code = "model_error"


class ModelMissing(ModelError):
    """A model, or one file of it, is not on this machine."""

    code = "model_missing"

    def __init__(self, what: str, fix: str = FIX) -> None:
        super().__init__(f"model file missing: {what}; {fix}")


class ModelDamaged(ModelError):
    """A file is truncated or altered: its digest is not the recorded one, or it does not parse."""

    code = "model_damaged"

    def __init__(self, path: Path, facts: str) -> None:
        super().__init__(f"model file damaged: {path}: {facts}; {FIX}")
        self.path = path


class ModelUnsupported(ModelError):
    """The files are sound, but no backend here can run such a model, or not with this option."""

    code = "model_unsupported"


class PromptTooLong(EngineError):
    """The prompt does not fit the model's context; raised before any native call."""

    code = "prompt_too_long"

    def __init__(self, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"prompt has {prompt_tokens} tokens and needs room for one more, "
            f"the model's context holds {context_tokens}: shorten the prompt"
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class RequestInvalid(EngineError):
    """A generation request that no attempt can make good, such as a broken JSON schema."""

    code = "request_invalid"


class GenerationFailed(EngineError):
    """The native library gave up in the middle of a generation."""

    code = "generation_failed"


class SegmentError(EngineError):
    """A segment file of the vector index cannot be used: build it again from its vectors."""

    code = "segment_error"


class SegmentMissing(SegmentError):
    """No such segment file."""

    code = "segment_missing"

    def __init__(self, path: Path) -> None:
        super().__init__(f"index segment missing: {path}; run `xnai rebuild index`")
        self.path = path


class SegmentDamaged(SegmentError):
    """A segment file is truncated, altered, or not a segment at all."""

    code = "segment_damaged"

    def __init__(self, path: Path, facts: str) -> None:
        super().__init__(f"index segment damaged: {path}: {facts}; run `xnai rebuild index`")
        self.path = path
