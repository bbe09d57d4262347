"""Rows of the webhooks' tables as records. The only place that knows the columns' names."""

from asyncpg import Record

from jobs.model import TenantId
from webhooks.model import Answer, Delivery, DeliveryAttempt, DeliveryState, Endpoint, Owed
from webhooks.sign import Secret


def endpoint(row: Record) -> Endpoint:
    """A row of `webhook_endpoints`, without its secrets."""
    return Endpoint(
        id=row["id"],
        tenant_id=TenantId(row["tenant_id"]),
        url=row["url"],
        events=tuple(row["events"]),
        description=row["description"],
        version=row["version"],
        disabled_at=row["disabled_at"],
        disabled_reason=row["disabled_reason"],
        previous_secret_until=row["previous_secret_until"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def owed(row: Record) -> Owed:
    """A claimed row of `outbox` with the secrets that sign it."""
    return Owed(
        id=row["id"],
        tenant_id=TenantId(row["tenant_id"]),
        endpoint_id=row["endpoint_id"],
        url=row["url"],
        lane=row["lane"],
        type=row["type"],
        occurred_at=row["occurred_at"],
        data=row["data"],
        attempt=row["attempt"],
        failures=row["failures"],
        claimed_at=row["claimed_at"],
        secrets=_secrets(row),
        undeliverable=row["undeliverable"],
    )


def _secrets(row: Record) -> tuple[Secret, ...]:
    keys = [row["secret"] if row["endpoint_id"] else row["callback_secret"]]
    if row["previous_is_valid"]:
        keys.append(row["previous_secret"])
    return tuple(Secret(key) for key in keys if key is not None)


def delivery(row: Record) -> Delivery:
    """A row of `list_deliveries` or `get_delivery`."""
    return Delivery(
        id=row["id"],
        tenant_id=TenantId(row["tenant_id"]),
        endpoint_id=row["endpoint_id"],
        url=row["url"],
        type=row["type"],
        occurred_at=row["occurred_at"],
        data=row["data"],
        state=DeliveryState(row["state"]),
        attempt=row["attempt"],
        failures=row["failures"],
        reason=row["reason"],
        due_at=row["due_at"],
        finished_at=row["finished_at"],
    )


def attempt(row: Record) -> DeliveryAttempt:
    """A row of `delivery_attempts`."""
    answer = Answer(
        started_at=row["started_at"],
        duration_s=row["duration_s"],
        request_headers=row["request_headers"],
        request_body=row["request_body"],
        address=row["address"],
        status=row["status"],
        response_headers=row["response_headers"],
        response_body=row["response_body"],
        error_type=row["error_type"],
        error_detail=row["error_detail"],
    )
    return DeliveryAttempt(row["attempt"], row["url"], answer)
