"""The one frozen Settings of a process: built in `cli`, passed down, never read from globals.

Values come from arguments, then XNAI_ environment variables, then one xnai.toml, then defaults.
Each field's description states its unit; docs/settings.md lists them all, and a test compares.
"""

import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from runtime.errors import SettingsError
from runtime.pools import PoolSpec, default_pools, format_pools, parse_pools

ENV_PREFIX = "XNAI_"
FILE_NAME = "xnai.toml"
LOCAL_DIRECTORY = ".xnai"

_MEBIBYTE = 1024 * 1024
_DATABASE_SCHEMES = ("postgresql", "postgres")
_REDIS_SCHEMES = ("redis", "rediss", "unix")
_HTTP_SCHEMES = ("http", "https")
# A sweeper declares death on counters that it read: fewer than three beats would be a coin toss.
_BEATS_BEFORE_DEATH = 3


def _split(value: object) -> object:
    """Read `a, b` as a tuple; a list from xnai.toml stays as it is."""
    if isinstance(value, str):
        return tuple(filter(None, (part.strip() for part in value.split(","))))
    return value


type Pools = Annotated[dict[str, PoolSpec], NoDecode, BeforeValidator(parse_pools)]
type Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Every setting, with its unit, default and bounds."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(
        default_factory=lambda: find_data_dir(),  # noqa: PLW0108 - it is defined below
        description="Folder of the embedded servers, index files, keys and logs of this machine.",
    )
    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(
        8000, ge=0, le=65535, description="Port that the API listens on; 0 takes a free one."
    )
    database_url: str | None = Field(
        None, repr=False, description="PostgreSQL ≥ 14; unset: embedded in the data directory."
    )
    redis_url: str | None = Field(
        None, repr=False, description="Redis ≥ 7.0 or Valkey; unset: embedded."
    )
    api_url: str | None = Field(None, description="API that the command line talks to.")
    api_key: str | None = Field(
        None, repr=False, description="Key of the command line; unset: the admin key of DATA_DIR."
    )
    pools: Pools = Field(
        default_factory=default_pools,
        description="Slots x cores @ cpus of each pool, as embed=2x1@2-3,generate=1x2.",
    )
    kinds: Names = Field((), description="Modules that define own kinds, separated by commas.")
    egress_allow: Names = Field(
        (), description="CIDRs and hosts that crawls and webhooks may reach although private."
    )
    llm_model: str = Field(
        "smollm2-135m-instruct", description="Language model: a name, or a path to a GGUF file."
    )
    embed_model: str = Field(
        "all-minilm-l6-v2", description="Embedding model: a name, or a path to its folder."
    )
    vector_backend: Literal["faiss", "qdrant"] = Field(
        "faiss", description="What holds the vector index of the search role."
    )
    search_url: str | None = Field(
        None, description="Search role that the API asks; unset: the one of `xnai up`."
    )
    search_host: str = Field("127.0.0.1", description="Address that the search role listens on.")
    search_port: int = Field(
        0, ge=0, le=65535, description="Port that the search role listens on; 0 takes a free one."
    )

    heartbeat_s: float = Field(
        1.0,
        ge=0.05,
        le=2,
        description="Seconds between two beats of a supervisor, which also bring cancellations.",
    )
    dead_after_s: float = Field(
        10.0, ge=0.2, le=300, description="Seconds without a beat until a slot is declared dead."
    )
    sweep_s: float = Field(1.0, ge=0.05, le=60, description="Seconds between two sweeps.")
    poll_s: float = Field(
        1.0, ge=0.05, le=60, description="Seconds between two claims while Redis cannot wake."
    )
    tick_s: float = Field(
        1.0, ge=0.05, le=60, description="Seconds between two looks at the schedules."
    )
    grace_s: float = Field(
        10.0, ge=0, le=600, description="Seconds that a draining process may finish its jobs in."
    )
    recycle_rss_mb: int = Field(
        2048,
        ge=0,
        le=1_000_000,
        description="MiB of memory of its own beyond which a slot is renewed; 0: never.",
    )
    recycle_jobs: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Jobs after which a slot is renewed; 0: however many.",
    )
    recycle_age_s: float = Field(
        86400.0,
        ge=0,
        le=1_000_000,
        description="Seconds after which a slot is renewed; 0: never.",
    )
    backoff_s: float = Field(
        2.0, ge=0.001, le=3600, description="Longest pause before the first retry; then doubles."
    )
    backoff_max_s: float = Field(
        3600.0, ge=0.001, le=86400, description="Longest pause between two attempts, in seconds."
    )
    ageing_s: float = Field(
        60.0, ge=0, le=86400, description="Seconds of waiting that outweigh one step of priority."
    )
    retention_days: int = Field(
        7, ge=1, le=3650, description="Days that finished jobs and their events are kept."
    )
    trusted_proxies: Names = Field(
        (), description="Addresses and CIDRs of proxies whose X-Forwarded-For is believed."
    )
    audit_days: int = Field(
        365, ge=1, le=3650, description="Days that the log of administrative acts is kept."
    )

    webhook_disable_days: float = Field(
        5.0,
        gt=0,
        le=365,
        description="Days without any success after which a failing webhook is disabled.",
    )

    connect_timeout_s: float = Field(
        30.0, gt=0, le=600, description="Seconds that a starting process waits for its servers."
    )
    statement_timeout_s: float = Field(
        30.0, gt=0, le=600, description="Seconds after which Postgres ends a statement."
    )
    lock_timeout_s: float = Field(
        5.0, gt=0, le=60, description="Seconds after which Postgres ends a wait for a lock."
    )
    redis_timeout_s: float = Field(
        5.0, gt=0, le=60, description="Seconds to wait for an answer of Redis."
    )
    api_connections: int = Field(
        10, ge=2, le=200, description="Connections to Postgres of one API process."
    )
    backlog_max: int = Field(
        1_000_000,
        ge=1,
        le=100_000_000,
        description="Jobs that may wait in one pool; beyond it the API answers 429.",
    )
    wait_max_s: float = Field(
        60.0, ge=0, le=600, description="Longest `Prefer: wait` of the API, in seconds."
    )
    watchers_max: int = Field(
        4000,
        ge=1,
        le=1_000_000,
        description="Event streams and long polls that one API process holds open.",
    )
    stream_max_s: float = Field(
        3600.0,
        ge=0.05,
        le=86400,
        description="Seconds after which the API ends an event stream; its reader resumes.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Shape of the log; auto: console on a terminal, else JSON lines."
    )

    @classmethod
    def settings_customise_sources(  # noqa: PLR0917 - the signature of pydantic-settings
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments and the environment; `load_settings` adds the file below them."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings, _FileSource(cls)

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("database_url")
    @classmethod
    def _is_database_url(cls, value: str | None) -> str | None:
        return _url(value, _DATABASE_SCHEMES, "postgresql://user:password@host:5432/database")

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, value: str | None) -> str | None:
        return _url(value, _REDIS_SCHEMES, "redis://:password@host:6379/0")

    @field_validator("api_url", "search_url")
    @classmethod
    def _is_http_url(cls, value: str | None) -> str | None:
        url = _url(value, _HTTP_SCHEMES, "http://127.0.0.1:8000")
        return None if url is None else url.rstrip("/")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.dead_after_s < _BEATS_BEFORE_DEATH * self.heartbeat_s:
            message = (
                f"dead_after_s is {self.dead_after_s:g} and heartbeat_s {self.heartbeat_s:g}: "
                f"raise dead_after_s to at least {_BEATS_BEFORE_DEATH * self.heartbeat_s:g}"
            )
            raise ValueError(message)
        if self.vector_backend == "qdrant":
            # The name is reserved; to take it and search with FAISS all the same would be a lie.
            message = "vector_backend qdrant is not part of this version: set it to faiss"
            raise ValueError(message)
        return self


