"""Every operation of the API: who may do it, and a request for it that names the objects of a
tenant wherever one can be named. A new operation that is missing here fails two tests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from uuid import uuid4

from api.keys import Role

type Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class World:
    """One of everything that a tenant may have. By default, nothing of it exists."""

    tenant: str = field(default_factory=lambda: f"absent-{uuid4().hex[:8]}")
    job: str = field(default_factory=lambda: str(uuid4()))
    failed_job: str = field(default_factory=lambda: str(uuid4()))
    batch: str = field(default_factory=lambda: str(uuid4()))
    open_batch: str = field(default_factory=lambda: str(uuid4()))
    part: str = field(default_factory=lambda: f"part-{uuid4().hex}")
    schedule: str = field(default_factory=lambda: str(uuid4()))
    schedule_name: str = field(default_factory=lambda: f"schedule-{uuid4().hex}")
    webhook: str = field(default_factory=lambda: str(uuid4()))
    delivery: str = field(default_factory=lambda: str(uuid4()))
    redelivery: str = field(default_factory=lambda: str(uuid4()))
    operation: str = field(default_factory=lambda: str(uuid4()))
    document: str = field(default_factory=lambda: str(uuid4()))
    document_key: str = field(default_factory=lambda: f"key-{uuid4().hex}")
    collection: str = field(default_factory=lambda: f"c-{uuid4().hex}")
    key: str = field(default_factory=lambda: str(uuid4()))
    custom_id: str = field(default_factory=lambda: f"custom-{uuid4().hex}")
    tag: str = field(default_factory=lambda: f"tag-{uuid4().hex}")
    unique_key: str = field(default_factory=lambda: f"unique-{uuid4().hex}")
    concurrency_key: str = field(default_factory=lambda: f"concurrency-{uuid4().hex}")
    idempotency_key: str = field(default_factory=lambda: f"idempotency-{uuid4().hex}")
    error_type: str = field(default_factory=lambda: f"error-{uuid4().hex}")

    def values(self) -> dict[str, str]:
        """The names and ids, by what they are."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Sent:
    """What a request brings beside its path."""

    params: Json | None = None
    json: object = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """Who may do it, and requests that name what is in a world."""

    role: Role
    sent: Callable[[World], list[Sent]] = lambda _: [Sent()]
    of_installation: bool = False
    # What stands in the path in the place of a parameter, where its name does not tell.
    path: Mapping[str, str] = field(default_factory=dict)


# Which field of a world a path's parameter names.
PATH = {
    "job_id": "job",
    "batch_id": "batch",
    "schedule_id": "schedule",
    "webhook_id": "webhook",
    "delivery_id": "delivery",
    "redelivery_id": "redelivery",
    "operation_id": "operation",
    "document_id": "document",
    "key_id": "key",
    "name": "collection",
    "key": "concurrency_key",
    "tenant": "tenant",
}
_OPEN = {"batch_id": "open_batch"}


def _job(**more: object) -> dict[str, object]:
    return {"kind": "embed", "payload": {"texts": ["a"]}, **more}


def _jobs(w: World) -> list[dict[str, object]]:
    """Jobs that name another tenant's things in every place that takes a name."""
    return [
        _job(depends_on=[w.job]),
        _job(depends_on=[w.custom_id]),
        _job(unique={"key": w.unique_key}),
        _job(concurrency_key=w.concurrency_key),
        _job(custom_id=w.custom_id, tags=[w.tag]),
        {"kind": "embed", "payload": {"document_ids": [w.document], "collection": w.collection}},
        {"kind": "index", "payload": {"document_ids": [w.document], "collection": w.collection}},
    ]


def _pages(*params: Json) -> Callable[[World], list[Sent]]:
    return lambda _: [Sent(params=p) for p in params] or [Sent()]


def _repeat(body: Callable[[World], object]) -> Callable[[World], list[Sent]]:
    return lambda w: [Sent(json=body(w), headers={"Idempotency-Key": w.idempotency_key})]


def _filters(w: World) -> list[dict[str, object]]:
    return [
        {"ids": [w.job, w.failed_job]},
        {"batch_id": w.batch},
        {"schedule_id": w.schedule},
        {"tag": w.tag},
        {"error_type": w.error_type},
    ]


