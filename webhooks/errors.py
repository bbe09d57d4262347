"""Errors of webhooks.

WebhookError
├── EndpointNotFound, DeliveryNotFound   no such id in this tenant
├── WebhookRefused                       a field is invalid; `pointer` names it
├── EndpointDisabled                     nothing is sent to it: enable it first
├── RedeliveryNotFound                   no such id in this tenant
├── EndpointChanged                      not the version that the caller read
└── BadSecret, BadSignature              webhooks/sign.py
"""

from uuid import UUID


class WebhookError(Exception):
    """Webhooks refused; nothing was written."""


class EndpointNotFound(WebhookError):
    """No endpoint of this id in this tenant."""

    def __init__(self, endpoint_id: UUID) -> None:
        super().__init__(f"no webhook endpoint {endpoint_id}")
        self.endpoint_id = endpoint_id


class DeliveryNotFound(WebhookError):
    """No delivery of this id in this tenant."""

    def __init__(self, delivery_id: UUID) -> None:
        super().__init__(f"no delivery {delivery_id}")
        self.delivery_id = delivery_id


class WebhookRefused(WebhookError):
    """A field is invalid: `pointer` is its JSON pointer, `detail` what is wrong."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(f"{pointer}: {detail}")
        self.pointer = pointer
        self.detail = detail


class RedeliveryNotFound(WebhookError):
    """No redelivery of this id in this tenant."""

    def __init__(self, redelivery_id: UUID) -> None:
        super().__init__(f"no redelivery {redelivery_id}")
        self.redelivery_id = redelivery_id


class EndpointDisabled(WebhookError):
    """Nothing is sent to an endpoint that is disabled or deleted."""

    def __init__(self, endpoint_id: UUID) -> None:
        super().__init__(
            f"the webhook {endpoint_id} is disabled or deleted: enable it first, by a PATCH with"
            ' {"enabled": true}'
        )
        self.endpoint_id = endpoint_id


class EndpointChanged(WebhookError):
    """Somebody else changed the endpoint since the caller read it: read it again."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the endpoint has version {version} now: read it again")
        self.version = version


class BadSecret(WebhookError):
    """Not a `whsec_` secret of 24 to 64 bytes."""


class BadSignature(WebhookError):
    """The headers do not prove that this body was sent by a holder of the secret, just now."""
