"""Connects to the Redis-protocol server (Redis ≥ 7.0 or Valkey), with every wait bounded.

Redis only wakes: callers treat its absence as slowness, never as loss.
"""

from typing import TYPE_CHECKING

from redis.asyncio import Redis

from runtime.errors import SettingsError

if TYPE_CHECKING:
    from runtime.settings import Settings

CONNECT_TIMEOUT_S = 2.0
HEALTH_CHECK_INTERVAL_S = 15
CONNECTIONS_MAX = 64


def connect(settings: "Settings", *, timeout_s: float | None = None) -> Redis:
    """Return a client (answers are bytes); it connects on its first command, and reconnects.

    `timeout_s` bounds each answer (default: the setting redis_timeout_s). A caller that blocks,
    as BZPOPMIN does, passes more than it blocks for. The caller closes it with `aclose()`.
    """
    client: Redis = Redis.from_url(
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
