"""A batch as a stream of lines: validated as it arrives, all of it or nothing.

What is kept meanwhile is the checked jobs, bounded by their number and by the body's size; the raw
text is not.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import anyio
from pydantic import ValidationError
from starlette.requests import Request

from api.errors import FieldError, Problem, from_pydantic, invalid, invalid_fields
from api.job_requests import JobChecker, JobRequest
from api.limits import BAD_LINES_NAMED, BATCH_NDJSON_JOBS, too_many_jobs
from api.lines import at_line, line_blocks
from api.strict_json import MalformedJson, RefusedJson, loads
from jobs.errors import JobsRefused
from jobs.spool import Spool

MEDIA_TYPES = ("application/x-ndjson", "application/jsonl", "application/ndjson")


@dataclass(frozen=True, slots=True)
class Lines:
    """The line of each job of a stream, and a hash of the whole for Idempotency-Key."""

    numbers: Sequence[int]
    digest: bytes


async def read_jobs(request: Request, checker: JobChecker, spool: Spool) -> Lines:
    """Read and check every line into the spool. Raises one Problem that names each bad line by its
    1-based number.
    """
    numbers, bad = array("I"), BadLines()
    hasher = hashlib.sha256()
    async for first, block in line_blocks(request):
        for number, line in enumerate(block, first):
            if not line.strip():
                continue
            hasher.update(line + b"\n")
            numbers.append(number)
            if len(numbers) > BATCH_NDJSON_JOBS:
                raise too_many_jobs(BATCH_NDJSON_JOBS)
            try:
                errors = _check_line(line, checker, spool)
            except Problem as problem:
                raise at_line(number, problem) from None
            if errors:
                bad.add(number, errors)
        await anyio.lowlevel.checkpoint()
    if bad.errors:
        raise bad.problem()
    if not numbers:
        raise invalid("", "a batch holds at least one job")
    return Lines(numbers, hasher.digest())


class BadLines:
    """What is wrong, by line: the first hundred entries in full, every bad line by its number."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []
        self.numbers = array("I")

    def add(self, number: int, errors: list[FieldError]) -> None:
        """Note a bad line."""
        self.numbers.append(number)
        room = BAD_LINES_NAMED - len(self.errors)
        self.errors.extend({**error, "line": number} for error in errors[:room])

    def problem(self) -> Problem:
        """The 422 of a batch of which nothing was accepted."""
        problem = invalid_fields(self.errors)
        lines = "1 bad line" if len(self.numbers) == 1 else f"{len(self.numbers)} bad lines"
        problem.detail = f"{lines}, nothing was accepted; {problem.detail}"
        problem.more = {"bad_lines": self.numbers.tolist()}
        return problem


def refused(error: JobsRefused, numbers: Sequence[int]) -> Problem:
    """The ledger's refusals by line."""
    bad = BadLines()
    for refusal in error.refusals:
        entry: FieldError = {"pointer": refusal.pointer, "detail": refusal.detail}
        bad.add(numbers[refusal.position], [entry])
    return bad.problem()


def _check_line(line: bytes, checker: JobChecker, spool: Spool) -> list[FieldError]:
    try:
        return checker.add_to(spool, JobRequest.model_validate(loads(line)))
    except MalformedJson as error:
        return [{"pointer": "", "detail": f"not JSON: {error}"}]
    except RefusedJson as error:
        return [{"pointer": error.pointer, "detail": str(error)}]
    except ValidationError as error:
        return from_pydantic(error.errors(include_url=False, include_input=False))
