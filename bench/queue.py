"""`make bench-queue`: our queue beside its peers, on the same servers, in one run.

Repetitions are interleaved (A B C A B C), so that a machine that slows down slows everybody; what
is kept is the median. `--continue` adds a slice to the results of the last run.
"""

import argparse
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import anyio

from bench import drain, environments, failures, http, latency, own, report, watchers
from bench.bed import Bed, BenchError, open_bed
from bench.measure import QUERIES
from bench.results import Book, Result
from bench.systems import OURS, PEERS, System
from cli import trial

QUICK_SCALE = 0.2
QUICK_PARTS = ("enqueue", "drain", "latency")
# They wait or count, which no drift of the machine changes: once is enough.
ONCE = frozenset({"rescue", "flush", "shutdown"})


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run measures."""

    parts: tuple[str, ...]
    systems: tuple[System, ...]
    repetitions: int
    scale: float
    continues: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement of one system."""

    name: str
    measure: Callable[[Bed], Awaitable[list[Result]]]


def main() -> None:
    """Measure, print the table, write the files."""
    trial.end_cleanly_on_sigterm()
    plan = _plan(sys.argv[1:])
    for system in plan.systems:
        if system is not OURS:
            environments.interpreter(system.environment)
    try:
        failures = anyio.run(_run, plan)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(1 if failures else 0)


def _plan(arguments: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(prog="make bench-queue", description=__doc__)
    names = [system.name for system in (OURS, *PEERS)]
    parser.add_argument("--part", action="append", choices=[*PARTS], help="default: all of them")
    parser.add_argument("--system", action="append", choices=names, help="default: all of them")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the jobs and seconds of a measurement"
    )
    parser.add_argument("--quick", action="store_true", help="two minutes: the speeds, short, once")
    parser.add_argument(
        "--continue", action="store_true", dest="continues", help="add to the last run's results"
    )
    chosen = parser.parse_args(arguments)
    wanted = chosen.system or names
    return Plan(
        tuple(chosen.part or (QUICK_PARTS if chosen.quick else PARTS)),
        tuple(system for system in (OURS, *PEERS) if system.name in wanted),
        1 if chosen.quick else chosen.repeat,
        QUICK_SCALE if chosen.quick else chosen.scale,
        chosen.continues,
    )


async def _run(plan: Plan) -> list[str]:
    """Measure everything; what could not be measured is answered, and the rest goes on."""
    failures: list[str] = []
    book = Book("queue", continues=plan.continues)
    try:
        async with open_bed() as bed:
            await _describe(bed)
            for repetition in range(plan.repetitions):
                for step in _steps(plan, repetition):
                    title = f"{repetition + 1}/{plan.repetitions} {step.name}"
                    await _measure(bed, step, title, book=book, failures=failures)
    finally:
        # Also what an interrupted run has measured.
        report.show(book.close())
    sys.stdout.writelines(f"FAILED {failure}\n" for failure in failures)
    return failures


async def _measure(bed: Bed, step: Step, title: str, *, book: Book, failures: list[str]) -> None:
    """Take one step; its results go into the book, its failure into the list."""
    began = time.monotonic()
    try:
        results = await step.measure(bed)
    except (BenchError, trial.TrialError) as error:
        failures.append(f"{title}: {error}")
        sys.stdout.write(f"FAILED {failures[-1]}\n")
        return
    book.add(results)
    _say(title, results, began)


def _steps(plan: Plan, repetition: int) -> Iterator[Step]:
    """One repetition: each part over all systems, before the next part."""
    for part in plan.parts:
        if repetition == 0 or part not in ONCE:
            yield from PARTS[part](plan)


def _for_each(measure: Callable[..., Awaitable[list[Result]]], plan: Plan) -> Iterator[Step]:
    for system in plan.systems:
        yield Step(system.name, partial(measure, system=system, scale=plan.scale))


def _drains(plan: Plan) -> Iterator[Step]:
    for workers in (1, 2):
        for system in plan.systems:
            measure = partial(drain.measure_drain, system=system, workers=workers, scale=plan.scale)
            yield Step(f"drain by {workers}", measure)


def _rescues(plan: Plan) -> Iterator[Step]:
    if OURS in plan.systems:
        yield Step("rescue of a slot", failures.measure_own_slot)
    yield Step("rescue of a worker", partial(failures.measure_rescues, systems=plan.systems))


def _own(plan: Plan) -> Iterator[Step]:
    """What only ours promises, limits and shutdowns, and only where ours is measured."""
    if OURS not in plan.systems:
        return
    for keys in own.KEYS:
        measure = partial(own.measure_keyed_drain, scale=plan.scale, keys=keys)
        yield Step("drain with limits", measure)
    for saturated in (False, True):
        measure = partial(own.measure_saturated_key, scale=plan.scale, saturated=saturated)
        yield Step("saturated key", measure)


def _shutdowns(plan: Plan) -> Iterator[Step]:
    yield Step("shutdowns", partial(own.measure_shutdowns, scale=plan.scale))


def _http(plan: Plan) -> Iterator[Step]:
    yield Step("http", lambda _: http.measure(plan.scale))


def _watchers(plan: Plan) -> Iterator[Step]:
    yield Step("watchers", lambda _: watchers.measure(plan.scale))


PARTS: Mapping[str, Callable[[Plan], Iterator[Step]]] = {
    "enqueue": partial(_for_each, drain.measure_single),
    "drain": _drains,
    "latency": partial(_for_each, latency.measure_idle),
    "load": partial(_for_each, latency.measure_load),
    "rescue": _rescues,
    "flush": partial(_for_each, failures.measure_flush),
    "http": _http,
    "watchers": _watchers,
    "limits": _own,
    "shutdown": _shutdowns,
}


async def _describe(bed: Bed) -> None:
    rows = await bed.admin.fetch(QUERIES["durability"])
    server = await bed.redis.info("server")
    policy = await bed.redis.config_get("append*")
    for line in report.machine():
        sys.stdout.write(f"{line}\n")
    sys.stdout.write("PostgreSQL: " + ", ".join(f"{r['name']}={r['setting']}" for r in rows) + "\n")
    version = server.get("valkey_version") or server["redis_version"]
    shown = f"appendonly={policy['appendonly']}, appendfsync={policy['appendfsync']}"
    sys.stdout.write(f"Valkey {version}: {shown}\n")
    sys.stdout.flush()


def _say(step: str, results: Sequence[Result], began: float) -> None:
    names = ", ".join(sorted({result.system for result in results}))
    values = ", ".join(f"{r.measure} {r.value:,.1f} {r.unit}" for r in results)
    sys.stdout.write(f"{step} of {names} ({time.monotonic() - began:.1f} s): {values}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
