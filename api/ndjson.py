"""A batch as a stream of lines: validated as it arrives, all of it or nothing.

What is kept meanwhile is the checked jobs, bounded by their number and by the body's size; the raw
text is not.
"""

import hashlib
from dataclasses import dataclass, field

from pydantic import ValidationError
from starlette.requests import Request

from api.errors import FieldError, Problem, from_pydantic, invalid, invalid_fields
from api.job_requests import JobChecker, JobRequest
from api.limits import BAD_LINES_NAMED, BATCH_NDJSON_JOBS, lines, too_many_jobs
from api.strict_json import MalformedJson, RefusedJson, loads
from jobs.errors import JobsRefused
from jobs.model import NewJob

MEDIA_TYPES = ("application/x-ndjson", "application/jsonl", "application/ndjson")


@dataclass(slots=True)
class Lines:
    """The jobs of a stream, the line of each, and a hash of the whole for Idempotency-Key."""

    jobs: list[NewJob] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    digest: bytes = b""


async def read_jobs(request: Request, checker: JobChecker) -> Lines:
    """Read and check every line. Raises one Problem that names each bad line by its 1-based
    number.
    """
    found, bad, count = Lines(), BadLines(), 0
    hasher = hashlib.sha256()
    async for number, line in lines(request):
        hasher.update(line + b"\n")
        count += 1
        if count > BATCH_NDJSON_JOBS:
            raise too_many_jobs(BATCH_NDJSON_JOBS)
        checked = _check_line(line, checker)
        if isinstance(checked, list):
            bad.add(number, checked)
        elif not bad.errors:
            found.jobs.append(checked)
            found.numbers.append(number)
    if bad.errors:
        raise bad.problem()
    if not count:
        raise invalid("", "a batch holds at least one job")
    found.digest = hasher.digest()
    return found


class BadLines:
    """What is wrong, by line: the first hundred entries in full, all of them counted."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []
        self.lines = 0

    def add(self, number: int, errors: list[FieldError]) -> None:
        """Note a bad line."""
        self.lines += 1
        room = BAD_LINES_NAMED - len(self.errors)
        self.errors.extend({**error, "line": number} for error in errors[:room])

    def problem(self) -> Problem:
        """The 422 of a batch of which nothing was accepted."""
        problem = invalid_fields(self.errors)
        problem.detail = f"{self.lines} bad lines, nothing was accepted; {problem.detail}"
        return problem


def refused(error: JobsRefused, numbers: list[int]) -> Problem:
    """The ledger's refusals by line."""
    bad = BadLines()
    for refusal in error.refusals:
        entry: FieldError = {"pointer": refusal.pointer, "detail": refusal.detail}
        bad.add(numbers[refusal.position], [entry])
    return bad.problem()


def _check_line(line: bytes, checker: JobChecker) -> NewJob | list[FieldError]:
    try:
        return checker.check(JobRequest.model_validate(loads(line)))
    except MalformedJson as error:
        return [{"pointer": "", "detail": f"not JSON: {error}"}]
    except RefusedJson as error:
        return [{"pointer": error.pointer, "detail": str(error)}]
    except ValidationError as error:
        return from_pydantic(error.errors(include_url=False, include_input=False))
