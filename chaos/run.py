"""A whole run: a stack, a load, faults, an end to them, and what is left judged by the checker."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import anyio
import httpx

from chaos import checker, effects, journal
from chaos.ballast import Ballast
from chaos.clients import Clients, Log, open_http
from chaos.collect import collect
from chaos.faults import Injected, heal_all, inject_all
from chaos.history import ClientLog, History, IndexFinding
from chaos.index_audit import audit_indexes
from chaos.load import draw_load
from chaos.patience import Patience
from chaos.plan import Fault, draw_faults
from chaos.rates import Meter, Rates
from chaos.receiver import Receiver
from chaos.scene import Scene
from chaos.stack import CHAOS_KINDS, Stack, run_stack
from chaos.violation import Violation
from chaos.workplace import INDEX_FOLDER
from runtime.groups import single_error
from runtime.postgres import Connection
from runtime.sql import load_queries
from webhooks.sign import Secret

# Of the minutes that a run may take: how much of them the load and the faults have.
WINDOW_SHARE = 0.5
# How long after the window clients go on asking: a busy machine takes a while to start a process.
ANSWER_S = 120.0
UNFINISHED_SHOWN = 5
READY_TIMEOUT_S = 60.0
_POLL_S = 0.2

QUERIES = load_queries("chaos", "runs")

type Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What to run. `kinds` names the module that brings the chaos kinds."""

    seed: int
    jobs: int = 5_000
    minutes: float = 2.0
    faults: tuple[Fault, ...] = tuple(Fault)
    with_documents: bool = True
    with_rates: bool = True
    kinds: str = CHAOS_KINDS
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def window_s(self) -> float:
        """How long load and faults go on."""
        return self.minutes * 60 * WINDOW_SHARE


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures that no rule judges."""

    submit_s: tuple[float, ...] = ()
    start_s: tuple[float, ...] = ()
    # Seconds from a fault's beginning to the first end of a job accepted after it, by step.
    recovery_s: Mapping[int, float | None] = field(default_factory=dict)
    settled_in_s: float | None = None
    repeated_requests: int = 0
    rates: Rates = field(default_factory=Rates)


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a run has found."""

    order: Order
    began_at: datetime
    took_s: float
    injected: tuple[Injected, ...]
    history: History
    violations: tuple[Violation, ...]
    measured: Measured

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not self.violations


async def run_chaos(order: Order, data_dir: Path, say: Say) -> Outcome:
    """Run it all in `data_dir`, an empty folder that the caller removes."""
    began_at, began = datetime.now(UTC), time.monotonic()
    ballast = Ballast(data_dir / INDEX_FOLDER)
    if Fault.DISK_FULL in order.faults:
        ballast.mount()
    try:
        with single_error():
            async with anyio.create_task_group() as group:
                receiver = Receiver()
                await group.start(receiver.run)
                say("starting PostgreSQL, Valkey and two hosts")
                async with run_stack(data_dir, kinds=order.kinds, extra=order.settings) as stack:
                    outcome = await _Run(order, Scene(stack, ballast), receiver, say).run()
                group.cancel_scope.cancel()
    finally:
        ballast.unmount()
    return replace(outcome, began_at=began_at, took_s=time.monotonic() - began)


