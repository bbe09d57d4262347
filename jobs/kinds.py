"""The kinds of jobs: name, typed payload, pool, handler and limits.

The API imports this module for the payloads only; a handler is named by an import string and loaded
by the worker that runs it, so that validating a job never loads an engine. Own kinds come from
`XNAI_KINDS`.
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from jobs.errors import LedgerError
from jobs.outcomes import Backoff

MAX_PAYLOAD_BYTES = 256 * 1024


class UnknownKind(LedgerError):
    """No kind of this name is known here."""


def _no_nul(text: str) -> str:
    if "\x00" in text:
        detail = "must not contain U+0000"
        raise ValueError(detail)
    return text


Text = Annotated[str, AfterValidator(_no_nul)]
CollectionName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", examples=["default"])]
Url = Annotated[
    Text,
    Field(
        min_length=1,
        max_length=2048,
        pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s/?#]+[^\s]*$",
        examples=["https://example.org/"],
    ),
]


class Payload(BaseModel):
    """Base of all payloads: unknown fields are refused, values are not coerced between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CrawlPayload(Payload):
    """Fetch pages, follow links within scope, keep their text as documents."""

    url: Url | None = None
    urls: Annotated[tuple[Url, ...], Field(min_length=1, max_length=1000)] | None = None
    collection: CollectionName = "default"
    max_pages: Annotated[int, Field(ge=1, le=100_000)] = 1
    max_depth: Annotated[int, Field(ge=0, le=100)] = 0
    scope: Literal["page", "prefix", "host", "domain"] = "page"
    include: Annotated[
        tuple[Annotated[Text, Field(max_length=512)], ...], Field(max_length=100)
    ] = ()
    exclude: Annotated[
        tuple[Annotated[Text, Field(max_length=512)], ...], Field(max_length=100)
    ] = ()
    sitemap: bool = False
    pipeline: bool = True

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.url is None) == (self.urls is None):
            detail = "give exactly one of url and urls"
            raise ValueError(detail)
        return self

    @property
    def start_urls(self) -> tuple[str, ...]:
        """The pages to begin with, one or more."""
        return self.urls if self.urls is not None else (self.url or "",)


class IngestPayload(Payload):
    """Turn an uploaded file into a document; created by `POST /documents`."""

    upload_id: UUID
    collection: CollectionName = "default"


class EmbedPayload(Payload):
    """Chunk documents and store their vectors, or return the vectors of given texts."""

    document_ids: Annotated[tuple[UUID, ...], Field(min_length=1, max_length=1000)] | None = None
    texts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)] | None = None
    collection: CollectionName = "default"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.document_ids is None) == (self.texts is None):
            detail = "give exactly one of document_ids and texts"
            raise ValueError(detail)
        return self


class IndexPayload(Payload):
    """Add embedded documents to a collection's index as a new generation, or rebuild it whole."""

    collection: CollectionName = "default"
    document_ids: Annotated[tuple[UUID, ...], Field(min_length=1, max_length=10_000)] | None = None
    rebuild: bool = False

    @model_validator(mode="after")
    def _one_scope(self) -> Self:
        if (self.document_ids is None) == (not self.rebuild):
            detail = "give either document_ids or rebuild"
            raise ValueError(detail)
        return self


class Message(Payload):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Retrieve(Payload):
    """Where the passages that the answer may cite come from."""

    query: Annotated[Text, Field(min_length=1, max_length=8192)] | None = None
    collection: CollectionName = "default"
    k: Annotated[int, Field(ge=1, le=50)] = 5
    mode: Literal["hybrid", "vector", "text"] = "hybrid"


