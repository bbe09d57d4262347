"""What a run's clients note of requests whose answers were lost, and how long it waits."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import anyio
import httpx
import pytest

from chaos.clients import Clients, Log
from chaos.load import Act, Load
from chaos.patience import STILL_S, Patience

pytestmark = pytest.mark.anyio

JOB = str(uuid4())
SUBMIT = Act(0, 0.0, "job", ({"kind": "effect", "payload": {}},))
RETRY = Act(1, 0.0, "retry", target=0)


async def sent(answers: Iterable[httpx.Response | Exception]) -> Log:
    """Submit a job, and retry it with these answers, one a request."""
    answering: Iterator[httpx.Response | Exception] = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/retry"):
            return httpx.Response(202, json={"id": JOB, "state": "queued"})
        found = next(answering)
        if isinstance(found, Exception):
            raise found
        return found

    log = Log()
    stack: Any = SimpleNamespace(data_dir=Path("chaos"))  # clients ask a stack for its name alone
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(answer), base_url="http://api"
    ) as http:
        clients = Clients(stack, http, log)
        await clients.send(Load(0, (SUBMIT,)), anyio.current_time() + 60)
        await clients.send(Load(0, (RETRY,)), anyio.current_time() + 60)
    assert next(answering, None) is None
    return log


@pytest.mark.parametrize("lost", [httpx.ReadTimeout("cut off"), httpx.Response(503)], ids=repr)
async def test_repeated_retry_may_have_begun_a_life_each_time(
    lost: httpx.Response | Exception,
) -> None:
    log = await sent([lost, httpx.Response(200, json={"state": "queued"})])
    assert [(str(one.id), one.at is not None) for one in log.retried] == [(JOB, False), (JOB, True)]
    assert log.retried[0].asked_at <= log.retried[1].asked_at
    assert (log.repeated, log.refusals) == (1, [])


async def test_refused_retry_has_begun_none() -> None:
    log = await sent([httpx.Response(409, json={})])
    assert (log.retried, log.refusals) == ([], [])


def test_patience_lasts_while_less_and_less_is_left() -> None:
    patience = Patience(until=10.0)
    assert not patience.is_over(100, 0.0)
    assert not patience.is_over(99, STILL_S - 1)
    assert not patience.is_over(120, STILL_S + 1)
    assert not patience.is_over(99, 2 * STILL_S - 1)
    assert patience.is_over(99, 2 * STILL_S)


def test_patience_lasts_as_long_as_was_ordered() -> None:
    patience = Patience(until=10 * STILL_S)
    assert not patience.is_over(5, 0.0)
    assert not patience.is_over(5, 10 * STILL_S)
    assert patience.is_over(5, 10 * STILL_S + 1)
