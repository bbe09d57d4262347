"""What each tenant's URLs are judged by when they are submitted: the installation's policy and the
tenant's entries.

Kept in memory and read anew every few seconds, since a batch has 100,000 URLs. Who fetches asks
Postgres itself: what is judged here is only said early.
"""

from collections.abc import Mapping

import anyio
import asyncpg

from jobs import tenant_egress
from jobs.model import TenantId
from runtime.egress import EgressPolicy
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Pool

REFRESH_S = 2.0
_POSTPONED = (*UNREACHABLE, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

log = logger("api")


class TenantPolicies:
    """The policies of one API process. Starts with the installation's for everybody."""

    def __init__(self, postgres: Pool, installation: EgressPolicy) -> None:
        self._postgres = postgres
        self.installation = installation
        self._entries: Mapping[TenantId, tuple[str, ...]] = {}

    def of(self, tenant_id: TenantId) -> EgressPolicy:
        """What the tenant's URLs are judged by."""
        return self.installation.plus(self._entries.get(tenant_id, ()))

    async def refresh(self) -> None:
        """Read the entries of all tenants."""
        async with self._postgres.acquire(timeout=REFRESH_S) as connection:
            self._entries = await tenant_egress.entries_of_all(connection)

    async def run(self) -> None:
        """Refresh for ever; while Postgres is away, what was read last holds."""
        while True:
            try:
                await self.refresh()
            except _POSTPONED as error:
                log.warning("egress_entries_postponed", error=str(error))
            await anyio.sleep(REFRESH_S)
