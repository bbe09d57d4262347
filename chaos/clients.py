"""The clients of a run: they send the load, repeat what got no answer, and log what was promised.

A submit is repeated with its Idempotency-Key until it is answered, as every client of ours should.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import anyio
import httpx
import orjson
from anyio.streams.memory import MemoryObjectReceiveStream

from chaos.history import (
    AcceptedBatch,
    AcceptedJob,
    Cancelled,
    ClientLog,
    LimitSet,
    Retried,
    Unanswered,
)
from chaos.load import LIMITS, Act, Load
from chaos.stack import Stack
from jobs.model import JsonObject

CLIENTS = 24
TIMEOUT = httpx.Timeout(8.0, connect=2.0)
PAUSE_S = 0.2
NDJSON = "application/x-ndjson"
_IN_FLIGHT = httpx.codes.CONFLICT
_AGAIN = {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT}
_WITH_EFFECT = {"effect", "effect-alone"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that no client should ever see for what it asked."""

    path: str
    status: int
    detail: str


@dataclass(slots=True)
class Log:
    """What all clients noted; only ever appended to."""

    accepted: list[AcceptedJob] = field(default_factory=list)
    batches: list[AcceptedBatch] = field(default_factory=list)
    unanswered: list[Unanswered] = field(default_factory=list)
    cancelled: list[Cancelled] = field(default_factory=list)
    retried: list[Retried] = field(default_factory=list)
    limits: list[LimitSet] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    submit_s: list[float] = field(default_factory=list)
    repeated: int = 0

    def as_history(self) -> ClientLog:
        """The part that the checker reads."""
        return ClientLog(
            accepted=tuple(self.accepted),
            batches=tuple(self.batches),
            unanswered=tuple(self.unanswered),
            cancelled=tuple(self.cancelled),
            retried=tuple(self.retried),
            limits=tuple(self.limits),
        )


