"""Connects to the Redis-protocol server (Redis ≥ 7.0 or Valkey), with every wait bounded.

Redis only wakes: callers treat its absence as slowness, never as loss, and ask a Redis that was
away a moment ago no second time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from runtime.errors import SettingsError

if TYPE_CHECKING:
    from runtime.settings import Settings

CONNECT_TIMEOUT_S = 2.0
HEALTH_CHECK_INTERVAL_S = 15
CONNECTIONS_MAX = 64
# What nobody waits for may take this long, and is left out for a while after it did not work.
BRIEF_S = 1.0
PAUSE_S = 1.0
PAUSE_MAX_S = 4.0


class RedisAwayError(RedisConnectionError):
    """Redis did not answer a moment ago, and is not asked again yet."""


class Client(Redis):
    """A client with a memory of how Redis was lately."""

    _pause_s = 0.0
    _ask_again_at = 0.0

    @contextmanager
    def briefly(self, limit_s: float = BRIEF_S) -> Iterator[None]:
        """A block of commands for which nobody may be kept waiting.

        Ends with TimeoutError after `limit_s`. While Redis is away or refuses, one block in a few
        seconds pays for finding out, and all others end at once with RedisAwayError.
        """
        if time.monotonic() < self._ask_again_at:
            raise RedisAwayError("Redis was away a moment ago")
        try:
            with anyio.fail_after(limit_s):
                yield
        except (OSError, RedisError):
            self._pause_s = min(PAUSE_MAX_S, max(PAUSE_S, 2 * self._pause_s))
            self._ask_again_at = time.monotonic() + self._pause_s
            raise
        self._pause_s = 0.0


def connect(settings: "Settings", *, timeout_s: float | None = None) -> Client:
    """Return a client (answers are bytes); it connects on its first command, and reconnects.

    `timeout_s` bounds each answer (default: the setting redis_timeout_s). A caller that blocks,
    as BZPOPMIN does, passes more than it blocks for. The caller closes it with `aclose()`.
    """
    client: Client = Client.from_url(
        redis_url(settings),
        client_name="xnai",
        socket_timeout=settings.redis_timeout_s if timeout_s is None else timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_keepalive=True,
        health_check_interval=HEALTH_CHECK_INTERVAL_S,
        max_connections=CONNECTIONS_MAX,
    )
    return client


def redis_url(settings: "Settings") -> str:
    """Return the server's address, or say how to get one."""
    if settings.redis_url is None:
        message = f"no Redis: set XNAI_REDIS_URL, or start `xnai up` on {settings.data_dir} first"
        raise SettingsError(message)
    return settings.redis_url
