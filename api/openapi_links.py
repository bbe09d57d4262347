"""The `links` of the OpenAPI document: what can be done with an object that was just made. For
clients that are generated from it, and for tests that follow them.
"""

from typing import Any

type Json = dict[str, Any]  # an OpenAPI document has no narrower type

# Which operation answers with a new object, where its id stands, and what paths call that id.
_MADE_BY = (
    ("submit_job", "id", "job_id"),
    ("create_document", "id", "job_id"),
    ("trigger_schedule", "job_id", "job_id"),
    ("create_batch", "id", "batch_id"),
    ("create_schedule", "id", "schedule_id"),
    ("create_webhook", "id", "webhook_id"),
    ("test_webhook", "delivery_id", "delivery_id"),
    ("start_operation", "id", "operation_id"),
    ("start_redelivery", "id", "redelivery_id"),
    ("create_key", "id", "key_id"),
)
_SUCCESSES = ("200", "201", "202")
# A dry run makes nothing.
_WITHOUT_ID = (None, "DryRunView", "RedeliveryDryRun")


def add_links(paths: Json) -> None:
    """Let each answer with a new object lead to every operation on it."""
    operations = {
        operation["operationId"]: (path, operation)
        for path, item in paths.items()
        for operation in item.values()
    }
    for maker, member, parameter in _MADE_BY:
        links = {
            name: {
                "operationId": name,
                "parameters": {parameter: f"$response.body#/{member}"},
                "description": operation.get("summary", name),
            }
            for name, (path, operation) in operations.items()
            if _parameters(path) == [parameter]
        }
        responses = operations[maker][1]["responses"]
        for status in _SUCCESSES:
            if _answers_with(responses.get(status, {})) not in _WITHOUT_ID:
                responses[status]["links"] = links


def _parameters(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


def _answers_with(response: Json) -> str | None:
    """The name of the response's model."""
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema["$ref"]).rpartition("/")[2] if "$ref" in schema else None
