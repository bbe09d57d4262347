"""Batches: jobs submitted together, counted in one snapshot, finished when nothing of them is live.

The one door to them: `batch_intake` takes jobs in, `batch_lookup` reads, `batch_verbs` ends and
revives.
"""

from jobs.batch_intake import (
    Appended,
    NewBatch,
    Part,
    PartPage,
    append,
    create,
    has_part,
    parts,
    seal,
    state_of,
)
from jobs.batch_lookup import BatchPage, EndedJob, ResultLine, get, get_many, list_batches, results
from jobs.batch_verbs import cancel, finish_due, retry
from jobs.bulk import fill, prepare

__all__ = [
    "Appended",
    "BatchPage",
    "EndedJob",
    "NewBatch",
    "Part",
    "PartPage",
    "ResultLine",
    "append",
    "cancel",
    "create",
    "fill",
    "finish_due",
    "get",
    "get_many",
    "has_part",
    "list_batches",
    "parts",
    "prepare",
    "results",
    "retry",
    "seal",
    "state_of",
]
