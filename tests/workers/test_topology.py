"""The plan of slots and cpus: the same in every process, and never wider than the machine."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from runtime.pools import PoolSpec
from workers.topology import plan_slots, thread_environment, usable_cpus


def test_slots_of_one_pool_get_cpus_of_their_own_while_there_are_enough() -> None:
    plans = plan_slots({"embed": PoolSpec(slots=4, cores=1)}, cpus=range(4))
    assert sorted(chain.from_iterable(plan.cpus for plan in plans)) == [0, 1, 2, 3]


def test_a_pool_that_names_its_cpus_stays_on_them() -> None:
    plans = plan_slots(
        {"crawl": PoolSpec(), "embed": PoolSpec(slots=2, cores=1, cpus=(2, 3))}, cpus=range(4)
    )
    assert [plan.cpus for plan in plans if plan.pool == "embed"] == [(2,), (3,)]


def test_more_cores_than_the_machine_has_are_cut() -> None:
    (plan,) = plan_slots({"generate": PoolSpec(slots=1, cores=8)}, cpus=(0, 1))
    assert plan.cpus == (0, 1)


@given(
    slots=st.integers(0, 5),
    cores=st.integers(1, 5),
    cpus=st.lists(st.integers(0, 63), min_size=1, max_size=8, unique=True),
)
def test_every_slot_has_distinct_cpus_of_the_machine(
    slots: int, cores: int, cpus: list[int]
) -> None:
    plans = plan_slots({"a": PoolSpec(slots, cores), "b": PoolSpec(slots, cores)}, cpus=cpus)
    assert len(plans) == 2 * slots
    for plan in plans:
        assert set(plan.cpus) <= set(cpus)
        assert len(set(plan.cpus)) == len(plan.cpus) == min(cores, len(cpus))


def test_usable_cpus_are_those_of_this_process() -> None:
    import os

    assert set(usable_cpus()) == os.sched_getaffinity(0)


def test_threads_of_native_libraries_are_held_to_the_slot() -> None:
    assert thread_environment(3)["OMP_NUM_THREADS"] == "3"
