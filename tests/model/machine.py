"""Drives the real ledger and the reference side by side and compares them after every step.

The machine owns the clock: a millisecond a step, more when time is what is tested. A step that
disagrees fails with the story so far, in which jobs are j1, j2, … and slots s1, s2, ….
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from chaos import history as seen
from jobs import batches, idempotency, ledger, limits, pools, slots
from jobs.batches import NewBatch
from jobs.errors import IdempotencyMismatch, SlotEnded, StateConflict
from jobs.idempotency import StoredAnswer
from jobs.model import DEFAULT_TENANT, Accepted, ClaimedJob, SlotId
from jobs.results import Ended
from jobs.states import BatchState
from runtime.postgres import Connection
from tests.model.reference import EndedAttempt, EndingName, ModelBatch, Wish
from tests.model.wishes import AFTER_S, ENDINGS, KEYS, ending_of, told, wishes
from tests.model.witness import Witness
from tests.model.world import KIND, KINDS, POOL

_NOBODY = UUID(int=0)

picks = st.integers(0, 60)


class LedgerMachine(Witness):
    """The life of a few jobs in the hands of a few slots."""

    @initialize()
    def slots_start(self) -> None:
        self.slots = [self.world.slot(), self.world.slot()]

    # How jobs come in

    @rule(
        asked=st.lists(wishes(), min_size=1, max_size=3),
        parents=st.lists(picks, max_size=2),
        siblings=st.booleans(),
        batch=st.sampled_from(("none", "none", "new", "open")),
    )
    def enqueue(self, asked: list[Wish], parents: list[int], siblings: bool, batch: str) -> None:
        self.passed()
        found = tuple(self.some(parents)) if parents else ()
        full = [self.numbered(wish) for wish in asked]
        full[-1] = replace(full[-1], parents=found)
        if siblings and len(full) > 1:
            full[-1] = replace(full[-1], siblings=(full[0].number,))
        jobs = self.jobs_of(full)

        async def submit(connection: Connection) -> tuple[list[Accepted], UUID | None]:
            batch_id = None
            if batch != "none":
                state = BatchState.OPEN if batch == "open" else BatchState.RUNNING
                new = NewBatch(state, callback_url="https://example.org/")
                batch_id = await batches.create(connection, DEFAULT_TENANT, new, now=self.now)
            accepted = await ledger.enqueue(
                connection, DEFAULT_TENANT, jobs, kinds=KINDS, batch_id=batch_id, now=self.now
            )
            return accepted, batch_id

        accepted, batch_id = self.world.in_transaction(submit)
        if batch_id is not None:
            state = BatchState.OPEN if batch == "open" else BatchState.RUNNING
            self.model.batches[batch_id] = ModelBatch(state)
        self.taken(full, accepted, batch_id)

    @rule(wish=wishes(plain=True), key=st.sampled_from("ab"), body=st.sampled_from("xxxy"))
    def submit_idempotently(self, wish: Wish, key: str, body: str) -> None:
        self.passed()
        numbered = self.numbered(wish)

        async def submit(connection: Connection) -> Accepted | StoredAnswer:
            kept = await idempotency.begin(connection, DEFAULT_TENANT, key, body.encode())
            if kept is not None:
                return kept
            [accepted] = await ledger.enqueue(
                connection, DEFAULT_TENANT, self.jobs_of([numbered]), kinds=KINDS, now=self.now
            )
            answer = StoredAnswer(202, {}, f'{{"id":"{accepted.id}"}}'.encode())
            await idempotency.finish(connection, DEFAULT_TENANT, key, answer)
            return accepted

        before = {item.idempotency_key: item.id for item in self.log.accepted}
        try:
            found = self.world.in_transaction(submit)
        except IdempotencyMismatch:
            self.tell(f"submit {body!r} under key {key!r} → refused")
            assert key in before, self.told("a fresh Idempotency-Key was refused")
            return
        if isinstance(found, StoredAnswer):
            self.tell(f"submit {body!r} under key {key!r} → replayed")
            told = found.body.decode()
            assert str(before.get(key)) in told, self.told(f"the key's answer became {told}")
            return
        assert key not in before, self.told("an Idempotency-Key made a second job")
        self.taken([numbered], [found], None)
        self.note(accepted=[seen.AcceptedJob(found.id, self.now, key)])

    @precondition(lambda self: self.open_batches())
    @rule(wish=wishes(), pick=picks)
    def append(self, wish: Wish, pick: int) -> None:
        self.passed()
        batch_id = self.open_batches()[pick % len(self.open_batches())]
        numbered = self.numbered(wish)
        accepted = self.world.do(
            lambda connection: ledger.enqueue(
                connection,
                DEFAULT_TENANT,
                self.jobs_of([numbered]),
                kinds=KINDS,
                batch_id=batch_id,
                now=self.now,
            )
        )
        self.taken([numbered], accepted, batch_id)

    def open_batches(self) -> list[UUID]:
        """Batches that take more jobs."""
        found = self.model.batches.items()
        return sorted(one for one, batch in found if batch.state is BatchState.OPEN)

    # How they run

    @rule(
        pick=picks,
        limit=st.integers(1, 4),
        ends=st.lists(st.sampled_from(ENDINGS), max_size=4),
        created=st.lists(wishes(plain=True), max_size=2),
    )
    def work(self, pick: int, limit: int, ends: list[EndingName], created: list[Wish]) -> None:
        """Claim, and end as many of what the slot has in hand as there are endings."""
        slot = self.slot_of(pick)
        self.claimed(slot, limit, alone_ok=not self.in_hand(slot))
        ended = self.in_hand(slot)[: len(ends)]
        if ended:
            self.recorded(slot, list(zip(ended, ends, strict=False)), created)

    @rule(pick=picks, limit=st.integers(1, 3))
    def claim(self, pick: int, limit: int) -> None:
        slot = self.slot_of(pick)
        self.claimed(slot, limit, alone_ok=not self.in_hand(slot))

    def in_hand(self, slot: SlotId) -> list[ClaimedJob]:
        return [job for job in self.held.values() if job.slot_id == slot]

    def claimed(self, slot: SlotId, limit: int, *, alone_ok: bool) -> None:
        self.passed()
        jobs = self.world.do(
            lambda connection: ledger.claim(
                connection, slot, POOL, [KIND], limit, alone_ok=alone_ok
            )
        )
        expected = self.model.claim(slot, limit, alone_ok=alone_ok)
        found = [job.id for job in jobs]
        self.tell(f"s{slot} claims {limit} → {self.named(found) or 'nothing'}")
        self.agree("the order of the claim", expected, found)
        self.held |= {job.id: job for job in jobs}
        self.note(runs=[seen.Run(job.id, job.token, job.attempt, slot, self.now) for job in jobs])
        self.compare()

    def recorded(
        self,
        slot: SlotId,
        ended: Sequence[tuple[ClaimedJob, EndingName]],
        created: Sequence[Wish] = (),
    ) -> None:
        """Record endings of held jobs; the first success creates follow-ups."""
        self.passed()
        follow_ups = [self.numbered(wish) for wish in created]
        first = next((job.id for job, ending in ended if ending == "succeed"), None)
        made = {job.id: follow_ups if job.id == first else [] for job, _ in ended}
        endings = [Ended(job, ending_of(name, self.jobs_of(made[job.id]))) for job, name in ended]
        done = self.world.do(
            lambda connection: ledger.record(
                connection, slot, endings, kinds=KINDS, rng=self.rng, now=self.now
            )
        )
        story = ", ".join(f"{self.named([job.id])} {name}" for job, name in ended)
        if follow_ups and first is not None:
            story += f" (creating {', '.join(map(told, follow_ups))})"
        self.tell(f"s{slot} records {story}")
        self.agree("nobody is stale", frozenset(), done.stale)
        self.let_go([job for job, _ in ended])
        _, ids = self.world.seen()
        self.model.record(
            EndedAttempt(
                job.id,
                name,
                AFTER_S,
                tuple((wish, ids.get(wish.number, _NOBODY)) for wish in made[job.id]),
            )
            for job, name in ended
        )
        self.compare()
        succeeded = [job for job, _ in ended if self.model.jobs[job.id].state == "succeeded"]
        self.note(effects=[seen.Effect(job.id, job.token, job.attempt) for job in succeeded])

    def let_go(self, jobs: Sequence[ClaimedJob]) -> None:
        """These attempts are over: whoever still believes in them is a zombie."""
        over = {job.token for job in jobs}
        runs = tuple(
            replace(run, ended_at=self.now) if run.token in over else run for run in self.log.runs
        )
        self.log = replace(self.log, runs=runs)
        for job in jobs:
            del self.held[job.id]
        self.zombies += jobs

    @precondition(lambda self: self.zombies)
    @rule(pick=picks, ending=st.sampled_from(ENDINGS), wish=wishes(plain=True))
    def record_late(self, pick: int, ending: EndingName, wish: Wish) -> None:
        """A zombie, or a repeated call: whatever it says, nothing happens."""
        self.passed()
        job = self.zombies[pick % len(self.zombies)]
        ended = Ended(job, ending_of(ending, self.jobs_of([self.numbered(wish)])))
        done = self.world.do(
            lambda connection: ledger.record(
                connection, job.slot_id, [ended], kinds=KINDS, rng=self.rng, now=self.now
            )
        )
        self.tell(f"s{job.slot_id} records {self.named([job.id])} {ending}, too late")
        self.agree("the zombie is stale", {job.id}, done.stale)
        self.compare()

    @rule(pick=picks, started=st.lists(st.booleans(), max_size=8), again=st.booleans())
    def slot_dies(self, pick: int, started: list[bool], again: bool) -> None:
        """A slot is declared dead and its jobs are rescued, perhaps by two sweepers."""
        self.passed()
        index = pick % len(self.slots)
        slot = self.slots[index]
        jobs = self.in_hand(slot)
        suspects = frozenset(
            job.id for job, is_started in zip(jobs, started, strict=False) if is_started
        )
        assert self.world.do(lambda connection: slots.end(connection, slot, "died"))
        self.died[slot] = self.now
        for _ in range(1 + again):
            self.world.portal.call(self._rescue, slot, suspects)
        self.tell(f"s{slot} dies with {self.named([job.id for job in jobs]) or 'nothing'}")
        self.model.lose(slot, suspects)
        self.let_go(jobs)
        with pytest.raises(SlotEnded):
            self.world.do(lambda connection: ledger.claim(connection, slot, POOL, [KIND], 1))
        self.slots[index] = self.world.slot()
        self.compare()

    @rule(pick=picks, times=st.integers(2, 4), limit=st.integers(1, 3))
    def slots_keep_dying(self, pick: int, times: int, limit: int) -> None:
        """Whatever is first in line kills its slot again and again."""
        for _ in range(times):
            slot = self.slot_of(pick)
            self.claimed(slot, limit, alone_ok=not self.in_hand(slot))
            self.slot_dies(pick, [True] * limit, again=False)

    async def _rescue(self, slot: SlotId, started: frozenset[UUID]) -> None:
        await slots.rescue(self.world.pool, slot, started=started, kinds=KINDS, now=self.now)

    # Time, and what users ask for

    @rule(seconds=st.sampled_from((1.0, 5.0, 61.0)))
    def time_passes(self, seconds: float) -> None:
        """Sweepers promote and expire."""
        self.passed(seconds)
        self.world.do(lambda connection: ledger.promote_due(connection, 1000, now=self.now))
        self.model.promote()
        done = self.world.do(lambda connection: ledger.expire(connection, 1000, now=self.now))
        self.tell(f"a sweep expires {self.named(done.expired) or 'nothing'}")
        self.agree("what expired", set(self.model.expire()), set(done.expired))
        self.compare()

    @rule(wanted=st.lists(picks, min_size=1, max_size=3), again=st.booleans())
    def cancel(self, wanted: list[int], again: bool) -> None:
        ids = self.some(wanted)
        for _ in range(1 + again):
            self.passed()
            done = self.world.do(
                lambda connection: ledger.cancel(connection, DEFAULT_TENANT, ids, now=self.now)
            )
            self.tell(f"cancel {self.named(ids)} → over: {self.named(done.cancelled) or 'none'}")
            self.agree("what is over", set(self.model.cancel(ids)), set(done.cancelled))
            self.cancelled(done.cancelled)
        self.compare()

    def cancelled(self, ids: Sequence[UUID]) -> None:
        at = self.now
        self.note(cancelled=[seen.Cancelled(one, at, at, was_waiting=True) for one in ids])

    @rule(wanted=st.lists(picks, min_size=1, max_size=3), again=st.booleans())
    def retry(self, wanted: list[int], again: bool) -> None:
        ids = self.some(wanted)
        for _ in range(1 + again):
            self.passed()
            done = self.world.do(
                lambda connection: ledger.retry(connection, DEFAULT_TENANT, ids, now=self.now)
            )
            self.tell(f"retry {self.named(ids)} → live again: {self.named(done.retried) or 'none'}")
            self.agree("what lives again", set(self.model.retry(ids)), set(done.retried))
            self.note(retried=[seen.Retried(one, self.now, self.now) for one in done.retried])
        self.compare()

    @rule(
        pick=picks,
        priority=st.sampled_from((None, 0, 9)),
        delay_s=st.sampled_from((None, -5.0, 30.0)),
    )
    def change(self, pick: int, priority: int | None, delay_s: float | None) -> None:
        self.passed()
        run_at = None if delay_s is None else self.now + timedelta(seconds=delay_s)
        for job_id in self.some([pick]):
            is_possible = self.changed(job_id, priority, run_at)
            self.tell(f"change {self.named([job_id])} to priority {priority}, delay {delay_s}")
            self.agree("a change", self.model.change(job_id, priority, run_at), is_possible)
            self.compare()

    def changed(self, job_id: UUID, priority: int | None, run_at: datetime | None) -> bool:
        async def change(connection: Connection) -> None:
            await ledger.change(
                connection,
                DEFAULT_TENANT,
                job_id,
                priority=priority,
                run_at=run_at,
                now=self.now,
            )

        try:
            self.world.do(change)
        except StateConflict:
            return False
        return True

    @rule(key=st.sampled_from(KEYS), concurrency=st.integers(0, 3))
    def set_limit(self, key: str, concurrency: int) -> None:
        self.passed()
        self.world.do(lambda connection: limits.put(connection, DEFAULT_TENANT, key, concurrency))
        self.tell(f"limit of {key} is {concurrency}")
        self.model.limits[key] = concurrency
        self.model.fill()
        self.note(limits=[seen.LimitSet(key, concurrency, self.now, self.now)])
        self.compare()

    @rule(is_paused=st.sampled_from((True, False, False)))
    def pause_or_resume(self, is_paused: bool) -> None:
        self.tell("pause" if is_paused else "resume")
        if is_paused:
            self.world.do(lambda connection: pools.pause(connection, POOL, by="model", reason="x"))
        else:
            self.world.do(lambda connection: pools.resume(connection, POOL))
        self.model.is_paused = is_paused

    @precondition(lambda self: self.model.batches)
    @rule(pick=picks, verb=st.sampled_from(("seal", "cancel", "retry")))
    def batch_verb(self, pick: int, verb: str) -> None:
        self.passed()
        known = sorted(self.model.batches)
        batch_id = known[pick % len(known)]
        own = [job for job in self.model.jobs.values() if job.batch == batch_id]
        batch = self.model.batches[batch_id]
        self.tell(f"{verb} batch b{known.index(batch_id)} of {self.named([job.id for job in own])}")
        if verb != "retry" and batch.state is BatchState.OPEN:
            batch.state = BatchState.RUNNING
        match verb:
            case "seal":
                self.world.do(lambda c: batches.seal(c, DEFAULT_TENANT, batch_id))
            case "cancel":
                done = self.world.do(
                    lambda c: batches.cancel(c, DEFAULT_TENANT, batch_id, now=self.now)
                )
                live = [job.id for job in own if job.lives()]
                self.agree("what is over", set(self.model.cancel(live)), set(done.cancelled))
                self.cancelled(done.cancelled)
            case _:
                again = self.world.do(
                    lambda c: batches.retry(c, DEFAULT_TENANT, batch_id, now=self.now)
                )
                sad = [job.id for job in own if job.state in {"failed", "cancelled"}]
                self.agree("what lives again", set(self.model.retry(sad)), set(again.retried))
                self.note(retried=[seen.Retried(one, self.now, self.now) for one in again.retried])
        self.compare()

    @rule()
    def sweep(self) -> None:
        """Batches finish, permits are audited: nothing else may move."""
        self.passed()
        done = self.world.do(lambda connection: batches.finish_due(connection, now=self.now))
        self.agree("finished batches", set(self.model.finish_batches()), set(done))
        ready = self.world.do(limits.audit)
        self.tell(f"{len(done)} batches finish")
        self.agree("what an audit gives out", {}, ready)
        self.compare()
