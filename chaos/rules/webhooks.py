"""Webhooks and the index: what is owed is owed once, what was delivered arrived, signed."""

from collections import Counter
from collections.abc import Iterator
from uuid import UUID

from chaos.facts import Facts
from chaos.violation import Violation


def callbacks_are_owed_once(facts: Facts) -> Iterator[Violation]:
    """A callback_url has one webhook for each settling of its job and each end of its batch."""
    owed = Counter(
        (item.type, item.subject) for item in facts.history.callbacks if item.endpoint_id is None
    )
    due: Counter[tuple[str, UUID | None]] = Counter()
    for job in facts.jobs.values():
        if job.callback_url is not None:
            due["job.settled", job.id] = facts.settled[job.id]
    callbacks = {batch.id for batch in facts.history.batches if batch.callback_url is not None}
    for event in facts.history.events:
        if event.type == "batch.finished" and event.batch_id in callbacks:
            due["batch.finished", event.batch_id] += 1
    for key in owed.keys() | due.keys():
        if owed[key] != due[key]:
            type_, subject = key
            detail = f"{type_} is owed {due[key]} times and has {owed[key]} webhooks"
            yield Violation("webhook-count", detail, () if subject is None else (subject,))


def webhooks_have_one_id(facts: Facts) -> Iterator[Violation]:
    """An event has one webhook-id an address, which is owed, delivered or dead, and only one."""
    places = Counter(item.id for item in facts.history.callbacks)
    for webhook_id, count in places.items():
        if count > 1:
            yield Violation("webhook-in-two-places", f"is in {count} places", (webhook_id,))
    told: dict[object, UUID] = {}
    for item in facts.history.callbacks:
        if item.subject is None:
            continue
        event = item.endpoint_id, item.type, item.subject, item.occurred_at
        other = told.setdefault(event, item.id)
        if other != item.id:
            detail = f"{item.type} of {item.subject} has two webhook-ids"
            yield Violation("webhook-two-ids", detail, (other, item.id))


def webhooks_arrive_signed(facts: Facts) -> Iterator[Violation]:
    """What arrived was signed and owed; what the log calls delivered arrived."""
    stored = {item.id: item for item in facts.history.callbacks}
    for webhook in facts.log.webhooks:
        item = stored.get(webhook.webhook_id)
        if not webhook.is_signed:
            detail = f"{webhook.type} arrived with a signature that does not verify"
            yield Violation("webhook-unsigned", detail, (webhook.webhook_id,))
        if item is None or (item.type, item.subject) != (webhook.type, webhook.subject):
            was = "nothing" if item is None else f"{item.type} of {item.subject}"
            detail = f"{webhook.type} of {webhook.subject} arrived, {was} was owed"
            yield Violation("webhook-unknown", detail, (webhook.webhook_id,))
    arrived = {webhook.webhook_id for webhook in facts.log.webhooks}
    for item in stored.values():
        ours = facts.log.receiver is not None and item.url.startswith(facts.log.receiver)
        if ours and item.place == "delivered" and item.id not in arrived:
            detail = f"{item.type} of {item.subject} is called delivered and never arrived"
            yield Violation("webhook-not-received", detail, (item.id,))


def index_is_what_postgres_says(facts: Facts) -> Iterator[Violation]:
    """Whoever audited a collection found nothing."""
    for finding in facts.history.index:
        detail = f"collection {finding.collection!r}: {finding.rule} fails for {finding.ids[:5]}"
        yield Violation("index-differs", detail)


RULES = (
    callbacks_are_owed_once,
    webhooks_have_one_id,
    webhooks_arrive_signed,
    index_is_what_postgres_says,
)
