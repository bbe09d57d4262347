"""One extractor for all crawl tests of a worker would hide leaks: each test gets its own."""

from collections.abc import AsyncIterator

import pytest

from crawl.extractor import Extractor


@pytest.fixture
async def extractor() -> AsyncIterator[Extractor]:
    async with Extractor() as found:
        yield found
