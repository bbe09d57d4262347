"""Signs and verifies by Standard Webhooks 1.0.0 (symmetric, `v1`). Pure: the clock is passed in.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from webhooks.errors import BadSecret, BadSignature

PREFIX = "whsec_"
SECRET_BYTES = 32
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
TOLERANCE_S = 300

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"


@dataclass(frozen=True, slots=True)
class Secret:
    """A signing key. Its repr does not show it, so that no log ever does."""

    key: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """A fresh random secret."""
        return cls(secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `whsec_…`. Raises BadSecret, without echoing it."""
        try:
            key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise BadSecret(f"a secret is {PREFIX} and base64") from None
        if not SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX:
            detail = f"a secret has {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, not {len(key)}"
            raise BadSecret(detail)
        return cls(key)

    @property
    def text(self) -> str:
        """The form that its owner is shown."""
        return PREFIX + base64.b64encode(self.key).decode()


def headers(
    signers: Sequence[Secret], webhook_id: str, sent_at: datetime, body: bytes
) -> dict[str, str]:
    """The three headers of a delivery, with one signature for each secret that is valid now."""
    timestamp = str(int(sent_at.timestamp()))
    signatures = [_signature(secret, webhook_id, timestamp, body) for secret in signers]
    return {
        ID_HEADER: webhook_id,
        TIMESTAMP_HEADER: timestamp,
        SIGNATURE_HEADER: " ".join(signatures),
    }


def verify(
    signers: Iterable[Secret], given: Mapping[str, str], body: bytes, *, now: datetime
) -> None:
    """Raise BadSignature unless one of the secrets signed this body within the tolerance of `now`.

    `given` holds header names in lower case. Comparisons take the same time wherever they differ.
    """
    try:
        webhook_id, timestamp = given[ID_HEADER], given[TIMESTAMP_HEADER]
        offered = given[SIGNATURE_HEADER].split()
    except KeyError as error:
        raise BadSignature(f"the header {error.args[0]} is missing") from None
    _check_age(timestamp, now)
    expected = [_signature(secret, webhook_id, timestamp, body) for secret in signers]
    matches = [
        hmac.compare_digest(one.encode(), other.encode()) for one in expected for other in offered
    ]
    if not any(matches):
        raise BadSignature("no signature matches the body")


def _check_age(timestamp: str, now: datetime) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 20):
        raise BadSignature(f"{TIMESTAMP_HEADER} is no number of seconds")
    if abs(now.timestamp() - int(timestamp)) > TOLERANCE_S:
        raise BadSignature(f"{TIMESTAMP_HEADER} is more than {TOLERANCE_S} s off")


def _signature(secret: Secret, webhook_id: str, timestamp: str, body: bytes) -> str:
    signed = b".".join((webhook_id.encode(), timestamp.encode(), body))
    digest = hmac.new(secret.key, signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()
