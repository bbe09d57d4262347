"""The real ledger and the reference go through the same lives and must agree at every step.

CI replays the same examples each time; MODEL_EXAMPLES=5000 looks for new ones.
"""

import os

from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test

from runtime.settings import Settings
from tests.model.machine import LedgerMachine
from tests.model.world import opened

EXAMPLES = 100
STEPS = 40


def _profile() -> hypothesis_settings:
    more = os.environ.get("MODEL_EXAMPLES")
    return hypothesis_settings(
        max_examples=int(more or EXAMPLES),
        stateful_step_count=STEPS,
        derandomize=more is None,
        database=None,
        deadline=None,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=tuple(HealthCheck),
    )


def test_the_ledger_does_what_the_reference_does(settings: Settings) -> None:
    with opened(settings) as world:
        machine = type("Machine", (LedgerMachine,), {"world": world})
        run_state_machine_as_test(machine, settings=_profile())
