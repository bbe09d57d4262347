"""Which cpus each slot is pinned to: the same answer in every process of a host, from settings
alone.

Cpus come from this process's affinity (so a container's cpuset counts), physical cores first and
siblings together, so that two busy slots share a core's hardware threads only when cores have run
out.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.pools import PoolSpec

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """One slot: its pool, its number within the pool (from 0), and the cpus it runs on."""

    pool: str
    number: int
    cpus: tuple[int, ...]


def plan_slots(
    pools: Mapping[str, PoolSpec], cpus: Sequence[int] | None = None
) -> tuple[SlotPlan, ...]:
    """Deal cpus to all slots of all pools, round robin in `cpus` order (default: `usable_cpus()`).

    A pool that names its cpus deals from those. More threads than cpus are cut to what is there.
    """
    order = tuple(usable_cpus() if cpus is None else cpus)
    plans: list[SlotPlan] = []
    cursor = 0
    for pool, spec in pools.items():
        own = tuple(cpu for cpu in spec.cpus if cpu in order) or order
        start = 0 if spec.cpus else cursor
        for number in range(spec.slots):
            width = min(spec.cores, len(own))
            first = start + number * width
            plans.append(
                SlotPlan(
                    pool, number, tuple(sorted(own[(first + i) % len(own)] for i in range(width)))
                )
            )
        if not spec.cpus:
            cursor += spec.slots * min(spec.cores, len(own))
    return tuple(plans)


def usable_cpus() -> tuple[int, ...]:
    """The cpus this process may use: one hardware thread of each core first, then siblings."""
    allowed = sorted(os.sched_getaffinity(0))
    rank = {cpu: _siblings(cpu).index(cpu) for cpu in allowed}
    return tuple(sorted(allowed, key=lambda cpu: (rank[cpu], cpu)))


def _siblings(cpu: int) -> list[int]:
    """Hardware threads of the cpu's core, itself included; alone when the kernel does not say."""
    try:
        text = Path(_TOPOLOGY.format(cpu)).read_text(encoding="ascii")
        threads = [thread for part in text.strip().split(",") for thread in _expand(part)]
    except (OSError, ValueError):
        return [cpu]
    return threads if cpu in threads else [cpu]


def _expand(part: str) -> range:
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def thread_environment(cores: int) -> dict[str, str]:
    """Environment that holds every native library of a slot to its cores, without spinning."""
    count = str(cores)
    return {
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "NUMEXPR_NUM_THREADS": count,
        "RAYON_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        # An arena a thread keeps what it has freed: two are enough for a few threads.
        "MALLOC_ARENA_MAX": "2",
    }