def load_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - typed by Settings' own fields
    """Build this process's settings; raises SettingsError, one line a mistake, with its fix."""
    _refuse_unknown_variables(os.environ)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(item) for item in error.errors())) from None


def to_environment(settings: Settings) -> dict[str, str]:
    """Return the XNAI_ variables from which a child process builds the same settings."""
    environment = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is None:
            continue
        if isinstance(value, dict):
            value = format_pools(value)
        elif isinstance(value, tuple):
            value = ",".join(value)
        environment[ENV_PREFIX + name.upper()] = str(value)
    # Found from the working directory when it was not set: the child's may be another one.
    environment[f"{ENV_PREFIX}DATA_DIR"] = str(settings.data_dir)
    return environment


def find_data_dir() -> Path:
    """Return the nearest `.xnai` from the working directory upwards, else the user's own."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / LOCAL_DIRECTORY).is_dir():
            return folder / LOCAL_DIRECTORY
    return Path.home() / ".local" / "share" / "xnai"


class _FileSource(PydanticBaseSettingsSource):
    """The data directory's xnai.toml, or else the working directory's; never both."""

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        """Unused: `__call__` answers for all fields at once."""
        del field
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        local = Path.cwd() / FILE_NAME
        in_data_dir = self._data_dir(local) / FILE_NAME
        return _read_file(in_data_dir if in_data_dir.is_file() else local)

    def _data_dir(self, local: Path) -> Path:
        named = self.current_state.get("data_dir") or _read_file(local).get("data_dir")
        return Path(named).expanduser() if named else find_data_dir()


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f"{path} cannot be read as TOML ({error}): correct or remove it"
        raise SettingsError(message) from error
    unknown = sorted(set(content) - set(Settings.model_fields))
    if unknown:
        message = f"{path}: {_suggest(unknown[0], list(Settings.model_fields))}"
        raise SettingsError(message)
    return content


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for name in environment:
        if name.startswith(ENV_PREFIX) and name not in known:
            raise SettingsError(_suggest(name, known))


def _suggest(name: str, known: list[str]) -> str:
    nearest = get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"{name} is no setting: did you mean {nearest}? docs/settings.md lists all of them"


def _url(value: str | None, schemes: tuple[str, ...], example: str) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in schemes or not (parts.netloc or parts.path):
        message = f"this is no {schemes[0]} address: write it as {example}"
        raise ValueError(message)
    return value


def _explain(error: Mapping[str, Any]) -> str:
    """One line that names the setting as its owner wrote it, without echoing its value."""
    place = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if not place:
        return message
    if error["type"] == "extra_forbidden":
        return _suggest(place, list(Settings.model_fields))
    return f"{ENV_PREFIX}{place.upper()}: {message}"
