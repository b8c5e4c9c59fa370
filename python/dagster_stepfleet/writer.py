"""Writes a run's events to PostgreSQL: each once, also when the connection is cut in the middle.

An event has no key in Dagster's log. It is known by its run, its time, and all that it says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dagster_stepfleet.patience import patiently

if TYPE_CHECKING:
    from dagster_stepfleet.fenced import Fence

_COLUMNS = (
    "run_id",
    "event",
    "dagster_event_type",
    "timestamp",
    "step_key",
    "asset_key",
    "partition",
)
_NAMES = ", ".join(_COLUMNS)
# In the driver's own words: to build the statement anew costs a step process more than to run it.
_INSERT = f"INSERT INTO event_logs ({_NAMES}) VALUES "
_ROW = f"({', '.join(['%s'] * len(_COLUMNS))})"
# Of the same event. The run's index finds it.
_SAME = "e.run_id = v.run_id AND e.timestamp = v.timestamp AND e.event = v.event"
_ABSENT = f"NOT EXISTS (SELECT FROM event_logs e WHERE {_SAME})"
_INSERT_IF = (
    f"INSERT INTO event_logs ({_NAMES}) SELECT v.* FROM (VALUES {{rows}}) AS v ({_NAMES}) "
    "WHERE {condition}"
)
_FIND = f"SELECT min(e.id) FROM event_logs e, (VALUES {_ROW}) AS v ({_NAMES}) WHERE {_SAME}"
_TAGGED = "SELECT FROM asset_event_tags WHERE event_id = %s LIMIT 1"
_CHECKED = "SELECT FROM asset_check_executions WHERE evaluation_event_storage_id = %s LIMIT 1"

_Row = tuple[Any, ...]


class Writer:
    """A store_event that inserts ordinary events and does nothing else."""

    def __init__(self, storage: Any) -> None:
        from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, DagsterEventType

        self._storage = storage
        self._stock: Callable[[Any], None] = storage.store_event
        self._stock_batch: Callable[[Sequence[Any]], None] = storage.store_event_batch
        self._asset_events = ASSET_EVENTS
        self._check_events = ASSET_CHECK_EVENTS
        self._special = ASSET_EVENTS | ASSET_CHECK_EVENTS
        # In a step, only Dagster's own code runs between one of these and the next event. So they
        # may go with it: a step that is killed in between has not got to user code.
        self._companions = {DagsterEventType.RESOURCE_INIT_SUCCESS, DagsterEventType.LOGS_CAPTURED}
        self.joins = False  # whether events may wait for the next one
        self.fence: Fence | None = None  # whether to write what the ledger allows alone
        self.begin_anew()

    def begin_anew(self) -> None:
        """With nothing that waits, and a lock that nobody holds."""
        self._waiting: list[_Row] = []
        self._lock = threading.Lock()

    def __call__(self, event: Any) -> None:
        kind = event.dagster_event_type if event.is_dagster_event else None
        if kind is not None and kind in self._special:
            self.flush()
            patiently(
                partial(self._store_special, event), partial(self.complete, event), kind.value
            )
            return
        if self.joins and kind in self._companions:
            row = self._row(event)
            with self._lock:
                self._waiting.append(row)
            return
        self._write(kind.value if kind else "", self._row(event))

    def batch(self, events: Sequence[Any]) -> None:
        """Takes the place of store_event_batch. All its events have one type."""

        def complete() -> None:
            for event in events:
                self.complete(event)

        def store() -> None:
            if self.fence is None:
                self._stock_batch(events)
                return
            for event in events:
                self(event)

        patiently(store, complete, "".join(e.dagster_event_type.value for e in events[:1]))

    def flush(self) -> None:
        """Writes what waits for a next event."""
        self._write("")

    def _write(self, speaks: str, *last: _Row) -> None:
        """Writes what waits and the last row, in this order."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        rows = [*waiting, *last]
        if not rows:
            return
        try:
            patiently(partial(self._insert, rows), partial(self._insert, rows, True), speaks)
        except BaseException:
            with self._lock:
                self._waiting = waiting + self._waiting
            raise

    def _insert(self, rows: Sequence[_Row], look: bool = False) -> int | None:
        """Inserts the rows, or those that are not there. Returns the first one's id, if fenced."""
        marks = ", ".join([_ROW] * len(rows))
        values = tuple(value for row in rows for value in row)
        conditions = [_ABSENT] if look else []
        if self.fence is not None:
            conditions.append(self.fence.condition)
        statement = _INSERT + marks
        if conditions:
            statement = _INSERT_IF.format(rows=marks, condition=" AND ".join(conditions))
        with self._storage._connect() as connection:
            if self.fence is not None:
                return self.fence.insert(connection, statement, values)
            connection.exec_driver_sql(statement, values)
            return None

    def _row(self, event: Any) -> _Row:
        columns = self._storage._event_to_row(event)
        return tuple(columns[name] for name in _COLUMNS)

    def _store_special(self, event: Any) -> None:
        if self.fence is None:
            self._stock(event)
        else:
            self._index(event, self._insert([self._row(event)]))

    def complete(self, event: Any) -> None:
        """Does what is missing of what Dagster does for an event of an asset or a check."""
        with self._storage._connect() as connection:
            number = connection.exec_driver_sql(_FIND, self._row(event)).scalar()
        if number is None:
            self._store_special(event)
        else:
            self._index(event, number)

    def _index(self, event: Any, number: Any) -> None:
        kind = event.dagster_event_type
        if kind in self._asset_events and event.dagster_event.asset_key:
            self._index_asset(event, number)
        if kind in self._check_events and not self._has(_CHECKED, number):
            self._storage.store_asset_check_event(event, number)

    def _index_asset(self, event: Any, number: int) -> None:
        if not self._has(_TAGGED, number):
            self._storage.store_asset_event_tags([event], [number])
        self._storage.store_asset_event(event, number)

    def _has(self, query: str, number: int) -> bool:
        with self._storage._connect() as connection:
            return connection.exec_driver_sql(query, (number,)).first() is not None