def _schedule(w: World) -> dict[str, object]:
    return {"name": w.schedule_name, "every_s": 3600, "job": _job()}


READER, SUBMITTER, OPERATOR, ADMIN = Role

OPERATIONS: dict[str, Operation] = {
    "submit_job": Operation(
        SUBMITTER,
        lambda w: [
            *(Sent(json=body) for body in _jobs(w)),
            Sent(json=_job(), headers={"Idempotency-Key": w.idempotency_key}),
        ],
    ),
    "list_jobs": Operation(
        READER,
        lambda w: [
            Sent(params={"batch_id": w.batch}),
            Sent(params={"tag": w.tag}),
            Sent(params={"state": "failed", "error_type": w.error_type}),
            Sent(),
        ],
    ),
    "get_job": Operation(
        READER, lambda _: [Sent(), Sent(headers={"Prefer": "wait=1", "If-None-Match": '"x"'})]
    ),
    "change_job": Operation(SUBMITTER, lambda w: [Sent(json={"priority": 9, "tags": [w.tag]})]),
    "cancel_job": Operation(SUBMITTER),
    "retry_job": Operation(SUBMITTER, path={"job_id": "failed_job"}),
    "discard_job": Operation(OPERATOR, path={"job_id": "failed_job"}),
    "list_attempts": Operation(READER),
    "stream_job": Operation(READER, lambda _: [Sent(headers={"Last-Event-ID": "1.1.0-0"}), Sent()]),
    "create_batch": Operation(
        SUBMITTER,
        lambda w: [
            *(Sent(json={"jobs": [body]}) for body in _jobs(w)),
            Sent(json={"state": "open"}, headers={"Idempotency-Key": w.idempotency_key}),
        ],
    ),
    "list_batches": Operation(READER, _pages({"state": "open"}, {})),
    "append_jobs": Operation(
        SUBMITTER,
        lambda w: [Sent(params={"part": w.part}, json={"jobs": [_job(custom_id=w.custom_id)]})],
        path=_OPEN,
    ),
    "list_parts": Operation(READER, path=_OPEN),
    "seal_batch": Operation(SUBMITTER, path=_OPEN),
    "get_batch": Operation(READER),
    "cancel_batch": Operation(SUBMITTER),
    "retry_batch": Operation(SUBMITTER),
    "read_results": Operation(READER),
    "stream_batch": Operation(READER),
    "stream_events": Operation(READER, lambda w: [Sent(), Sent(params={"batch_id": w.batch})]),
    "start_operation": Operation(
        OPERATOR,
        lambda w: [
            Sent(json={"action": action, "filter": chosen, "dry_run": is_dry})
            for chosen in _filters(w)
            for action in ("retry", "cancel", "discard")
            if action != "cancel" or "error_type" not in chosen
            for is_dry in (True, False)
        ],
    ),
    "list_operations": Operation(OPERATOR),
    "get_operation": Operation(OPERATOR),
    "cancel_operation": Operation(OPERATOR),
    "search_passages": Operation(
        READER,
        lambda w: [
            Sent(json={"query": "words", "collection": w.collection, "mode": "text"}),
            Sent(json={"query": "words", "mode": "text", "filter": {"document_ids": [w.document]}}),
        ],
    ),
    "create_document": Operation(
        SUBMITTER,
        _repeat(
            lambda w: {"text": "other words", "key": w.document_key, "collection": w.collection}
        ),
    ),
    "list_documents": Operation(
        READER, lambda w: [Sent(params={"collection": w.collection}), Sent(params={"tag": w.tag})]
    ),
    "get_document": Operation(READER),
    "delete_document": Operation(SUBMITTER),
    "list_versions": Operation(READER),
    "list_collections": Operation(READER),
    "delete_collection": Operation(SUBMITTER),
    "create_schedule": Operation(SUBMITTER, lambda w: [Sent(json=_schedule(w))]),
    "list_schedules": Operation(READER),
    "get_schedule": Operation(READER),
    "change_schedule": Operation(
        SUBMITTER, lambda _: [Sent(json={"every_s": 7200}, headers={"If-Match": "*"})]
    ),
    "delete_schedule": Operation(SUBMITTER),
    "pause_schedule": Operation(SUBMITTER),
    "resume_schedule": Operation(SUBMITTER),
    "trigger_schedule": Operation(SUBMITTER),
    "preview_schedule": Operation(READER),
    "list_runs": Operation(READER),
    "create_webhook": Operation(
        OPERATOR, lambda _: [Sent(json={"url": "https://example.org/", "events": ["job.failed"]})]
    ),
    "list_webhooks": Operation(READER),
    "get_webhook": Operation(READER),
    "change_webhook": Operation(OPERATOR, lambda _: [Sent(json={"description": "mine"})]),
    "delete_webhook": Operation(OPERATOR),
    "rotate_webhook": Operation(OPERATOR),
    "test_webhook": Operation(OPERATOR),
    "get_callback_secret": Operation(OPERATOR),
    "list_deliveries": Operation(READER),
    "get_delivery": Operation(READER),
    "redeliver": Operation(OPERATOR),
    "rotate_callback_secret": Operation(OPERATOR),
    "list_all_deliveries": Operation(
        READER, lambda w: [Sent(), Sent(params={"webhook_id": w.webhook})]
    ),
    "redeliver_of_webhook": Operation(OPERATOR, lambda _: [Sent(json={"filter": {}})]),
    "start_redelivery": Operation(
        OPERATOR,
        lambda w: [
            Sent(json={"filter": {"webhook_id": w.webhook}, "dry_run": is_dry})
            for is_dry in (True, False)
        ],
    ),
    "list_redeliveries": Operation(READER),
    "get_redelivery": Operation(READER),
    "cancel_redelivery": Operation(OPERATOR),
    "list_pools": Operation(OPERATOR),
    "pause_pool": Operation(OPERATOR, of_installation=True),
    "resume_pool": Operation(OPERATOR, of_installation=True),
    "list_limits": Operation(OPERATOR),
    "set_limit": Operation(OPERATOR, lambda _: [Sent(json={"concurrency": 1})]),
    "list_workers": Operation(OPERATOR, of_installation=True),
    "create_key": Operation(
        ADMIN,
        lambda w: [Sent(json={"name": "x"}), Sent(json={"name": "x", "tenant": w.tenant})],
    ),
    "list_keys": Operation(ADMIN, lambda w: [Sent(), Sent(params={"tenant": w.tenant})]),
    "rotate_key": Operation(ADMIN, lambda w: [Sent(), Sent(params={"tenant": w.tenant})]),
    "revoke_key": Operation(ADMIN, lambda w: [Sent(), Sent(params={"tenant": w.tenant})]),
    "get_quotas": Operation(READER),
    "list_tenants": Operation(ADMIN, of_installation=True),
    "get_tenant_quotas": Operation(ADMIN, of_installation=True),
    "change_quotas": Operation(
        ADMIN, lambda _: [Sent(json={"live_jobs": 5})], of_installation=True
    ),
    "check_url": Operation(
        ADMIN,
        lambda w: [
            Sent(json={"url": "http://10.0.0.1/"}),
            Sent(json={"url": "http://10.0.0.1/", "tenant": w.tenant}),
        ],
    ),
    "list_entries": Operation(ADMIN, of_installation=True),
    "allow_entry": Operation(
        ADMIN, lambda _: [Sent(json={"entry": "10.0.0.0/8"})], of_installation=True
    ),
    "remove_entry": Operation(
        ADMIN, lambda _: [Sent(params={"entry": "10.0.0.0/8"})], of_installation=True
    ),
    "list_acts": Operation(ADMIN, lambda w: [Sent(), Sent(params={"key_id": w.key})]),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the OpenAPI document says that an operation is."""

    method: str
    path: str

    def with_names(self, operation: Operation, world: World) -> str:
        """The path with the world's names in it; `embed` is a pool that there is."""
        names = PATH | dict(operation.path)
        values = {p: getattr(world, names[p]) for p in _parameters(self.path) if p != "pool"}
        return self.path.format(**values, pool="embed")


def places(document: Json) -> dict[str, Place]:
    """Every operation that needs a key, by its id."""
    return {
        operation["operationId"]: Place(method.upper(), path)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if path.startswith("/v1")
    }


def _parameters(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]
