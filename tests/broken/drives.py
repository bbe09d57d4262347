"""Interleavings in which a broken ledger breaks, and ours must not."""

from jobs.model import NewJob, Unique
from tests.broken.stage import KIND, Stage

JOB = NewJob(KIND, {})
LIMITED = NewJob(KIND, {}, concurrency_key="k")
UNIQUE = NewJob(KIND, {}, unique=Unique("u"))


async def a_zombie_ends_its_job(stage: Stage) -> None:
    """A stopped slot wakes up after its job was given to another, and says that it is done."""
    await stage.submit(JOB)
    zombie, healthy = await stage.slot(), await stage.slot()
    [first] = await stage.claim(zombie)
    await stage.die(zombie)
    [second] = await stage.claim(healthy)
    await stage.succeed(first)
    await stage.succeed(second)


async def a_zombie_writes(stage: Stage) -> None:
    """The same, with what a handler writes before it returns."""
    await stage.submit(JOB)
    zombie, healthy = await stage.slot(), await stage.slot()
    [first] = await stage.claim(zombie)
    await stage.die(zombie)
    [second] = await stage.claim(healthy)
    await stage.write_fenced(first)
    await stage.write_fenced(second)
    await stage.end(second)


async def postgres_dies_at_the_commit(stage: Stage) -> None:
    """A client is answered, or it is not; the job is there, or it is not."""
    await stage.submit_while_postgres_dies(JOB)


async def a_slot_dies_with_its_jobs(stage: Stage) -> None:
    """A slot has taken a job and dies before it can say anything."""
    await stage.submit(JOB)
    lost, healthy = await stage.slot(), await stage.slot()
    await stage.claim(lost)
    await stage.die(lost)
    for job in await stage.claim(healthy):
        await stage.succeed(job)


async def a_long_job_is_swept_over(stage: Stage) -> None:
    """A slot lives and runs one job for long, while sweepers look for what is dead."""
    await stage.submit(JOB)
    patient, eager = await stage.slot(), await stage.slot()
    [job] = await stage.claim(patient)
    await stage.sweep()
    for other in await stage.claim(eager):
        await stage.succeed(other)
    await stage.succeed(job)


async def two_submits_want_one_permit(stage: Stage) -> None:
    """Two jobs of a key that lets one run come in at once, and whatever is queued runs."""
    slot = await stage.slot()
    await stage.submit(LIMITED)
    for job in await stage.claim(slot):
        await stage.succeed(job)
    await stage.submit_side_by_side(LIMITED, LIMITED)
    running = await stage.claim(slot)
    for job in running:
        await stage.succeed(job)
    for job in await stage.claim(slot):
        await stage.succeed(job)


async def two_submits_want_one_unique_key(stage: Stage) -> None:
    """Two jobs of one unique key come in at once."""
    await stage.submit_side_by_side(UNIQUE, UNIQUE)
