"""`depends_on`: finds and locks parents, and tells what those that ended already decide."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from jobs.aftermath import Verdict, verdict_on_parent
from jobs.errors import JobsRefused, Refusal
from jobs.intake import Entry
from jobs.model import TenantId
from jobs.states import JobState
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

# A job that is retried between the look at live ones and the look at ended ones is in neither.
_LOOKS = 3


@dataclass(slots=True)
class Parents:
    """The parents of a set of new jobs: which are live (or new), and how the others ended."""

    ended: dict[UUID, JobState] = field(default_factory=dict)

    def pending(self, entry: Entry) -> int:
        """How many parents the job waits for; one that decides its end is counted as well."""
        return sum(1 for parent in entry.parents if self._holds_back(entry, parent))

    def verdict(self, entry: Entry) -> Verdict | None:
        """How the job ends at once, because a parent had ended without success."""
        for parent in sorted(entry.parents):
            state = self.ended.get(parent)
            if state is not None:
                verdict = verdict_on_parent(entry.job.on_parent_failure, parent, state)
                if verdict is not None:
                    return verdict
        return None

    def _holds_back(self, entry: Entry, parent: UUID) -> bool:
        state = self.ended.get(parent)
        if state is None:
            return True
        return verdict_on_parent(entry.job.on_parent_failure, parent, state) is not None


async def lock_parents(
    connection: Connection, tenant_id: TenantId, batch_id: UUID | None, entries: Sequence[Entry]
) -> Parents:
    """Resolve `depends_on` into ids and lock the live ones; raises JobsRefused for unknown ones."""
    if not any(entry.job.depends_on for entry in entries):
        return Parents()
    names = await _names(connection, batch_id, entries)
    own = {entry.id for entry in entries}
    outside: set[UUID] = set()
    refusals: list[Refusal] = []
    for entry in entries:
        for index, name in enumerate(entry.job.depends_on):
            parent = names.get(name) or _as_id(name)
            if parent is None:
                detail = f"{name!r} is neither the id of a job nor a custom_id of this batch"
                refusals.append(Refusal(entry.position, f"/depends_on/{index}", detail))
            else:
                entry.parents.add(parent)
    for entry in entries:
        outside |= entry.parents - own
    parents = await _lock(connection, tenant_id, outside)
    refusals += _unknown(entries, own, outside, parents)
    if refusals:
        raise JobsRefused(tuple(refusals))
    return Parents({job_id: state for job_id, state in parents.items() if state is not None})


async def follow_duplicates(
    connection: Connection, tenant_id: TenantId, entries: Sequence[Entry], parents: Parents
) -> None:
    """Who depends on a job of this set whose unique key was taken depends on the holder of that
    key.
    """
    holders = {entry.id: entry.duplicate_of for entry in entries if entry.duplicate_of is not None}
    affected = [entry for entry in entries if entry.parents & holders.keys()]
    if not affected:
        return
    own = {entry.id for entry in entries}
    for entry in affected:
        entry.parents = {holders.get(parent) or parent for parent in entry.parents}
    outside = {parent for entry in affected for parent in entry.parents} - own
    found = await _lock(connection, tenant_id, outside)
    parents.ended.update({job_id: state for job_id, state in found.items() if state is not None})


async def add(connection: Connection, entries: Sequence[Entry], parents: Parents) -> None:
    """Write the edges to live parents, which will tell their dependents when they end."""
    edges = [
        (parent, entry.id)
        for entry in entries
        for parent in sorted(entry.parents)
        if parent not in parents.ended
    ]
    if edges:
        await connection.execute(
            QUERIES["add_dependencies"],
            [parent for parent, _ in edges],
            [job_id for _, job_id in edges],
        )
        inside = {entry.id for entry in entries} & {parent for parent, _ in edges}
        if inside:
            await connection.execute(QUERIES["mark_dependents"], sorted(inside))


async def _names(
    connection: Connection, batch_id: UUID | None, entries: Sequence[Entry]
) -> dict[str, UUID]:
    """custom_ids of this set, and those of earlier parts of the batch."""
    names = {entry.job.custom_id: entry.id for entry in entries if entry.job.custom_id is not None}
    wanted = {name for entry in entries for name in entry.job.depends_on} - set(names)
    if batch_id is not None and wanted:
        rows = await connection.fetch(QUERIES["find_custom_ids"], batch_id, list(wanted))
        names.update({row["custom_id"]: row["id"] for row in rows})
    return names


def _as_id(name: str) -> UUID | None:
    try:
        return UUID(name)
    except ValueError:
        return None


async def _lock(
    connection: Connection, tenant_id: TenantId, ids: set[UUID]
) -> dict[UUID, JobState | None]:
    """Live parents (None) and how the others ended; unknown ids are left out."""
    found: dict[UUID, JobState | None] = {}
    for _ in range(_LOOKS):
        missing = ids - found.keys()
        if not missing:
            break
        live = await connection.fetch(QUERIES["lock_parents"], tenant_id, sorted(missing))
        found.update(dict.fromkeys(row["id"] for row in live))
        rest = sorted(missing - found.keys())
        if rest:
            rows = await connection.fetch(QUERIES["finished_parents"], tenant_id, rest)
            found.update({row["id"]: JobState(row["state"]) for row in rows})
    return found


def _unknown(
    entries: Sequence[Entry],
    own: set[UUID],
    outside: set[UUID],
    found: dict[UUID, JobState | None],
) -> list[Refusal]:
    missing = outside - found.keys()
    return [
        Refusal(entry.position, "/depends_on", f"there is no job {parent}")
        for entry in entries
        for parent in sorted((entry.parents - own) & missing)
    ]
