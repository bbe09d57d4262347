"""/v1/workers: the live slots, what they may run and what they hold."""

from datetime import datetime
from uuid import UUID

from pydantic import ConfigDict

from api import paging
from api.auth import InstallationOperator
from api.deps import LIST_DEFAULT, Cursor, Limit, WithServices
from api.routing import router as make_router
from api.views import Page, View
from jobs import slots
from jobs.slots import SlotState

router = make_router("workers")


class SlotView(View):
    """A slot: one pinned process of a pool."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    supervisor_id: UUID
    pool: str
    number: int
    host: str
    pid: int
    cores: list[int]
    kinds: list[str]
    version: str
    state: SlotState
    started_at: datetime
    beat: int
    beat_at: datetime
    running: int


@router.get("/workers")
async def list_workers(
    services: WithServices,
    principal: InstallationOperator,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[SlotView]:
    """Every live slot. Slots are the installation's, for keys of the tenant `default`."""
    del principal
    offset = paging.decode_offset(cursor)
    async with services.connection() as connection:
        found = await slots.live(connection)
    shown, following = paging.part(found, offset, limit)
    return Page[SlotView](
        data=[SlotView.model_validate(slot) for slot in shown], next_cursor=following
    )
