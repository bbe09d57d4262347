"""Announces again what is queued: repairs nothing that the sweeper would not, but at once."""

from jobs import dispatch, pools
from runtime.errors import NotReachableError
from runtime.postgres import connect, database_url
from runtime.redis import connect as connect_redis
from runtime.settings import Settings

# As many as one announcement can carry; whoever is woken claims the rest behind them.
JOBS_MAX = dispatch.RUNWAY * dispatch.IDS_PER_MESSAGE_MAX


async def announce_queued(settings: Settings) -> dict[str, int]:
    """Wake the slots of every pool with queued jobs; how many were named, by pool.

    Raises NotReachableError when Postgres or Redis does not answer.
    """
    connection = await connect(database_url(settings), role="rebuild")
    try:
        queued = await pools.unannounced(connection, older_than_s=0.0, limit=JOBS_MAX)
    finally:
        await connection.close()
    redis = connect_redis(settings)
    try:
        # An announcement swallows an outage, which here is the very thing to report.
        await redis.ping()
        await dispatch.announce(redis, queued)
    except dispatch.UNAVAILABLE as error:
        message = f"Redis does not answer ({error}): start it, or correct XNAI_REDIS_URL"
        raise NotReachableError(message) from error
    finally:
        await redis.aclose()
    return {pool: len(ids) for pool, ids in queued.items()}
