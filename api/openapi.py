"""The OpenAPI document: FastAPI's, completed with what FastAPI cannot know.

Adds the problem documents that every operation may answer, the payload of each kind, and the bodies
of the operations that take several media types.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.auth import Requires
from api.errors import MEDIA_TYPE, ProblemType, invalid
from api.openapi_links import add_links
from api.views import ProblemView
from jobs.kinds import KindRegistry

type Json = dict[str, Any]  # an OpenAPI document has no narrower type

_PREFIX = "#/components/schemas/"
_EVERYWHERE = (
    ProblemType.MALFORMED,
    ProblemType.NO_KEY,
    ProblemType.FORBIDDEN,
    ProblemType.INVALID,
    ProblemType.UNAVAILABLE,
    ProblemType.RATE_LIMITED,
)
_WITH_BODY = (ProblemType.TOO_LARGE, ProblemType.TOO_SLOW, ProblemType.MEDIA_TYPE)
# Not FastAPI's HTTPBearer: every request would solve it again, after Authentication did the work.
_SECURITY = {
    "ApiKey": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "xnai_PREFIX_SECRET",
        "description": "An API key, as `xnai keys create` shows it once.",
    }
}
_BODY_MODELS: dict[str, type[BaseModel]] = {}


_WITH_RETRY_AFTER = {
    *(ProblemType.QUEUE_FULL, ProblemType.UNAVAILABLE, ProblemType.IN_FLIGHT),
    *(ProblemType.RATE_LIMITED, ProblemType.QUOTA_EXCEEDED),
}


def problems(*types: ProblemType) -> dict[int | str, Json]:
    """The responses of these problems, as a route declares them beside what every route may
    answer.
    """
    found: dict[int | str, Json] = {}
    for type_ in types:
        known = found.setdefault(int(type_.status), _problem_response(type_))
        if type_.title not in known["description"]:
            known["description"] += f"; {type_.title}"
    return found


def event_stream(*, ends: bool = True) -> dict[int | str, Json]:
    """The responses of a route that streams server-sent events; 204 where the stream can be
    over.
    """
    # Each event is an object of its fields, as OpenAPI 3.2 and the tools that know streams read it.
    text = {"type": "string"}
    schema = {
        "type": "object",
        "description": "One event; docs/api.md tells its types and data.",
        "properties": {"event": text, "id": text, "data": text},
    }
    found: dict[int | str, Json] = {
        200: {
            "description": "Server-sent events.",
            "content": {"text/event-stream": {"schema": schema}},
        }
    }
    if ends:
        found[204] = {"description": "All was told: a browser does not reconnect after this."}
    return found


def json_or_ndjson(model: type[BaseModel]) -> Json:
    """The request body of a route that takes a JSON document, or one job a line."""
    line = '{"kind":"crawl","payload":{"url":"https://example.org/"},"custom_id":"a"}\n'
    text = {"type": "string", "description": "One job a line.", "examples": [line]}
    return _body({"application/json": _ref(model), "application/x-ndjson": text})


def json_or_multipart(model: type[BaseModel], fields: type[BaseModel]) -> Json:
    """The request body of a route that takes a text as JSON, or a file with fields beside it."""
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": file} | {name: {"type": "string"} for name in fields.model_fields},
    }
    return _body({"application/json": _ref(model), "multipart/form-data": form})


def install(app: FastAPI, kinds: KindRegistry) -> None:
    """Let the application serve the completed document, built once."""

    def document() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, kinds)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign] # FastAPI's documented way


def _build(app: FastAPI, kinds: KindRegistry) -> Json:
    found: Json = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    models: list[type[BaseModel]] = [
        ProblemView,
        *_BODY_MODELS.values(),
        *(kind.payload for kind in kinds),
    ]
    _, extra = models_json_schema(
        [(m, "validation") for m in models], ref_template=_PREFIX + "{model}"
    )
    for name, schema in extra["$defs"].items():
        schemas.setdefault(name, schema)
    schemas["JobRequest"] = _by_kind(schemas, kinds)
    found["components"]["securitySchemes"] = _SECURITY
    for path, operations in found["paths"].items():
        for operation in operations.values():
            _complete(path, operation)
    add_links(found["paths"])
    _tell_roles(app, found["paths"])
    return found


def _tell_roles(app: FastAPI, paths: Json) -> None:
    """Say which role each operation wants, as no security scheme of OpenAPI can."""
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for check in (d.call for d in route.dependant.dependencies):
                if isinstance(check, Requires):
                    for method in route.methods or ():
                        told = paths[route.path][method.lower()]
                        told["x-required-role"] = check.role.label
                        told["x-of-installation"] = check.of_installation


def _complete(path: str, operation: Json) -> None:
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    if not path.startswith("/v1"):
        return
    operation["security"] = [{name: [] for name in _SECURITY}]
    for type_ in (*_EVERYWHERE, *(_WITH_BODY if "requestBody" in operation else ())):
        responses.setdefault(str(int(type_.status)), _problem_response(type_))
    operation["responses"] = dict(sorted(responses.items()))


def _by_kind(schemas: Json, kinds: KindRegistry) -> Json:
    """A job request is one schema a kind, so that a reader and a generator see each kind's
    payload.
    """
    whole = schemas["JobRequest"]
    choices = []
    for kind in kinds:
        name = f"{kind.name.capitalize()}Job"
        properties = whole["properties"] | {
            "kind": {"const": kind.name, "type": "string"},
            "payload": {"$ref": _PREFIX + kind.payload.__name__},
        }
        schemas[name] = whole | {
            "title": name,
            "properties": properties,
            "description": f"A job of kind `{kind.name}`, run in the pool `{kind.pool}`.",
        }
        choices.append({"$ref": _PREFIX + name})
    mapping = {kind.name: c["$ref"] for kind, c in zip(kinds, choices, strict=True)}
    discriminator = {"propertyName": "kind", "mapping": mapping}
    return {"title": "JobRequest", "oneOf": choices, "discriminator": discriminator}


def _body(content: dict[str, Json]) -> Json:
    return {
        "requestBody": {
            "required": True,
            "content": {media_type: {"schema": schema} for media_type, schema in content.items()},
        }
    }


def _ref(model: type[BaseModel]) -> Json:
    _BODY_MODELS[model.__name__] = model
    return {"$ref": _PREFIX + model.__name__}


def _problem_response(type_: ProblemType) -> Json:
    example = {
        "type": type_.uri,
        "title": type_.title,
        "status": int(type_.status),
        "detail": invalid("/payload/url", "must be an address").detail
        if type_ is ProblemType.INVALID
        else type_.title,
    }
    headers = {}
    if type_ in _WITH_RETRY_AFTER:
        headers = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    if type_ is ProblemType.NO_KEY:
        headers = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return {
        "description": type_.title,
        "headers": headers,
        "content": {MEDIA_TYPE: {"schema": {"$ref": _PREFIX + "ProblemView"}, "example": example}},
    }
