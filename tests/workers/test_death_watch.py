"""Who is dead: counters that stand still under an unbroken watch, and nobody else."""

from jobs.model import SlotId
from jobs.slots import UNKNOWN, Beat
from workers.sweeper import DeathWatch

A, B = SlotId(1), SlotId(2)


def looks(watch: DeathWatch, *rounds: tuple[float, dict[SlotId, int]]) -> list[list[SlotId]]:
    return [
        watch.look({slot: Beat(count, UNKNOWN) for slot, count in counts.items()}, now)
        for now, counts in rounds
    ]


def test_a_counter_that_stands_still_for_the_limit_is_dead() -> None:
    found = looks(
        DeathWatch(10), *((float(second), {A: 5, B: second}) for second in range(100, 112))
    )
    assert found[:10] == [[]] * 10
    assert found[10] == [A]


def test_a_beat_starts_the_watch_again() -> None:
    watch = DeathWatch(10)
    rounds = [(100.0 + s, {A: 1 if s < 9 else 2}) for s in range(18)]
    assert all(dead == [] for dead in looks(watch, *rounds))


def test_a_lost_connection_is_nobodys_death() -> None:
    watch = DeathWatch(10)
    looks(watch, *((100.0 + s, {A: 1}) for s in range(9)))
    watch.restart()
    assert looks(watch, *((109.0 + s, {A: 1}) for s in range(10))) == [[]] * 10


def test_a_pause_of_the_watcher_itself_is_nobodys_death() -> None:
    watch = DeathWatch(10)
    assert looks(watch, (100.0, {A: 1}), (101.0, {A: 1}), (160.0, {A: 1})) == [[], [], []]


def test_a_slot_that_is_gone_is_forgotten() -> None:
    watch = DeathWatch(2)
    looks(watch, (100.0, {A: 1}), (101.0, {}))
    assert looks(watch, (101.5, {A: 1}), (102.2, {A: 1})) == [[], []]