class _Run:
    """One run's phases, in their order."""

    def __init__(self, order: Order, scene: Scene, receiver: Receiver, say: Say) -> None:
        self._order = order
        self._scene = scene
        self._stack: Stack = scene.stack
        self._receiver = receiver
        self._say = say
        self._log = Log()
        self._unfinished: dict[UUID, str] = {}
        self._ends_at = anyio.current_time() + order.minutes * 60

    async def run(self) -> Outcome:
        async with open_http(self._stack) as http:
            await self._wait_ready(http)
            await self._learn_secret(http)
            fault_free = await self._fault_free(http)
            clients = Clients(self._stack, http, self._log)
            injected = await self._strike(clients)
            await self._wait_ready(http)
            await clients.stop_schedules()
            settled_in_s = await self._settle()
            rates = await self._recovered(http, fault_free)
            index = await self._audit_index(http, settled_in_s)
        return await self._judge(injected, settled_in_s, rates, index)

    async def _wait_ready(self, http: httpx.AsyncClient) -> None:
        with anyio.fail_after(READY_TIMEOUT_S):
            while True:
                try:
                    if (await http.get("/readyz")).is_success:
                        return
                except httpx.TransportError:
                    pass
                await anyio.sleep(_POLL_S)

    async def _learn_secret(self, http: httpx.AsyncClient) -> None:
        answer = await http.get("/v1/callback-secret")
        answer.raise_for_status()
        self._receiver.secrets = (Secret.parse(answer.json()["secret"]),)

    async def _fault_free(self, http: httpx.AsyncClient) -> tuple[float, ...]:
        if not self._order.with_rates:
            return ()
        self._say("measuring the fault-free rate")
        return await self._meter(http).fault_free()

    async def _strike(self, clients: Clients) -> tuple[Injected, ...]:
        order = self._order
        load = draw_load(
            order.seed,
            order.jobs,
            order.window_s,
            callback_url=self._receiver.url,
            with_documents=order.with_documents,
        )
        steps = draw_faults(order.seed, order.window_s, order.faults)
        await clients.prepare(load)
        self._say(f"{load.jobs} jobs and {len(steps)} faults in {order.window_s:.0f} s")
        give_up_at = anyio.current_time() + order.window_s + ANSWER_S
        injected: list[Injected] = []
        async with anyio.create_task_group() as group:
            group.start_soon(clients.send, load, give_up_at)
            injected += await inject_all(self._scene, steps, self._say)
            await heal_all(self._scene)
            self._say("all faults are over; waiting until everything is done")
        return tuple(injected)

    async def _settle(self) -> float | None:
        """Seconds until nothing was left to do; None when what was left stood still."""
        began = anyio.current_time()
        async with self._stack.database() as connection:
            patience = Patience(self._ends_at)
            while left := await _left(connection):
                if patience.is_over(left, anyio.current_time()):
                    rows = await connection.fetch(QUERIES["unfinished"])
                    self._unfinished = {row["id"]: row["what"] for row in rows}
                    return None
                await anyio.sleep(_POLL_S)
        return anyio.current_time() - began

    async def _recovered(self, http: httpx.AsyncClient, fault_free: tuple[float, ...]) -> Rates:
        if not fault_free:
            return Rates()
        self._say("measuring the rate again")
        return await self._meter(http).recovered(fault_free)

    def _meter(self, http: httpx.AsyncClient) -> Meter:
        return Meter(self._stack, http, self._log, self._order.jobs)

    async def _audit_index(
        self, http: httpx.AsyncClient, settled_in_s: float | None
    ) -> tuple[IndexFinding, ...]:
        """Nothing is said of an index that is still written to."""
        self._say("checking what is left")
        return () if settled_in_s is None else await audit_indexes(self._stack, http)

    async def _judge(
        self,
        injected: tuple[Injected, ...],
        settled_in_s: float | None,
        rates: Rates,
        index: tuple[IndexFinding, ...],
    ) -> Outcome:
        async with self._stack.database() as connection:
            history = await collect(connection, await self._client_log(connection))
            history = replace(history, index=history.index + index)
            measured = Measured(
                submit_s=tuple(self._log.submit_s),
                start_s=tuple(row[0] for row in await connection.fetch(QUERIES["start_waits"])),
                recovery_s={
                    one.step.number: await connection.fetchval(
                        QUERIES["first_finish_since"], one.began_at
                    )
                    for one in injected
                },
                settled_in_s=settled_in_s,
                repeated_requests=self._log.repeated,
                rates=rates,
            )
        violations = (*checker.check(history), *self._own_findings(measured))
        return Outcome(self._order, datetime.now(UTC), 0.0, injected, history, violations, measured)

    async def _client_log(self, connection: Connection) -> ClientLog:
        return replace(
            self._log.as_history(),
            webhooks=tuple(self._receiver.received),
            runs=journal.read(self._stack.data_dir),
            effects=await effects.read(connection),
            receiver=self._receiver.url,
        )

    def _own_findings(self, measured: Measured) -> list[Violation]:
        """What the history does not tell: refused clients, work without end, a slower stack."""
        found = [
            Violation("refused", f"{one.path} answered {one.status}: {one.detail}")
            for one in self._log.refusals
        ]
        if measured.settled_in_s is None:
            shown = "; ".join(list(self._unfinished.values())[:UNFINISHED_SHOWN])
            detail = f"{len(self._unfinished)} things were still to be done: {shown}"
            found.append(Violation("unfinished", detail, tuple(self._unfinished)))
        if not measured.rates.is_recovered:
            share = measured.rates.share or 0.0
            found.append(Violation("slower", f"{share:.0%} of the fault-free rate came back"))
        return found


async def _left(connection: Connection) -> int:
    """How many things have yet to happen."""
    row = await connection.fetchrow(QUERIES["remaining_work"])
    return sum(row.values()) if row is not None else 0
