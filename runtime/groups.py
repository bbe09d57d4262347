"""Takes the one error out of a task group's exception group, where a caller expects the error
itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager


def only_leaf(error: BaseException) -> BaseException:
    """The error inside groups of one; a group of several stays as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@contextmanager
def single_error() -> Iterator[None]:
    """Raise what went wrong in a task group as it is: the caller's own error, not a group of it."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = only_leaf(group)
        raise error from error.__cause__
