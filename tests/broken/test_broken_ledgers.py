"""A checker that has never caught anything proves nothing: broken ledgers, which it must catch."""

import pytest

from chaos.checker import report
from runtime.postgres import Pool
from tests.broken.stage import Stage
from tests.broken.variants import VARIANTS

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", VARIANTS)
async def test_the_checker_catches_a_broken_ledger(
    name: str, db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = VARIANTS[name]
    variant.apply(monkeypatch)
    stage = Stage(db)
    await variant.drive(stage)
    violations = await stage.judge()
    assert {violation.code for violation in violations} == variant.breaks, report(violations)


@pytest.mark.parametrize("name", VARIANTS)
async def test_ours_is_clean_under_the_same_drive(name: str, db: Pool) -> None:
    stage = Stage(db)
    await VARIANTS[name].drive(stage)
    violations = await stage.judge()
    assert not violations, report(violations)
