"""Every error of the packages below has its problem; nobody meets a 500 because a row was
forgotten.
"""

from collections.abc import Iterator
from types import ModuleType

import asyncpg
import pytest

from api.errors import ProblemType
from api.translations import LEDGER, OTHERS, translate
from corpus import errors as corpus
from jobs import errors as ledger
from jobs.kinds import UnknownKind
from schedules import errors as schedules
from webhooks import errors as webhooks

# Bases, which are never raised themselves, and what only handlers raise.
_NOT_RAISED = {
    ledger.LedgerError,
    corpus.CorpusError,
    corpus.SearchError,
    schedules.ScheduleError,
    webhooks.WebhookError,
    ledger.JobError,
    ledger.Retry,
    ledger.Fail,
    ledger.Cancel,
}


def _errors(module: ModuleType) -> Iterator[type[Exception]]:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Exception):
            yield value


@pytest.mark.parametrize("module", [ledger, corpus, schedules, webhooks])
def test_every_error_is_translated(module: ModuleType) -> None:
    forgotten = set(_errors(module)) - _NOT_RAISED - LEDGER.keys() - OTHERS.keys()
    assert forgotten == set()


def test_every_ledger_error_outside_its_module_is_translated() -> None:
    todo, found = [ledger.LedgerError], set()
    while todo:
        subclasses = todo.pop().__subclasses__()
        todo.extend(subclasses)
        found.update(subclasses)
    assert found >= {UnknownKind, ledger.JobNotFound}
    assert found - LEDGER.keys() == set()


@pytest.mark.parametrize(
    "error",
    [
        OSError("connection refused"),
        TimeoutError(),
        asyncpg.InterfaceError("pool is closed"),
        asyncpg.AdminShutdownError("terminating"),
        asyncpg.CannotConnectNowError("starting up"),
        asyncpg.QueryCanceledError("statement timeout"),
        asyncpg.LockNotAvailableError("lock timeout"),
        asyncpg.TooManyConnectionsError("too many"),
        asyncpg.DiskFullError("no space left"),
    ],
)
def test_a_postgres_that_is_away_is_503_with_a_time_to_come_back(error: Exception) -> None:
    problem = translate(error)
    assert problem is not None
    assert problem.type is ProblemType.UNAVAILABLE
    assert int(problem.headers["Retry-After"]) > 0


def test_a_fault_of_ours_is_not_dressed_up() -> None:
    assert translate(KeyError("x")) is None