class GeneratePayload(Payload):
    """Write text with the local language model, grounded in retrieved passages when asked."""

    prompt: Annotated[Text, Field(min_length=1)] | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=200)] | None = None
    retrieve: Retrieve | None = None
    max_tokens: Annotated[int, Field(ge=1, le=32_768)] = 256
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    stop: Annotated[
        tuple[Annotated[Text, Field(min_length=1, max_length=128)], ...], Field(max_length=8)
    ] = ()
    model: Annotated[Text, Field(min_length=1, max_length=512)] | None = None
    json_schema: Annotated[dict[str, JsonValue] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            detail = "give exactly one of prompt and messages"
            raise ValueError(detail)
        return self


class ProbePayload(Payload):
    """A job that does as it is told, for self-tests and benchmarks; operators only."""

    sleep_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    spin_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    outcome: Literal["succeed", "retry", "fail", "crash", "hang"] = "succeed"
    echo: JsonValue = None


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of job.

    `exclusive`: one job in hand, native code in a thread, cancelled by killing the slot if need be;
    otherwise shared: up to `in_hand` at once on the slot's event loop, cancelled cooperatively.
    `handler` is `module:function`, an async function that takes a `workers.run.Run`. A job may
    name its own `max_attempts` (failures, not attempts) and `timeout_s`. `backoff_s` and
    `backoff_max_s` bound the pauses between attempts; None: as the settings say.
    """

    name: str
    payload: type[BaseModel]
    pool: str
    handler: str
    exclusive: bool = True
    in_hand: int = 1
    max_attempts: int = 4
    timeout_s: float = 3600.0
    backoff_s: float | None = None
    backoff_max_s: float | None = None
    operators_only: bool = False


BUILT_IN: tuple[Kind, ...] = (
    Kind(
        "crawl", CrawlPayload, "crawl", "workers.handlers.crawl:handle", exclusive=False, in_hand=16
    ),
    Kind(
        "ingest",
        IngestPayload,
        "crawl",
        "workers.handlers.ingest:handle",
        exclusive=False,
        in_hand=16,
    ),
    Kind("embed", EmbedPayload, "embed", "workers.handlers.embed:handle"),
    Kind("index", IndexPayload, "index", "workers.handlers.index:handle"),
    Kind(
        "generate",
        GeneratePayload,
        "generate",
        "workers.handlers.generate:handle",
        timeout_s=1800.0,
    ),
    Kind(
        "probe",
        ProbePayload,
        "probe",
        "workers.handlers.probe:handle",
        exclusive=False,
        in_hand=1000,
        operators_only=True,
    ),
)


@dataclass(frozen=True, slots=True)
class KindRegistry:
    """The kinds this process knows, by name."""

    kinds: Mapping[str, Kind]

    def __getitem__(self, name: str) -> Kind:
        """Raise UnknownKind, naming the known ones."""
        try:
            return self.kinds[name]
        except KeyError:
            known = ", ".join(sorted(self.kinds))
            detail = (
                f"unknown kind {name!r}; known here: {known}. Own kinds are named by XNAI_KINDS."
            )
            raise UnknownKind(detail) from None

    def __iter__(self) -> Iterator[Kind]:
        return iter(self.kinds.values())

    def backoff_of(self, name: str, usual: Backoff) -> Backoff:
        """How long jobs of a kind wait between attempts; the usual for what it leaves open."""
        kind = self.kinds.get(name)
        if kind is None or (kind.backoff_s is None and kind.backoff_max_s is None):
            return usual
        base_s = usual.base_s if kind.backoff_s is None else kind.backoff_s
        cap_s = usual.cap_s if kind.backoff_max_s is None else kind.backoff_max_s
        return Backoff(base_s, max(base_s, cap_s))

    def of_pool(self, pool: str) -> tuple[Kind, ...]:
        """The kinds that run in `pool`."""
        return tuple(kind for kind in self if kind.pool == pool)

    @property
    def pools(self) -> tuple[str, ...]:
        """Every pool that some kind runs in, in the kinds' order."""
        return tuple(dict.fromkeys(kind.pool for kind in self))


def load_kinds(modules: Iterable[str] = ()) -> KindRegistry:
    """The built-in kinds and those in each module's `KINDS`; a name may be defined once."""
    kinds = {kind.name: kind for kind in BUILT_IN}
    for module_name in modules:
        for kind in importlib.import_module(module_name).KINDS:
            if kind.name in kinds:
                detail = f"kind {kind.name!r} of {module_name} exists already: rename it"
                raise UnknownKind(detail)
            kinds[kind.name] = kind
    return KindRegistry(MappingProxyType(kinds))