class Clients:
    """A fixed number of clients that share one log."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient, log: Log) -> None:
        self._http = http
        self._log = log
        self._prefix = stack.data_dir.name
        # What an act has brought about: the id of its job or of its batch.
        self._ids: dict[int, UUID] = {}
        self._is_batch: dict[int, bool] = {}

    async def prepare(self, load: Load, *, schedules: bool = True) -> None:
        """Set the limits and make the schedules, before any fault."""
        for key, concurrency in LIMITS.items():
            asked_at = _now()
            await self._once("PUT", f"/v1/limits/{key}", {"concurrency": concurrency})
            self._log.limits.append(LimitSet(key, concurrency, asked_at, _now()))
        for schedule in load.schedules if schedules else ():
            await self._once("POST", "/v1/schedules", schedule)

    async def send(self, load: Load, give_up_at: float) -> None:
        """Send every act at its time; what is not answered by `give_up_at` is noted as such."""
        began = anyio.current_time()
        send, receive = anyio.create_memory_object_stream[Act](len(load.acts))
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(self._work, receive.clone(), give_up_at)
            receive.close()
            async with send:
                for act in load.acts:
                    await anyio.sleep_until(began + act.at_s)
                    await send.send(act)

    async def stop_schedules(self) -> None:
        """Pause what would go on for ever."""
        found = await self._once("GET", "/v1/schedules")
        for schedule in _objects(found.get("data")):
            await self._once("POST", f"/v1/schedules/{schedule['id']}/pause", {})

    async def _work(self, acts: MemoryObjectReceiveStream[Act], give_up_at: float) -> None:
        async with acts:
            async for act in acts:
                await self._act(act, give_up_at)

    async def _act(self, act: Act, give_up_at: float) -> None:
        match act.what:
            case "job":
                await self._submit(act, "/v1/jobs", give_up_at)
            case "document":
                await self._submit(act, "/v1/documents", give_up_at)
            case "json" | "ndjson":
                await self._submit_batch(act, give_up_at)
            case "cancel" | "cancel-batch":
                await self._cancel(act, give_up_at)
            case "retry":
                await self._retry(act, give_up_at)

    async def _submit(self, act: Act, path: str, give_up_at: float) -> None:
        body = dict(act.jobs[0])
        parents = tuple(self._ids[parent] for parent in act.parents if parent in self._ids)
        if parents:
            body["depends_on"] = [str(parent) for parent in parents]
        answer = await self._answered(act, path, orjson.dumps(body), give_up_at=give_up_at)
        if answer is None:
            return
        job_id = UUID(str(answer["id"]))
        self._ids[act.number] = job_id
        is_known = bool(answer.get("deduplicated"))
        self._log.accepted.append(
            AcceptedJob(
                job_id,
                _now(),
                idempotency_key=self._key(act),
                depends_on=() if is_known else parents,
                has_effect=body.get("kind") in _WITH_EFFECT and not is_known,
            )
        )

    async def _submit_batch(self, act: Act, give_up_at: float) -> None:
        if act.what == "ndjson":
            body = b"".join(orjson.dumps(job) + b"\n" for job in act.jobs)
            media_type = NDJSON
        else:
            body, media_type = orjson.dumps({"jobs": list(act.jobs)}), "application/json"
        answer = await self._answered(
            act, "/v1/batches", body, give_up_at=give_up_at, media_type=media_type
        )
        if answer is None:
            return
        batch_id = UUID(str(answer["id"]))
        self._ids[act.number] = batch_id
        self._is_batch[act.number] = True
        self._log.batches.append(
            AcceptedBatch(batch_id, _now(), len(act.jobs), idempotency_key=self._key(act))
        )

    async def _cancel(self, act: Act, give_up_at: float) -> None:
        target = self._target(act)
        if target is None:
            return
        asked_at = _now()
        answer = await self._repeat("POST", f"{target[0]}/cancel", give_up_at=give_up_at)
        if answer is not None and act.what == "cancel":
            is_over = answer.get("state") == "cancelled"
            self._log.cancelled.append(Cancelled(target[1], asked_at, _now(), is_over))

    async def _retry(self, act: Act, give_up_at: float) -> None:
        target = self._target(act)
        if target is None:
            return
        path, id_ = target

        def note(asked_at: datetime, response: httpx.Response | None) -> None:
            # Each request of its own: what is repeated because its answer was lost, or was no
            # answer, finds the job ended once more if it was heard the first time.
            if response is None or response.status_code != httpx.codes.CONFLICT:
                is_over = response is not None and response.is_success
                self._log.retried.append(Retried(id_, asked_at, _now() if is_over else None))

        await self._repeat(
            "POST",
            f"{path}/retry",
            give_up_at=give_up_at,
            expected={httpx.codes.CONFLICT},
            note=note,
        )

    def _target(self, act: Act) -> tuple[str, UUID] | None:
        """The path and the id of what is meant; None while that was not accepted yet."""
        if act.target is None or act.target not in self._ids:
            return None
        kind = "batches" if self._is_batch.get(act.target) else "jobs"
        return f"/v1/{kind}/{self._ids[act.target]}", self._ids[act.target]

    async def _answered(
        self,
        act: Act,
        path: str,
        body: bytes,
        *,
        give_up_at: float,
        media_type: str = "application/json",
    ) -> JsonObject | None:
        """Submit until answered; None, and noted, when there was no answer in time."""
        asked_at, began = _now(), anyio.current_time()
        headers = {"content-type": media_type, "idempotency-key": self._key(act)}
        answer = await self._repeat(
            "POST", path, body, headers=headers, give_up_at=give_up_at, in_flight=True
        )
        self._log.submit_s.append(anyio.current_time() - began)
        if answer is None:
            self._log.unanswered.append(Unanswered(asked_at, len(act.jobs), self._key(act)))
        return answer

    def _key(self, act: Act) -> str:
        return f"{self._prefix}-{act.number}"

    async def _once(self, method: str, path: str, body: JsonObject | None = None) -> JsonObject:
        content = None if body is None else orjson.dumps(body)
        response = await self._http.request(
            method, path, content=content, headers={"content-type": "application/json"}
        )
        response.raise_for_status()
        return _object(response)

    async def _repeat(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        give_up_at: float,
        headers: Mapping[str, str] | None = None,
        expected: frozenset[int] | set[int] = frozenset(),
        in_flight: bool = False,
        note: Callable[[datetime, httpx.Response | None], None] | None = None,
    ) -> JsonObject | None:
        """Ask until there is an answer that is one; None at `give_up_at`, or when refused.

        `note` is told of every request: when it was sent, and what came back.
        """
        while anyio.current_time() < give_up_at:
            asked_at = _now()
            try:
                response = await self._http.request(method, path, content=body, headers=headers)
            except httpx.TransportError:
                response = None
            if note is not None:
                note(asked_at, response)
            if response is not None and not _is_passing(response, in_flight=in_flight):
                return self._judge(path, response, expected)
            self._log.repeated += 1
            await anyio.sleep(PAUSE_S)
        return None

    def _judge(
        self, path: str, response: httpx.Response, expected: frozenset[int] | set[int]
    ) -> JsonObject | None:
        if response.is_success:
            return _object(response)
        if response.status_code not in expected:
            refusal = Refusal(path, response.status_code, response.text[:500])
            self._log.refusals.append(refusal)
        return None


def open_http(stack: Stack) -> httpx.AsyncClient:
    """Connections to the stack's API, as an administrator."""
    return httpx.AsyncClient(
        base_url=stack.api_url,
        headers={"authorization": f"Bearer {stack.api_key}"},
        timeout=TIMEOUT,
        trust_env=False,
        limits=httpx.Limits(max_connections=CLIENTS * 2, keepalive_expiry=1.0),
    )


def _is_passing(response: httpx.Response, *, in_flight: bool) -> bool:
    """Whether the answer only says "not now"; a plain 500 never does."""
    code = response.status_code
    if code == httpx.codes.INTERNAL_SERVER_ERROR:
        return False
    return code > 500 or code in _AGAIN or (in_flight and code == _IN_FLIGHT)


def _object(response: httpx.Response) -> JsonObject:
    content: JsonObject = response.json()
    return content


def _objects(value: object) -> list[JsonObject]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _now() -> datetime:
    return datetime.now(UTC)
