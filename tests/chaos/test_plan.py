"""A seed decides everything: which faults strike when, and what the clients ask for."""

from collections import Counter

import pytest

from chaos.faults import WAYS
from chaos.load import LIMITS, draw_load
from chaos.plan import GONE_FROM, MEANINGS, Fault, draw_faults
from jobs.kinds import load_kinds

CALLBACK = "http://127.0.0.1:1/x"


@pytest.mark.parametrize("seed", range(5))
def test_same_seed_draws_the_same_faults(seed: int) -> None:
    assert draw_faults(seed, 60.0) == draw_faults(seed, 60.0)
    assert draw_faults(seed, 60.0) != draw_faults(seed + 1, 60.0)


def test_every_fault_comes_once_before_any_comes_twice() -> None:
    steps = draw_faults(1, 60.0)
    counted = Counter(step.fault for step in steps)
    assert set(counted) == set(Fault)
    assert max(counted.values()) <= 2
    assert counted[Fault.REDIS_GONE] == 1


def test_only_chosen_faults_come() -> None:
    steps = draw_faults(1, 30.0, [Fault.KILL_SLOT, Fault.REDIS_FLUSH])
    assert {step.fault for step in steps} == {Fault.KILL_SLOT, Fault.REDIS_FLUSH}
    assert draw_faults(1, 30.0, []) == []


@pytest.mark.parametrize("seed", range(20))
def test_faults_fit_into_the_window_in_order(seed: int) -> None:
    window_s = 50.0
    steps = draw_faults(seed, window_s)
    assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.at_s >= 0 and step.at_s + step.lasts_s <= window_s + 0.01 for step in steps)
    assert all(0 <= step.pick < 1 for step in steps)


@pytest.mark.parametrize("seed", range(20))
def test_what_needs_redis_comes_before_redis_has_gone(seed: int) -> None:
    late = [s.fault for s in draw_faults(seed, 60.0) if s.at_s > GONE_FROM * 60.0]
    assert [fault for fault in late if "redis" in fault or "valkey" in fault] == []


def test_every_fault_has_a_way_and_a_meaning() -> None:
    assert set(WAYS) == set(Fault) == set(MEANINGS)


def test_same_seed_draws_the_same_load() -> None:
    def draw(seed: int) -> object:
        return draw_load(seed, 500, 30.0, callback_url=CALLBACK, with_documents=True)

    assert draw(4) == draw(4)
    assert draw(4) != draw(5)


def test_load_has_the_jobs_that_were_asked_for() -> None:
    load = draw_load(1, 2000, 30.0, callback_url=CALLBACK, with_documents=False)
    assert load.jobs == 2000
    assert {act.what for act in load.acts} == {
        "job", "json", "ndjson", "cancel", "cancel-batch", "retry",
    }  # fmt: skip
    submitted = [job for act in load.acts for job in act.jobs]
    keys = {job["concurrency_key"] for job in submitted if "concurrency_key" in job}
    assert keys == set(LIMITS)


def test_load_is_of_valid_payloads() -> None:
    kinds = load_kinds(["chaos.kinds"])
    load = draw_load(2, 3000, 30.0, callback_url=CALLBACK, with_documents=False)
    for act in load.acts:
        for job in act.jobs:
            kinds[str(job["kind"])].payload.model_validate(job["payload"])


def test_acts_name_earlier_acts() -> None:
    load = draw_load(3, 2000, 30.0, callback_url=CALLBACK, with_documents=True)
    at = {act.number: act.at_s for act in load.acts}
    assert len(at) == len(load.acts)
    for act in load.acts:
        named = [*act.parents, *([] if act.target is None else [act.target])]
        assert all(at[number] <= act.at_s for number in named)
