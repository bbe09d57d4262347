"""Repeats a request that may be repeated, while the API is away or asks to come back later."""

import time
from collections.abc import Callable

from cli.client import ApiError, ApiNotReachable

# Longer than a restart of any process of the stack.
PATIENCE_S = 60.0
PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0


class Patience:
    """How long to go on without an answer; each answer renews it."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._until: float | None = None

    def renew(self) -> None:
        """There was an answer."""
        self._until = None

    def wait(self, error: ApiError | ApiNotReachable) -> None:
        """Wait until it makes sense to ask again, or raise the error when it does not."""
        pause_s = PAUSE_S
        if isinstance(error, ApiError):
            if error.retry_after_s is None:
                raise error
            pause_s = min(max(error.retry_after_s, 0.1), LONGEST_PAUSE_S)
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._patience_s
        if now + pause_s > self._until:
            raise error
        time.sleep(pause_s)


def persistently[T](ask: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """The answer, however often it takes to ask. Raises ApiError and ApiNotReachable in the end."""
    patience = Patience(patience_s)
    while True:
        try:
            return ask()
        except (ApiError, ApiNotReachable) as error:
            patience.wait(error)
