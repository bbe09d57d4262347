"""Judges a history: which promises of the design it breaks. Pure: no I/O, no clock."""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: a stable `code`, one line with the facts, and the ids to look at."""

    code: str
    detail: str
    ids: tuple[UUID, ...] = ()
