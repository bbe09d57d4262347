"""What is compared: each system with the settings that it runs under, which the report prints.

The settings are the fastest that a peer's documentation offers without giving up what it promises;
docs/benchmarks.md says why for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class System:
    """One queue under one set of settings."""

    name: str
    module: str
    server: Literal["postgres", "valkey"]
    # How many jobs of a drain keep one worker busy for a few seconds on a small machine.
    jobs: int
    # Jobs of one bulk enqueue; 1 where the system has none.
    chunk: int = 1
    settings: Mapping[str, object] = field(default_factory=dict)
    # Jobs a second that leave its worker idle between two of them.
    idle_jobs_per_s: float = 25.0
    # Drains by one and two workers as measured once before on two cores: far below them, the peer
    # is set up wrongly and no ratio may be quoted.
    seen_jobs_per_s: tuple[float, ...] = ()

    @property
    def environment(self) -> str:
        """The lock and the environment that it runs in."""
        return self.module.rpartition(".")[2]


OURS = System("xnai", "bench.ours", "postgres", 200_000, chunk=5000)

PEERS = (
    System("arq", "bench.peers.arq", "valkey", 800, idle_jobs_per_s=10.0, seen_jobs_per_s=(206,)),
    System(
        "arq tuned",
        "bench.peers.arq",
        "valkey",
        10_000,
        settings={"poll_delay": 0.001, "max_jobs": 100, "keep_result": 0, "log_results": False},
        seen_jobs_per_s=(2770, 2460),
    ),
    System("taskiq", "bench.peers.taskiq", "valkey", 20_000, seen_jobs_per_s=(5320, 8750)),
    System(
        "taskiq with results",
        "bench.peers.taskiq",
        "valkey",
        12_000,
        settings={"result_backend": True},
        seen_jobs_per_s=(2970, 4810),
    ),
    System(
        "SAQ",
        "bench.peers.saq",
        "valkey",
        12_000,
        chunk=100,
        settings={"max_concurrent_ops": 100, "worker": {"concurrency": 100}},
        seen_jobs_per_s=(2850, 4220),
    ),
    System(
        "SAQ on Postgres",
        "bench.peers.saq",
        "postgres",
        5_000,
        chunk=100,
        settings={"worker": {"concurrency": 100}},
        seen_jobs_per_s=(1130, 1350),
    ),
    System(
        "streaq",
        "bench.peers.streaq",
        "valkey",
        8_000,
        chunk=500,
        settings={"concurrency": 100},
        seen_jobs_per_s=(1670, 2400),
    ),
    System(
        "procrastinate",
        "bench.peers.procrastinate",
        "postgres",
        3_000,
        chunk=1000,
        settings={"max_size": 20, "worker": {"concurrency": 20}},
        seen_jobs_per_s=(814, 711),
    ),
    System(
        "pgqueuer",
        "bench.peers.pgqueuer",
        "postgres",
        60_000,
        chunk=5000,
        settings={"batch_size": 100},
        seen_jobs_per_s=(16_100, 28_700),
    ),
    System(
        "pgqueuer batch 1000",
        "bench.peers.pgqueuer",
        "postgres",
        80_000,
        chunk=5000,
        settings={"batch_size": 1000},
        seen_jobs_per_s=(21_500,),
    ),
)
