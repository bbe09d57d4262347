"""The numbers that harness and handlers share by mapping one file."""

from pathlib import Path

import pytest

from bench.peers.stamps import Stamps


@pytest.fixture
def stamps(tmp_path: Path) -> Stamps:
    return Stamps.create(tmp_path / "stamps", 100)


def test_another_process_sees_what_a_handler_stamps(stamps: Stamps, tmp_path: Path) -> None:
    handler = Stamps(tmp_path / "stamps", worker=1)
    handler.ready()
    assert handler.begin(7) is False
    assert stamps.is_ready(1)
    assert not stamps.is_ready(0)
    assert stamps.done()[:3] == [0, 1, 0]
    assert stamps.started_ns(7) > 0
    assert stamps.again_ns(7) == 0


def test_a_held_job_is_held_once_and_its_second_run_is_told_apart(stamps: Stamps) -> None:
    stamps.hold(on=True)
    assert stamps.begin(3) is True
    first_ns = stamps.started_ns(3)
    assert stamps.begin(3) is False
    assert stamps.started_ns(3) == first_ns
    assert stamps.again_ns(3) >= first_ns
    assert stamps.total() == 2


def test_waiting_counts_from_the_call_or_from_the_commit(stamps: Stamps) -> None:
    numbers = range(10, 14)
    stamps.offered(numbers)
    stamps.accepted(numbers)
    for number in range(10, 13):
        stamps.begin(number)
    since_call = stamps.waited_ms(numbers, since="offered")
    since_commit = stamps.waited_ms(numbers, since="accepted")
    assert len(since_call) == len(since_commit) == 3
    assert all(call >= commit for call, commit in zip(since_call, since_commit, strict=True))


def test_the_commit_is_said_once_whoever_says_it_first(stamps: Stamps) -> None:
    stamps.offered(range(5, 6))
    stamps.accepted(range(5, 6))
    stamps.begin(5)
    waited_ms = stamps.waited_ms(range(5, 6), since="accepted")
    stamps.accepted(range(5, 6))
    assert stamps.waited_ms(range(5, 6), since="accepted") == waited_ms


def test_a_job_begun_before_its_commit_returned_has_not_waited(stamps: Stamps) -> None:
    stamps.begin(1)
    stamps.accepted(range(1, 2))
    assert stamps.waited_ms(range(1, 2), since="accepted") == [0.0]


def test_clear_forgets_everything(stamps: Stamps) -> None:
    stamps.begin(1)
    stamps.clear()
    assert stamps.total() == 0
    assert stamps.started_ns(1) == 0
