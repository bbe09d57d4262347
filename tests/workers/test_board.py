"""The page that a slot shares with its supervisor."""

import os
import subprocess
import sys
from uuid import uuid4

from workers.board import ENTRIES_MAX, Board, Started


def test_the_other_holder_sees_what_is_started_and_what_has_ended() -> None:
    board = Board.create()
    other = Board(os.dup(board.fd))
    first, second = (Started(uuid4(), n, 10, 20, exclusive=bool(n)) for n in range(2))
    entry = board.put(first)
    board.put(second)
    assert sorted(other.read(), key=lambda job: job.token) == [first, second]
    board.clear(entry)
    assert other.read() == [second]
    board.turn()
    assert other.turned_ns == board.turned_ns > 0


def test_entries_are_used_again() -> None:
    board = Board.create()
    job = Started(uuid4(), 1, 1, 1, exclusive=False)
    for _ in range(2 * ENTRIES_MAX):
        board.clear(board.put(job))
    assert board.read() == []


def test_another_process_reads_the_page_through_an_inherited_descriptor() -> None:
    board = Board.create()
    board.put(Started(uuid4(), 7, 1, 2, exclusive=True))
    script = f"from workers.board import Board; print(Board({board.fd}).read()[0].token)"
    found = subprocess.run(
        [sys.executable, "-c", script],
        pass_fds=(board.fd,),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "7"
