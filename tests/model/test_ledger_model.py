"""The real ledger and the reference go through the same lives and must agree at every step.

CI replays the same examples each time; MODEL_EXAMPLES=5000 looks for new ones and shrinks what it
finds.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test

from runtime.settings import Settings
from tests.model.machine import LedgerMachine
from tests.model.world import opened

EXAMPLES = 100
STEPS = 40
WANTED = int(os.environ.get("MODEL_EXAMPLES", "0"))

pytestmark = [pytest.mark.timeout(0)] if WANTED else []


def _profile() -> hypothesis_settings:
    return hypothesis_settings(
        max_examples=WANTED or EXAMPLES,
        stateful_step_count=STEPS,
        derandomize=not WANTED,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink) if WANTED else (Phase.generate,),
        suppress_health_check=tuple(HealthCheck),
    )


def test_the_ledger_does_what_the_reference_does(settings: Settings) -> None:
    with opened(settings) as world:
        machine = type("Machine", (LedgerMachine,), {"world": world})
        run_state_machine_as_test(machine, settings=_profile())
