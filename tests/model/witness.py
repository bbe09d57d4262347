"""What a machine knows and must see: a story, a log, and the comparison of both sides."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar
from uuid import UUID

from hypothesis.stateful import RuleBasedStateMachine

from chaos import history as seen
from chaos.checker import check, report
from chaos.collect import collect
from jobs.model import Accepted, ClaimedJob, NewJob, SlotId
from tests.model.reference import Model, Wish
from tests.model.wishes import new_job, told
from tests.model.world import World

START = datetime(2026, 6, 1, tzinfo=UTC)
CHECK_EVERY = 12


class Witness(RuleBasedStateMachine):
    """The real ledger on one side, the reference on the other, and the clock of both."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.reset()
        self.model = Model(START)
        self.log = seen.ClientLog()
        self.story: list[str] = []
        self.names: dict[UUID, str] = {}
        self.numbers = 0
        self.steps = 0
        self.held: dict[UUID, ClaimedJob] = {}
        self.zombies: list[ClaimedJob] = []
        self.slots: list[SlotId] = []
        self.died: dict[SlotId, datetime] = {}
        self.sizes: dict[UUID, int] = {}
        self.rng = random.Random(0)

    # What the machine knows

    @property
    def now(self) -> datetime:
        return self.model.now

    def note(self, **found: Sequence[object]) -> None:
        added = {name: (*getattr(self.log, name), *items) for name, items in found.items()}
        self.log = replace(self.log, **added)  # type: ignore[arg-type]  # fields by name

    def tell(self, line: str) -> None:
        self.story.append(f"{(self.now - START).total_seconds():9.3f} s  {line}")

    def named(self, ids: Sequence[UUID]) -> str:
        return " ".join(self.names.setdefault(one, f"j{len(self.names) + 1}") for one in ids)

    def some(self, wanted: Sequence[int]) -> list[UUID]:
        """Known jobs by picks."""
        known = sorted(self.model.jobs)
        return [known[pick % len(known)] for pick in wanted] if known else []

    def slot_of(self, pick: int) -> SlotId:
        return self.slots[pick % len(self.slots)]

    def numbered(self, wish: Wish) -> Wish:
        self.numbers += 1
        return replace(wish, number=self.numbers)

    def jobs_of(self, asked: Sequence[Wish]) -> list[NewJob]:
        return [new_job(wish, self.now) for wish in asked]

    def passed(self, seconds: float = 0.001) -> None:
        self.model.now += timedelta(seconds=seconds)

    def taken(
        self, asked: Sequence[Wish], accepted: Sequence[Accepted], batch_id: UUID | None
    ) -> None:
        """Tell the model, note the answers, compare."""
        ids = [job.id for job in accepted]
        by_number = {wish.number: job_id for wish, job_id in zip(asked, ids, strict=True)}
        answers = self.model.enqueue(list(zip(asked, ids, strict=True)), batch_id)
        self.model.fill()
        self.tell(f"enqueue {', '.join(map(told, asked))} → {self.named(ids)}")
        self.agree("who answers for each job", answers, ids)
        new = [pair for pair in zip(asked, accepted, strict=True) if not pair[1].deduplicated]
        for wish, job in new:
            parents = (*wish.parents, *(by_number[number] for number in wish.siblings))
            self.note(accepted=[seen.AcceptedJob(job.id, self.now, None, parents)])
        if batch_id is not None:
            self.sizes[batch_id] = self.sizes.get(batch_id, 0) + len(new)
        self.compare()

    # What must hold

    def compare(self) -> None:
        """Every job and batch is where the reference says."""
        found, _ = self.world.seen()
        expected = self.model.seen()
        for job_id in expected.keys() | found.keys():
            name = self.named([job_id])
            self.agree(f"{name} is", expected.get(job_id), found.get(job_id))
        for batch_id, state in self.world.batches().items():
            batch = self.model.batches[batch_id]
            self.agree("a batch is", (batch.state, batch.run), state)
        self.steps += 1
        if self.steps % CHECK_EVERY == 0:
            self.judge()

    def judge(self) -> None:
        """The shared checker finds nothing."""
        sizes = [seen.AcceptedBatch(one, self.now, size) for one, size in self.sizes.items()]
        log = replace(self.log, batches=tuple(sizes))
        history = self.world.do(lambda connection: collect(connection, log))
        # The ledger stamps a death with the server's clock; the machine has its own.
        history = replace(history, slots={slot: self.died.get(slot) for slot in history.slots})
        violations = check(history)
        assert not violations, self.told(report(violations))

    def teardown(self) -> None:
        self.judge()

    def agree(self, what: str, expected: object, found: object) -> None:
        assert expected == found, self.told(f"{what}: expected {expected}, found {found}")

    def told(self, end: str) -> str:
        names = ", ".join(f"{name} = {one}" for one, name in self.names.items())
        return "\n".join([end, "The story:", *self.story, names])
