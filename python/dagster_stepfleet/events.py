"""Reads a run's events without missing one.

PostgreSQL gives out ids before it commits, so an event may become visible after one with a higher
id; a reader that only moves forward loses it. This one looks at the ids of a window behind its
place, which is cheap, and reads the events it has not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster import EventLogRecord
from dagster._core.event_api import EventLogCursor
from dagster._core.events import DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorage, SqlEventLogStorageTable
from dagster._serdes import deserialize_value

if TYPE_CHECKING:
    from dagster import DagsterInstance

# How far behind its place a read looks for latecomers, in ids. Ids are shared by all runs; this is
# a second or two of a busy installation. Completions that stay unexplained cause a full read.
WINDOW_IDS = 2000
_PAGE_EVENTS = 1000

# Of events below our place only the ids: we have seen nearly all of them.
_NEW_AND_LATE = (
    "SELECT id, CASE WHEN id > :place THEN event END FROM event_logs "
    "WHERE run_id = :run_id AND id > :after AND dagster_event_type IS NOT NULL ORDER BY id"
)

ENDING_TYPES = frozenset(
    {
        DagsterEventType.STEP_SUCCESS,
        DagsterEventType.STEP_FAILURE,
        DagsterEventType.STEP_UP_FOR_RETRY,
        DagsterEventType.RESOURCE_INIT_FAILURE,
    }
)


class EventReader:
    """Reads one run's events; `seen` holds the ids that were handed on."""

    def __init__(self, instance: DagsterInstance, run_id: str, seen: set[int]) -> None:
        self._instance = instance
        self._run_id = run_id
        self.seen = seen
        self.highest = max(seen, default=0)

    def read(self, after: int = 0) -> list[EventLogRecord]:
        """Returns the unseen events with ids above `after`, in order, to the end of the log."""
        storage = self._sql_storage()
        if storage is None or not self.highest:
            return [r for r in self._pages(after) if r.storage_id not in self.seen]
        found, late = self._new_and_late(storage, after)
        return [*self._fetch(late), *found]

    def _new_and_late(self, storage: Any, after: int) -> tuple[list[EventLogRecord], set[int]]:
        """Returns the events above our place, and the ids below it that became visible late, by
        one statement: the wait for an event is on every step's path."""
        from sqlalchemy import text

        values = {"run_id": self._run_id, "after": after, "place": self.highest}
        found: list[EventLogRecord] = []
        late: set[int] = set()
        with storage.run_connection(self._run_id) as connection:
            for number, event in connection.execute(text(_NEW_AND_LATE), values):
                if number in self.seen:
                    continue
                if event is None:
                    late.add(number)
                else:
                    entry = deserialize_value(event, EventLogEntry)
                    found.append(EventLogRecord(storage_id=number, event_log_entry=entry))
        return found, late

    def read_steps(self, step_keys: Iterable[str]) -> list[EventLogRecord]:
        """Returns the unseen events of the steps, wherever they are in the log."""
        keys = set(step_keys)
        ids = self._ids(keys)
        if ids is None:
            return [
                r
                for r in self._pages(0)
                if r.storage_id not in self.seen
                and r.event_log_entry.dagster_event is not None
                and r.event_log_entry.dagster_event.step_key in keys
            ]
        return self._fetch(ids - self.seen)

    def has_unseen_ending(self, step_key: str) -> bool:
        """Reads the whole log for an ending event of the step that was not handed on yet."""
        ids = self._ids({step_key}, ENDING_TYPES)
        if ids is not None:
            return bool(ids - self.seen)
        return any(
            r.event_log_entry.dagster_event is not None
            and r.event_log_entry.dagster_event.event_type in ENDING_TYPES
            for r in self.read_steps([step_key])
        )

    def mark(self, records: Sequence[EventLogRecord]) -> None:
        """Notes that the events have been handed on."""
        self.seen.update(r.storage_id for r in records)
        self.highest = max(self.highest, max((r.storage_id for r in records), default=0))

    def _fetch(self, ids: set[int]) -> list[EventLogRecord]:
        if not ids:
            return []
        last = max(ids)
        found: list[EventLogRecord] = []
        for record in self._pages(min(ids) - 1):
            if record.storage_id in ids:
                found.append(record)
            if record.storage_id >= last:
                break
        return found

    def _pages(self, after: int) -> Iterable[EventLogRecord]:
        cursor = EventLogCursor.from_storage_id(after).to_string()
        while True:
            page = self._instance.get_records_for_run(
                self._run_id, cursor, of_type=set(DagsterEventType), limit=_PAGE_EVENTS
            )
            yield from page.records
            if len(page.records) < _PAGE_EVENTS:
                return
            cursor = page.cursor

    def _sql_storage(self) -> Any:
        storage = seams.inner_storage(self._instance.event_log_storage, "event_log_storage")
        return storage if isinstance(storage, SqlEventLogStorage) else None

    def _ids(
        self, step_keys: set[str], types: frozenset[DagsterEventType] | None = None
    ) -> set[int] | None:
        """Returns the ids of the steps' events, or None where the storage is not SQL."""
        storage = self._sql_storage()
        if storage is None:
            return None
        import sqlalchemy

        columns: Any = SqlEventLogStorageTable.c
        query = sqlalchemy.select(columns.id).where(
            columns.run_id == self._run_id,
            columns.dagster_event_type.is_not(None),
            columns.step_key.in_(sorted(step_keys)),
        )
        if types is not None:
            query = query.where(columns.dagster_event_type.in_(sorted(t.value for t in types)))
        connect: Any = storage.run_connection
        with connect(self._run_id) as connection:
            return {row[0] for row in connection.execute(query)}
