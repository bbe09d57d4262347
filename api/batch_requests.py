"""What a batch or a part of one looks like as a request, read into a spool: JSON or one job a
line.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fastapi import Request
from pydantic import Field

from api import ndjson
from api.auth import Principal
from api.deps import Services
from api.errors import FieldError, invalid, invalid_fields
from api.job_requests import JobChecker, JobRequest, RequestModel, Tags, checker
from api.limits import BATCH_JSON_BYTES, BATCH_JSON_JOBS
from api.lines import check_packing
from api.routing import media_type_of, read_model
from jobs.batches import NewBatch
from jobs.errors import JobsRefused
from jobs.kinds import Url
from jobs.spool import Spool
from jobs.states import BatchState
from runtime.egress import EgressDenied

_MEDIA = "application/json or application/x-ndjson"


class BatchRequest(RequestModel):
    """A batch: its jobs, or `"state": "open"` to append them later."""

    jobs: Annotated[list[JobRequest], Field(max_length=BATCH_JSON_JOBS, default_factory=list)]
    state: Literal["open", "running"] = "running"
    callback_url: Url | None = None
    tags: Annotated[Tags, Field(default_factory=list)]


class PartRequest(RequestModel):
    """A part of an open batch."""

    jobs: Annotated[list[JobRequest], Field(min_length=1, max_length=BATCH_JSON_JOBS)]


@dataclass(frozen=True, slots=True)
class Sent:
    """What a request says of its jobs beside the spool: where each stood, and a hash of it all."""

    digest: bytes
    lines: Sequence[int] | None = None
    batch: NewBatch = field(default_factory=NewBatch)

    def refusal(self, error: JobsRefused) -> Exception:
        """The ledger's refusals in the request's own terms."""
        return error if self.lines is None else ndjson.refused(error, self.lines)


async def read_batch(
    request: Request, services: Services, principal: Principal, spool: Spool
) -> Sent:
    """Read and check a whole batch; raises Problem."""
    judge = checker(services.kinds, services.egress, principal)
    if media_type_of(request) in ndjson.MEDIA_TYPES:
        return await _read_lines(request, judge, spool)
    check_packing(request)
    body, sent = await read_model(request, BatchRequest, BATCH_JSON_BYTES, _MEDIA)
    if sent.state == "running" and not sent.jobs:
        raise invalid("/jobs", "a batch holds at least one job, or has the state open")
    if sent.state == "open" and sent.jobs:
        raise invalid("/jobs", "an open batch begins empty: append its jobs in parts")
    if sent.callback_url is not None:
        try:
            judge.egress.check_literal(sent.callback_url)
        except EgressDenied as error:
            raise invalid("/callback_url", str(error)) from None
    _check_jobs(sent.jobs, judge, spool)
    batch = NewBatch(BatchState(sent.state), tuple(sent.tags), sent.callback_url)
    return Sent(hashlib.sha256(body).digest(), batch=batch)


async def read_part(
    request: Request, services: Services, principal: Principal, spool: Spool
) -> Sent:
    """Read and check a part of an open batch; raises Problem."""
    judge = checker(services.kinds, services.egress, principal)
    if media_type_of(request) in ndjson.MEDIA_TYPES:
        return await _read_lines(request, judge, spool)
    check_packing(request)
    body, sent = await read_model(request, PartRequest, BATCH_JSON_BYTES, _MEDIA)
    _check_jobs(sent.jobs, judge, spool)
    return Sent(hashlib.sha256(body).digest())


async def _read_lines(request: Request, judge: JobChecker, spool: Spool) -> Sent:
    found = await ndjson.read_jobs(request, judge, spool)
    return Sent(found.digest, found.numbers)


def _check_jobs(requests: Sequence[JobRequest], judge: JobChecker, spool: Spool) -> None:
    bad: list[FieldError] = []
    for position, request in enumerate(requests):
        errors = judge.add_to(spool, request)
        bad.extend({**e, "pointer": f"/jobs/{position}{e['pointer']}"} for e in errors)
    if bad:
        raise invalid_fields(bad)
