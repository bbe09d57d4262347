"""How many may watch one process at a time, by streams and long polls; a tenant never takes all."""

import resource
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from api.errors import Problem, ProblemType
from jobs.model import TenantId
from runtime import metrics

RETRY_AFTER_S = 10
# What one tenant may take of all.
SHARE = 0.75
# Files that the process holds open beside its watchers' connections.
OTHER_FILES = 256


class Places:
    """The watchers of this process."""

    def __init__(self, most: int) -> None:
        # A watcher holds an open file, and everything else needs some, too.
        self._most = max(1, min(most, _open_files() - OTHER_FILES))
        self._most_of_tenant = max(1, int(most * SHARE))
        self._taken: Counter[TenantId] = Counter()

    def is_free(self, tenant_id: TenantId) -> bool:
        """Whether the tenant may watch once more."""
        return not (self._is_full or self._taken[tenant_id] >= self._most_of_tenant)

    @contextmanager
    def taken(self, tenant_id: TenantId, stream: str) -> Iterator[None]:
        """Hold a place for a block; raises Problem when there is none."""
        if not self.is_free(tenant_id):
            raise self._refusal()
        watchers = metrics.WATCHERS.labels(stream=stream)
        self._taken[tenant_id] += 1
        watchers.inc()
        try:
            yield
        finally:
            watchers.dec()
            self._taken[tenant_id] -= 1
            if not self._taken[tenant_id]:
                del self._taken[tenant_id]

    @property
    def _is_full(self) -> bool:
        return self._taken.total() >= self._most

    def _refusal(self) -> Problem:
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        if self._is_full:
            detail = (
                f"{self._most} streams and long polls are open in this process: come again, poll "
                "without waiting, or raise XNAI_WATCHERS_MAX"
            )
            return Problem(ProblemType.UNAVAILABLE, detail, headers=headers)
        detail = (
            f"the tenant has {self._most_of_tenant} streams and long polls open in this process, "
            "and may have no more: close some, or watch batches instead of jobs"
        )
        return Problem(ProblemType.TOO_MANY_WATCHERS, detail, headers=headers)


def _open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
