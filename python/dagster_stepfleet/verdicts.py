"""Writes the end of an attempt whose process wrote none, and never a second one.

Dagster's log has no unique key for it, and two executors may be about to write: the one whose run
worker was stopped just before it wrote, and the one that resumed the run. The ledger grants it to
one after the other, but cannot see what is in the log. So the writer looks there, under a lock of
the log's own database, and writes only if the attempt has no end yet. The lock is held for the
transaction alone, which works behind a pooler.

On storages that are not PostgreSQL the look and the write are two steps.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster._core.events import DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorage, SqlEventLogStorageTable
from dagster._serdes import deserialize_value

from dagster_stepfleet import attempts, storage
from dagster_stepfleet.client import Client, Interrupted, ServerRefused, ServerUnreachable
from dagster_stepfleet.patience import patiently

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from dagster._core.execution.plan.state import KnownExecutionState

_log = logging.getLogger("dagster.stepfleet")

# The server's limit on one adjudication; what is left over is asked for with the next one.
MAX_TASKS = 2000

_RETRY = DagsterEventType.STEP_UP_FOR_RETRY.value
_ENDS = (DagsterEventType.STEP_FAILURE.value, DagsterEventType.STEP_SUCCESS.value)
_VERDICTS = frozenset({DagsterEventType.STEP_FAILURE.value, _RETRY})


class Adjudicator:
    """Asks the ledger which attempts' ends this executor may write, and remembers."""

    def __init__(self) -> None:
        self._granted: set[tuple[str, int]] = set()

    def granted(self, attempt: tuple[str, int]) -> bool:
        return attempt in self._granted

    def ask(
        self, client: Client, wanted: tuple[str, int], others: Iterable[tuple[str, int]]
    ) -> list[str]:
        """Asks for the wanted one and the others in one call, unless it is granted already. Returns
        the keys of those that an earlier executor was granted, and may have written."""
        if wanted in self._granted:
            return []
        try:
            batch = [wanted, *sorted(set(others) - {wanted})]
            rulings = client.adjudicate(batch[:MAX_TASKS])
        except (ServerUnreachable, ServerRefused) as err:
            client.completions.refuse(err)  # asking again would not help: the run fails
            return []
        except Interrupted:
            return []
        self._granted |= {(r["step_key"], r["attempt"]) for r in rulings if r["granted"]}
        return [r["step_key"] for r in rulings if r["earlier_epoch"]]


class VerdictGate:
    """Stands before the writes of one run worker's event log."""

    def __init__(
        self, instance: DagsterInstance, run_id: str, known_state: KnownExecutionState
    ) -> None:
        self._storage: Any = seams.inner_storage(instance.event_log_storage, "event_log_storage")
        self._run_id = run_id
        # Attempts that were made before this run, whose retries are not in its log.
        self._before = known_state.get_retry_state()
        self._expected: tuple[str, int] | None = None
        self._had = "store_event" in vars(self._storage)
        self._stock: Callable[[Any], None] = self._storage.store_event
        self._storage.store_event = self._store_event

    def close(self) -> None:
        """Puts back what was there."""
        if self._had:
            self._storage.store_event = self._stock
        else:
            del self._storage.store_event

    @contextlib.contextmanager
    def expecting(self, step_key: str, attempt: int) -> Generator[None]:
        """Within it, a failure or retry of the step is the end of that attempt."""
        self._expected = step_key, attempt - self._before.get_attempt_count(step_key)
        try:
            yield
        finally:
            self._expected = None

    def _store_event(self, event: Any) -> None:
        dagster_event, expected = event.dagster_event, self._expected
        if (
            expected is None
            or dagster_event is None
            or dagster_event.event_type_value not in _VERDICTS
            or dagster_event.step_key != expected[0]
            or not isinstance(self._storage, SqlEventLogStorage)
        ):
            self._stock(event)
        elif storage.is_postgres(self._storage):
            write = partial(self._write_once, event, *expected)
            patiently(write, write, dagster_event.event_type_value)
        else:
            with self._storage.run_connection(self._run_id) as connection:
                ended = self._has_end(connection, *expected)
            if not ended:
                self._stock(event)

    def _write_once(self, event: Any, step_key: str, retries: int) -> None:
        import sqlalchemy

        statement = self._storage.prepare_insert_event(event)
        lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
        with self._storage._connect() as connection:
            # Read committed: the look sees what was committed while the lock was waited for.
            connection = connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                name = f"stepfleet verdict {self._run_id}/{step_key}"
                connection.execute(lock, {"name": name})
                writer = storage.writer_of(self._storage)
                if writer is not None and writer.fence is not None:
                    writer.fence.hold(connection)
                if not self._has_end(connection, step_key, retries):
                    connection.execute(statement)

    def _has_end(self, connection: Any, step_key: str, retries: int) -> bool:
        """Whether the log has an end of the attempt that began after so many retries."""
        import sqlalchemy

        columns: Any = SqlEventLogStorageTable.c
        kind = columns.dagster_event_type
        query = (
            sqlalchemy.select(kind, columns.event)
            .where(
                columns.run_id == self._run_id,
                columns.step_key == step_key,
                kind.in_([_RETRY, *_ENDS]),
            )
            .order_by(columns.id)
        )
        first = attempt = self._before.get_attempt_count(step_key)
        ended = False
        for end, text in connection.execute(query):
            if attempts.is_late(deserialize_value(text, EventLogEntry).dagster_event, attempt):
                continue  # of a process that was given up, when the end had been written for it
            attempt += 1
            ended = ended or end in _ENDS
        ended = ended or attempt - first > retries
        if ended:
            _log.warning("Dagster's log has the end of step %s already; none is added.", step_key)
        return ended
