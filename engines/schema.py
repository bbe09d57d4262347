"""JSON schemas for structured answers: refused when broken, and answers checked against them.

The backends ignore what they cannot enforce without a word; this module is why we notice.
"""

import json
from collections.abc import Mapping

from engines.errors import EngineUnavailable, ModelUnsupported, RequestInvalid


class JsonSchema:
    """A schema that is valid by its own metaschema (draft 2020-12 unless it says another)."""

    def __init__(self, schema: Mapping[str, object]) -> None:
        """Compile it; raises RequestInvalid or EngineUnavailable."""
        try:
            import jsonschema_rs
        except ImportError as error:
            raise EngineUnavailable(f"jsonschema-rs cannot be loaded: {error}") from error
        try:
            self._validator = jsonschema_rs.validator_for(dict(schema))
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            raise RequestInvalid(f"schema is not a JSON schema: {error}") from error

    def check(self, text: str, model: str) -> None:
        """Raise ModelUnsupported when a finished answer does not follow the schema."""
        try:
            is_valid = self._validator.is_valid(json.loads(text))
        except ValueError:
            is_valid = False
        if not is_valid:
            raise ModelUnsupported(
                f"{model} did not follow the schema: it uses keywords that xllamacpp cannot enforce"
            )
