"""How a request becomes arguments: bounded and strict reading, before FastAPI validates the models.

FastAPI's own reading takes any size, any JSON that Python takes, and unknown query parameters.
"""

from collections.abc import Callable, Coroutine
from typing import Any, override

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from api.errors import Problem, ProblemType, field_error, from_pydantic, invalid_fields
from api.limits import JSON_BODY_BYTES, read_bounded
from api.strict_json import loads
from jobs.model import JsonValue

type Handler = Callable[[Request], Coroutine[Any, Any, Response]]  # as Starlette declares it

_LIMIT = "__body_bytes__"


def body_limit[F: Callable[..., object]](size_bytes: int) -> Callable[[F], F]:
    """Let an endpoint take a JSON body of up to `size_bytes` instead of the usual bound."""

    def mark(endpoint: F) -> F:
        setattr(endpoint, _LIMIT, size_bytes)
        return endpoint

    return mark


class StrictRequest(Request):
    """A request whose body is read within a bound, and whose JSON is read strictly."""

    body_bytes_max = JSON_BODY_BYTES
    is_parsed = False
    parsed: JsonValue = None

    @override
    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._body = await read_bounded(self, self.body_bytes_max)
        return self._body

    @override
    async def json(self) -> JsonValue:
        if not self.is_parsed:
            self.parsed, self.is_parsed = loads(await self.body()), True
        return self.parsed


class StrictRoute(APIRoute):
    """A route that refuses unknown or repeated query parameters and bodies of another media
    type.
    """

    @override
    def get_route_handler(self) -> Handler:
        handle: Handler = super().get_route_handler()
        known = {field.alias: _is_list(field) for field in self.dependant.query_params}
        for dependency in self.dependant.dependencies:
            known |= {field.alias: _is_list(field) for field in dependency.query_params}
        limit = getattr(self.endpoint, _LIMIT, JSON_BODY_BYTES)
        takes_json = self.body_field is not None

        async def strictly(request: Request) -> Response:
            _check_query(request, known)
            strict = StrictRequest(request.scope, request.receive)
            strict.body_bytes_max = limit
            if takes_json:
                await _check_json(strict)
            return await handle(strict)

        return strictly


def router(tag: str) -> APIRouter:
    """A router of one resource under /v1."""
    return APIRouter(
        prefix="/v1",
        tags=[tag],
        route_class=StrictRoute,
        generate_unique_id_function=lambda route: route.name,
    )


def _is_list(field: Any) -> bool:  # noqa: ANN401 - FastAPI's ModelField is not public
    origin = getattr(field.field_info.annotation, "__origin__", None)
    return origin in {list, tuple} or "list[" in str(field.field_info.annotation)


def _check_query(request: Request, known: dict[str, bool]) -> None:
    """An unknown name is refused: a misspelt filter that is ignored would answer too much."""
    if not request.scope["query_string"]:
        return
    seen: set[str] = set()
    errors = []
    for name, _ in request.query_params.multi_items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            errors.append(field_error(f"/{name}", f"unknown; known here: {names}", place="query"))
        elif name in seen and not known[name]:
            errors.append(field_error(f"/{name}", "given twice", place="query"))
        seen.add(name)
    if errors:
        raise invalid_fields(errors)


async def _check_json(request: StrictRequest) -> None:
    """Parse before FastAPI does, which hides the cause of whatever goes wrong while it reads."""
    media_type = media_type_of(request)
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_json and (media_type or await request.body()):
        raise wrong_media_type(media_type, "application/json")
    if is_json and await request.body():
        await request.json()


async def read_model[M: BaseModel](
    request: Request, model: type[M], limit: int, wanted: str = "application/json"
) -> tuple[bytes, M]:
    """The body and what it says, for a route that takes several media types. Raises Problem."""
    strict = StrictRequest(request.scope, request.receive)
    strict.body_bytes_max = limit
    media_type = media_type_of(request)
    if media_type != "application/json":
        raise wrong_media_type(media_type, wanted)
    body = await strict.body()
    try:
        return body, model.model_validate(loads(body))
    except ValidationError as error:
        raise invalid_fields(from_pydantic(error.errors(include_input=False))) from None


def media_type_of(request: Request) -> str:
    """The content type without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def wrong_media_type(found: str, wanted: str) -> Problem:
    """The 415 that names what to send."""
    detail = f"send {wanted}, not {found or 'a body without Content-Type'}"
    return Problem(ProblemType.MEDIA_TYPE, detail)
