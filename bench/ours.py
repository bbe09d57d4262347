"""xnai as a producer process of the driver: the ledger and the dispatch, without HTTP."""

from bench import kinds as own
from bench.peers.driver import Order, Peer
from bench.peers.stamps import Stamps
from cli import trial
from jobs import dispatch, ledger
from jobs.kinds import load_kinds
from jobs.model import DEFAULT_TENANT, NewJob
from runtime.postgres import Connection, connect
from runtime.redis import connect as connect_redis
from runtime.settings import load_settings


def peer(order: Order, stamps: Stamps) -> Peer:
    """The producer of one process; the setting `kind` is `probe` or `stamp`."""
    return _Ours(order, stamps)


class _Ours:
    def __init__(self, order: Order, stamps: Stamps) -> None:
        self._stamps = stamps
        self._url = order.url
        self._kind: str = order.settings.get("kind", own.NAME)
        self._redis = connect_redis(load_settings(redis_url=order.settings["redis_url"]))
        self._kinds = load_kinds(("bench.kinds",))
        self._connection: Connection

    async def open(self) -> None:
        self._connection = await connect(self._url, role="bench")

    async def reset(self) -> None:
        """The harness has made a ledger from its template."""

    async def enqueue(self, number: int) -> None:
        accepted = await ledger.enqueue(
            self._connection, DEFAULT_TENANT, [self._job(number)], kinds=self._kinds
        )
        # The commit: what the announcement costs belongs to the latency.
        self._stamps.accepted(range(number, number + 1))
        await dispatch.announce(self._redis, {accepted[0].pool: [accepted[0].id]})

    async def enqueue_bulk(self, numbers: range) -> None:
        jobs = [self._job(number) for number in numbers]
        if self._kind == "probe":
            await trial.accept(self._connection, self._redis, self._kinds, jobs)
            return
        accepted = await ledger.enqueue(self._connection, DEFAULT_TENANT, jobs, kinds=self._kinds)
        self._stamps.accepted(numbers)
        await dispatch.announce(self._redis, {accepted[0].pool: [job.id for job in accepted]})

    async def work(self) -> None:
        raise NotImplementedError("the slots of xnai are started by its supervisor")

    def _job(self, number: int) -> NewJob:
        if self._kind == "probe":
            return NewJob("probe", {})
        return NewJob(self._kind, {"number": number})
