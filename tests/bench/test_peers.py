"""Each peer has an environment of its own, locked with hashes, and outside the product's locks."""

import re

import pytest

from bench import environments
from bench.systems import OURS, PEERS, System
from tests.support.repository import LOCKS

PIN = re.compile(r"^([A-Za-z0-9._-]+)==\S+.*\\$", re.MULTILINE)


@pytest.mark.parametrize("system", PEERS, ids=lambda system: system.name)
def test_a_peer_is_locked_with_hashes(system: System) -> None:
    lock = (environments.LOCKS / f"{system.environment}.txt").read_text()
    pins = PIN.findall(lock)
    assert len(pins) == len(re.findall(r"^[^\s#]", lock, re.MULTILINE))
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", lock)) >= len(pins)
    assert not re.search(r"^--|https?://", lock, re.MULTILINE)
    assert (environments.LOCKS / f"{system.environment}.in").exists()


def test_the_product_locks_no_peer_but_the_library_it_wakes_with() -> None:
    peers = {system.environment for system in PEERS} - {"arq"}
    locked = {name for lock in LOCKS for name in PIN.findall(lock.read_text())}
    assert peers & locked == set()


def test_names_tell_systems_apart() -> None:
    names = [system.name for system in (OURS, *PEERS)]
    assert len(set(names)) == len(names)
