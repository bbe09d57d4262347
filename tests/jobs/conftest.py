"""The ledger's tests: every one ends with an audit of all tables."""

from collections.abc import AsyncIterator

import pytest

from runtime.postgres import Pool
from tests.jobs.desk import Desk


@pytest.fixture
async def desk(db: Pool) -> AsyncIterator[Desk]:
    """The ledger on an empty database; what a test leaves behind must be consistent."""
    found = Desk(db)
    yield found
    await found.audit()
