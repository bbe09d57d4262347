"""Errors of schedules.

ScheduleError
├── ScheduleNotFound    no such id in this tenant
├── ScheduleNameTaken   another schedule of the tenant has this name
├── ScheduleChanged     not the version that the caller read
└── ScheduleRefused     a field is invalid; `pointer` names it
"""

from uuid import UUID


class ScheduleError(Exception):
    """The schedule was refused; nothing was written."""


class ScheduleNotFound(ScheduleError):
    """No schedule of this id in this tenant."""

    def __init__(self, schedule_id: UUID) -> None:
        super().__init__(f"no schedule {schedule_id}")
        self.schedule_id = schedule_id


class ScheduleNameTaken(ScheduleError):
    """Names are unique within a tenant."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a schedule {name!r} already: choose another name, or PATCH it")
        self.name = name


class ScheduleRefused(ScheduleError):
    """A field of the schedule is invalid: `pointer` is its JSON pointer, `detail` what is wrong."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(f"{pointer}: {detail}")
        self.pointer = pointer
        self.detail = detail


class ScheduleChanged(ScheduleError):
    """Somebody else changed the schedule since the caller read it: read it again."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the schedule has version {version} now: read it again")
        self.version = version
