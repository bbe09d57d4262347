"""Runs a verb in a transaction of its own or of its caller, and again after a deadlock."""

from collections.abc import Awaitable, Callable

import asyncpg

from runtime.postgres import Connection

_TRIES = 5


async def atomically[T](connection: Connection, work: Callable[[], Awaitable[T]]) -> T:
    """Do the work wholly or not at all; within a caller's transaction it is a savepoint.

    Locks are ordered, but keys meet in ways that no order of statements rules out (a follow-up
    takes one unique key, its parent's end frees another). Postgres then ends one of the two, which
    begins again here: going back to the savepoint has freed what it held.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            async with connection.transaction():
                return await work()
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
            if not tries_left:
                raise
    message = "unreachable: the last try returns or raises"
    raise AssertionError(message)
