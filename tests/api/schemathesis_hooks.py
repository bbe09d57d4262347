"""Teaches Schemathesis the media type of batches, one job a line, and a check of its own: what the
key's role does not allow is never done.
"""

import os
from typing import Any

import schemathesis

ROLES = ("reader", "submitter", "operator", "admin")


@schemathesis.serializer("application/x-ndjson")
def as_lines(ctx: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@schemathesis.check
def role_is_not_exceeded(ctx: Any, response: Any, case: Any) -> None:
    """A 2xx or 3xx needs the operation's role, and for what is the installation's its tenant."""
    told = case.operation.definition.raw
    needed, own = told.get("x-required-role"), os.environ["SCHEMATHESIS_ROLE"]
    is_enough = needed is None or ROLES.index(own) >= ROLES.index(needed)
    if told.get("x-of-installation") and os.environ["SCHEMATHESIS_TENANT"] != "default":
        is_enough = False
    if not is_enough and response.status_code < 400:
        message = f"{case.operation.label} was done with the role {own}, but needs {needed}"
        raise AssertionError(message)
