"""What a rule answers when a promise is broken."""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: a stable `code`, one line with the facts, and the ids to look at."""

    code: str
    detail: str
    ids: tuple[UUID, ...] = ()
