"""What a pool is on this machine: slots, cores a slot, and optionally the cpus it may use.

Only the shape and its notation; pinning belongs to the supervisor that starts the slots.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BUILT_IN_POOLS = ("crawl", "embed", "index", "generate", "probe")
SLOTS_MAX = 256
CORES_MAX = 256

_POOL_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_SHAPE = re.compile(r"(?P<slots>\d{1,4})x(?P<cores>\d{1,4})(?:@(?P<cpus>[\d,+-]+))?")
_CPU_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_EXAMPLE = "embed=2x1@2-3,generate=1x2"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """`slots` processes of `cores` threads each; `cpus` is empty when any cpu will do."""

    slots: int = 1
    cores: int = 1
    cpus: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.slots <= SLOTS_MAX:
            message = f"slots is {self.slots}: choose 0 to {SLOTS_MAX} (0 starts none)"
            raise ValueError(message)
        if not 1 <= self.cores <= CORES_MAX:
            message = f"cores is {self.cores}: choose 1 to {CORES_MAX} cores a slot"
            raise ValueError(message)
        if self.cpus and len(self.cpus) < self.cores:
            message = (
                f"a slot of {self.cores} cores cannot run on {len(self.cpus)} cpus "
                f"({format_cpus(self.cpus)}): name more cpus or fewer cores"
            )
            raise ValueError(message)

    def __str__(self) -> str:
        return f"{self.slots}x{self.cores}" + (f"@{format_cpus(self.cpus)}" if self.cpus else "")


def parse_pools(value: object) -> dict[str, PoolSpec]:
    """Read `embed=2x1@2-3,generate=1x2`, or the tables `[pools.embed]` of xnai.toml."""
    if isinstance(value, str):
        return _parse_notation(value)
    if isinstance(value, Mapping):
        return {_pool_name(str(name)): _parse_table(str(name), t) for name, t in value.items()}
    message = f"pools is a {type(value).__name__}: write {_EXAMPLE!r} or tables [pools.embed]"
    raise ValueError(message)


def format_pools(pools: Mapping[str, PoolSpec]) -> str:
    """Write pools in the notation that `parse_pools` reads."""
    return ",".join(f"{name}={spec}" for name, spec in pools.items())


def format_cpus(cpus: tuple[int, ...]) -> str:
    """Write cpus as `0-3+8`, the notation after the `@` of a pool."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return "+".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def default_pools(cores: int | None = None) -> dict[str, PoolSpec]:
    """Return the pools of a machine with that many cores (default: those we may use).

    Pools share the cores: the stages of one crawl seldom all run at once, and the kernel shares
    fairly when they do. Embedding scales best over one-thread slots, generation over threads.
    """
    cores = core_count() if cores is None else cores
    return {
        "crawl": PoolSpec(slots=min(4, max(1, cores // 4))),
        "embed": PoolSpec(slots=min(8, cores)),
        "index": PoolSpec(),
        "generate": PoolSpec(slots=max(1, cores // 8), cores=min(4, cores)),
        "probe": PoolSpec(),
    }


def core_count() -> int:
    """Count the cores this process may use: its affinity, capped by the cgroup's cpu quota."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return allowed
    if quota == "max":
        return allowed
    return max(1, min(allowed, int(quota) // int(period)))


def _parse_notation(text: str) -> dict[str, PoolSpec]:
    pools: dict[str, PoolSpec] = {}
    for entry in _entries(text):
        name, _, shape = entry.partition("=")
        match = _SHAPE.fullmatch(shape.strip())
        if match is None:
            message = f"{entry!r} is not NAME=SLOTSxCORES[@CPUS]: write for example {_EXAMPLE}"
            raise ValueError(message)
        name = _pool_name(name.strip())
        if name in pools:
            message = f"pool {name!r} is named twice: keep one of them"
            raise ValueError(message)
        cpus = parse_cpus(match["cpus"] or "")
        pools[name] = PoolSpec(slots=int(match["slots"]), cores=int(match["cores"]), cpus=cpus)
    return pools


def _entries(text: str) -> list[str]:
    """Split at commas, except at those inside a list of cpus (`embed=2x1@0,2`)."""
    entries: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if entries and "@" in entries[-1] and _CPU_RANGE.fullmatch(part):
            entries[-1] += f"+{part}"
        else:
            entries.append(part)
    return entries


def parse_cpus(text: str) -> tuple[int, ...]:
    """Read `0-3+8` (or `0-3,8`) as sorted cpu numbers."""
    cpus: set[int] = set()
    for part in filter(None, re.split(r"[+,]", text)):
        match = _CPU_RANGE.fullmatch(part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            message = f"{text!r} is no list of cpus: write for example 2-3 or 0+2"
            raise ValueError(message)
        cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(cpus))


def _parse_table(name: str, table: object) -> PoolSpec:
    if isinstance(table, PoolSpec):
        return table
    if not isinstance(table, Mapping) or set(table) - {"slots", "cores", "cpus"}:
        message = f"[pools.{name}] takes slots, cores and cpus: remove what is not one of them"
        raise ValueError(message)
    slots, cores = table.get("slots", 1), table.get("cores", 1)
    if not (type(slots) is int and type(cores) is int):
        message = f"[pools.{name}]: slots and cores are whole numbers"
        raise ValueError(message)
    return PoolSpec(slots=slots, cores=cores, cpus=_table_cpus(name, table.get("cpus", "")))


def _table_cpus(name: str, cpus: object) -> tuple[int, ...]:
    if isinstance(cpus, str):
        return parse_cpus(cpus)
    if isinstance(cpus, list | tuple) and all(type(cpu) is int and cpu >= 0 for cpu in cpus):
        return tuple(sorted(set(cpus)))
    message = f'[pools.{name}]: cpus is a list of numbers, or a text such as "2-3"'
    raise ValueError(message)


def _pool_name(name: str) -> str:
    if not _POOL_NAME.fullmatch(name):
        message = f"{name!r} is no pool name: use lower-case letters, digits, _ and -, at most 63"
        raise ValueError(message)
    return name
