"""Joins the caller's transaction, or opens one where there is none."""

from contextlib import AbstractAsyncContextManager, nullcontext

from runtime.postgres import Connection


def joined(connection: Connection) -> AbstractAsyncContextManager[object]:
    """A transaction, without the two round trips of a savepoint when the caller has one already."""
    if connection.is_in_transaction():
        return nullcontext()
    return connection.transaction()
