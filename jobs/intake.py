"""Checks a set of new jobs and orders it: what can be refused without a database. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from uuid import UUID

from jobs.errors import JobsRefused, Refusal
from jobs.kinds import Kind, KindRegistry, UnknownKind
from jobs.model import NewJob
from runtime.ids import uuid7s


@dataclass(slots=True)
class Entry:
    """A new job on its way in. `duplicate_of` is the job that holds its unique key."""

    position: int
    job: NewJob
    kind: Kind
    id: UUID
    parents: set[UUID] = field(default_factory=set)
    duplicate_of: UUID | None = None

    def afresh(self) -> "Entry":
        """The same job before anything was found out about it."""
        return Entry(self.position, self.job, self.kind, self.id)

    @property
    def final_id(self) -> UUID:
        """The id that answers for this job."""
        return self.id if self.duplicate_of is None else self.duplicate_of


def check(jobs: Sequence[NewJob], kinds: KindRegistry) -> list[Entry]:
    """Give each job its kind and its id; raises JobsRefused, which names every bad one."""
    refusals: list[Refusal] = []
    known = [_kind_of(position, job, kinds, refusals) for position, job in enumerate(jobs)]
    custom_ids = _custom_ids(jobs, refusals)
    order = _parents_first(jobs, custom_ids, refusals)
    if refusals:
        raise JobsRefused(tuple(refusals))
    ids = dict(zip(order, uuid7s(len(jobs)), strict=True))
    return [
        Entry(position, job, kind, ids[position])
        for position, (job, kind) in enumerate(zip(jobs, known, strict=True))
        if kind is not None
    ]


def _kind_of(
    position: int, job: NewJob, kinds: KindRegistry, refusals: list[Refusal]
) -> Kind | None:
    def refuse(pointer: str, detail: str) -> None:
        refusals.append(Refusal(position, pointer, detail))

    if not 0 <= job.priority <= 9:
        refuse("/priority", f"is {job.priority}: choose 0 (last) to 9 (first)")
    if job.run_at is not None and job.delay_s is not None:
        refuse("/delay_s", "give run_at or delay_s, not both")
    if job.max_attempts is not None and not 1 <= job.max_attempts <= 1000:
        refuse("/max_attempts", f"is {job.max_attempts}: choose 1 to 1000")
    if job.timeout_s is not None and not job.timeout_s > 0:
        refuse("/timeout_s", f"is {job.timeout_s:g}: choose more than 0 seconds")
    if job.unique is not None and (job.unique.until == "time") != (job.unique.for_s is not None):
        refuse("/unique/for_s", 'goes with until "time", and only with it')
    try:
        return kinds[job.kind]
    except UnknownKind as error:
        refuse("/kind", str(error))
        return None


def _custom_ids(jobs: Sequence[NewJob], refusals: list[Refusal]) -> dict[str, int]:
    positions: dict[str, int] = {}
    for position, job in enumerate(jobs):
        if job.custom_id is None:
            continue
        first = positions.setdefault(job.custom_id, position)
        if first != position:
            detail = (
                f"{job.custom_id!r} names job {first} already: custom_ids are unique in a batch"
            )
            refusals.append(Refusal(position, "/custom_id", detail))
    return positions


def _parents_first(
    jobs: Sequence[NewJob], custom_ids: dict[str, int], refusals: list[Refusal]
) -> Sequence[int]:
    """Positions with parents before their children, so that ids, which are locked in order, are
    too.
    """
    if not any(job.depends_on for job in jobs):
        return range(len(jobs))
    graph = {
        position: [custom_ids[name] for name in job.depends_on if name in custom_ids]
        for position, job in enumerate(jobs)
    }
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = sorted(set(error.args[1]))
        detail = f"jobs {', '.join(map(str, circle))} wait for each other: break the circle"
        refusals.append(Refusal(circle[0], "/depends_on", detail))
        return range(len(jobs))
