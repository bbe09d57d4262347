"""One request, one effect, one answer."""

import anyio
import pytest

from jobs import idempotency, ledger
from jobs.errors import IdempotencyInFlight, IdempotencyMismatch
from jobs.idempotency import StoredAnswer
from jobs.model import DEFAULT_TENANT, TenantId
from tests.jobs.desk import Desk, probe

pytestmark = pytest.mark.anyio


async def _request(desk: Desk, key: str, content: bytes = b"1") -> StoredAnswer:
    async with desk.pool.acquire() as connection, connection.transaction():
        answer = await idempotency.begin(connection, DEFAULT_TENANT, key, content)
        if answer is None:
            (job,) = await ledger.enqueue(connection, DEFAULT_TENANT, [probe()], kinds=desk.kinds)
            answer = StoredAnswer(202, {"location": str(job.id)}, job.id.bytes)
            await idempotency.finish(connection, DEFAULT_TENANT, key, answer)
        return answer


async def test_five_at_once_make_one_job_and_get_one_answer(desk: Desk) -> None:
    answers: list[StoredAnswer] = []

    async def request() -> None:
        answers.append(await _request(desk, "k"))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(request)
    assert len(answers) == 5
    assert all(answer == answers[0] for answer in answers)
    async with desk.pool.acquire() as connection:
        assert await connection.fetchval("SELECT count(*) FROM jobs") == 1


async def test_another_request_under_the_same_key_is_refused(desk: Desk) -> None:
    await _request(desk, "k")
    with pytest.raises(IdempotencyMismatch):
        await _request(desk, "k", b"2")


async def test_a_request_that_died_leaves_nothing_behind(desk: Desk) -> None:
    async with desk.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        assert await idempotency.begin(connection, DEFAULT_TENANT, "k", b"1") is None
        await transaction.rollback()
    assert (await _request(desk, "k")).status == 202


async def test_while_the_first_is_unanswered_the_second_is_told_so(desk: Desk) -> None:
    async with desk.pool.acquire() as first, desk.pool.acquire() as second, first.transaction():
        assert await idempotency.begin(first, DEFAULT_TENANT, "k", b"1") is None
        with pytest.raises(IdempotencyInFlight):
            async with second.transaction():
                await idempotency.begin(second, DEFAULT_TENANT, "k", b"1", wait_s=0.05)


async def test_keys_belong_to_their_tenant(desk: Desk) -> None:
    await _request(desk, "k")
    async with desk.pool.acquire() as connection, connection.transaction():
        assert await idempotency.begin(connection, TenantId(2), "k", b"2") is None
