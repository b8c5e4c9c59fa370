"""Tells which attempt of its step an event is of.

Dagster's events name a step and not its attempt. A process that was given up may still write, while
the next attempt is under way; so each process puts its attempt's number on the events that move the
run, among the tags that Dagster keeps with an event and shows nowhere. Events of others, such as
what an executor writes of a process that wrote no end, have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster import DagsterEvent, EventLogEntry

_TAG = "stepfleet/attempt"


def mark(entry: EventLogEntry, attempt: int) -> EventLogEntry:
    """Returns the entry with the attempt's number on its event."""
    event = entry.dagster_event
    if event is None:
        return entry
    tags = {**(event.logging_tags or {}), _TAG: str(attempt)}
    return entry._replace(dagster_event=event._replace(logging_tags=tags))


def is_late(event: DagsterEvent | None, attempt: int) -> bool:
    """Whether the event is of an attempt before this one, as far as it says."""
    said = (event.logging_tags or {}).get(_TAG) if event is not None else None
    return said is not None and int(said) < attempt
