"""What a fault may touch, and how it says that it cannot be."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from chaos.ballast import Ballast
from chaos.plan import Step
from chaos.stack import Stack


class CannotInject(Exception):
    """A fault that cannot be had here and now; the text says what it needs."""


@dataclass(slots=True)
class Scene:
    """The stack and the state that faults share."""

    stack: Stack
    ballast: Ballast
    # Held down on purpose, by so many faults at once.
    redis_down: int = field(default=0)


# A fault lasts as long as the block; what it yields names what it was done to.
type Way = Callable[[Scene, Step], AbstractAsyncContextManager[str]]
