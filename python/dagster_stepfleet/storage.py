"""Keeps one PostgreSQL connection in a process instead of opening one for every event.

Dagster's PostgreSQL storages hold no connection, so that idle processes do not pile them up; a
step writes some ten events and pays for ten connections. A step's process, and a run worker, use
one. Each event also costs a NOTIFY that nothing in Dagster listens to any more, and that takes
a lock of the whole server; events that touch nothing but the log are written without it. Last,
`get_run_by_id` asks the catalogue each time whether a migration has been made; once it has, the
answer does not change.

Anything unexpected leaves the storages as Dagster made them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dagster_stepfleet import relay, seams

if TYPE_CHECKING:
    from dagster import DagsterInstance

_log = logging.getLogger("dagster.stepfleet")

# User code may log from threads of its own: those beyond the first connect, and are closed again.
# There is no limit to them, as there is none without a pool.
_MAX_OVERFLOW = -1
# A connection that was used this recently is not asked whether it still lives.
_FRESH_SECONDS = 1.0
# A step that writes nothing for longer gets a new connection, before a NAT gateway or a proxy has
# forgotten the old one. Within it, a ping before use finds a connection that is gone.
_RECYCLE_SECONDS = 300

# How long a process that does a run's work waits for PostgreSQL to come back. Dagster gives up
# after some 6 s, and the run or the step ends with it; a failover takes longer. A worker that is
# cut off kills its children before its run lease is over, however long they still wait.
_OUTAGE_SECONDS = 120.0
_OUTAGE_POLL_SECONDS = 0.5

# Catalogue checks of the run storage whose answer stays once it is yes.
_MIGRATION_CHECKS = ("has_run_stats_index_cols", "has_backfill_id_column")


# An id that no run has.
_NO_RUN = "00000000-0000-0000-0000-000000000000"
# Marks an instance whose storages are pooled.
_POOLED = "_stepfleet_pooled"

_patience_seconds = 0.0

# Engines and writers of this process, of which a process that it forks must not use what is open.
_engines: weakref.WeakSet[Any] = weakref.WeakSet()
_writers: weakref.WeakSet[_Writer] = weakref.WeakSet()


def _forget_inherited() -> None:
    """In a forked process: leaves the connections to the other, and makes its own when needed."""
    for engine in _engines:
        if engine.pool.checkedin() or engine.pool.checkedout():
            engine.dispose(close=False)
    for writer in _writers:
        writer.begin_anew()


os.register_at_fork(after_in_child=_forget_inherited)


def wait_out_outages() -> None:
    """Has pooled storages wait for a PostgreSQL that is away, in this process from now on. The
    template and its idle children must not: they have a parent to answer."""
    global _patience_seconds
    _patience_seconds = _OUTAGE_SECONDS


def _nothing() -> None:
    pass


def pool(instance: DagsterInstance) -> Callable[[], None]:
    """Pools the instance's PostgreSQL event and run storage. Returns what undoes it."""
    if getattr(instance, _POOLED, False):
        return _nothing  # a run worker's, inside whose run the executor asks again
    undo: list[Callable[[], None]] = []

    def restore() -> None:
        while undo:
            undo.pop()()

    try:
        _pool(instance, undo)
        undo.append(_replace(instance, _POOLED, True))
    except Exception as err:
        _log.warning("stepfleet leaves Dagster's storage unpooled: %s", err)
        restore()
        return _nothing
    return restore


def storages(instance: DagsterInstance) -> list[Any]:
    """Returns the event log's and the runs' storage, out of Dagster's wrappers."""
    return [
        seams.inner_storage(instance.event_log_storage, "event_log_storage"),
        seams.inner_storage(instance.run_storage, "run_storage"),
    ]


def is_postgres(storage: Any) -> bool:
    return type(storage).__module__.partition(".")[0] == "dagster_postgres"


def dispose(instance: DagsterInstance) -> None:
    """Closes every idle connection that the instance's storages hold."""
    for storage in [*storages(instance), instance.schedule_storage]:
        inner = seams.inner_storage(storage, "schedule_storage")
        engine = getattr(inner, "_engine", None)
        if engine is not None:
            engine.dispose()


def warm(instance: DagsterInstance) -> None:
    """Opens the pooled connection ahead of need, and has the server's new process learn the tables:
    its first look at each takes longer than the statement."""
    event_storage = storages(instance)[0]
    if is_postgres(event_storage):
        with event_storage._connect() as connection:
            connection.exec_driver_sql(_LEARN_TABLES)


def join_events(instance: DagsterInstance) -> Callable[[], None]:
    """Lets events that nothing of the user's can come after wait for the next one, in this process
    from now on. Returns what writes those that still wait."""
    # Under this name: the event gate may stand before store_event by now.
    writer = getattr(storages(instance)[0], _WRITER, None)
    if writer is None:
        return _nothing
    writer.joins = True
    return writer.flush


def prime(instance: DagsterInstance) -> None:
    """Asks what every step asks, so that processes that inherit the instance have the answers of
    the catalogue and the compiled statements."""
    for storage in storages(instance):
        if is_postgres(storage):
            for name in _MIGRATION_CHECKS:
                check = getattr(storage, name, None)
                if check is not None:
                    check()
    instance.get_run_by_id(_NO_RUN)


def _pool(instance: DagsterInstance, undo: list[Callable[[], None]]) -> None:
    engines: dict[str, Any] = {}
    for number, storage in enumerate(storages(instance)):
        if not is_postgres(storage):
            continue
        if not engines:
            seams.check_postgres()
        if number == 0 and type(storage).__name__ == "PostgresEventLogStorage":
            writer = _Writer(storage)
            undo.append(_replace(storage, "store_event", writer))
            undo.append(_replace(storage, _WRITER, writer))
        url = storage.postgres_url
        if url not in engines:
            engines[url] = _engine(storage, url)
            undo.append(engines[url].dispose)
        undo.append(_replace(storage, "_engine", engines[url]))
        for name in _MIGRATION_CHECKS:
            check = getattr(storage, name, None)
            if check is not None:
                undo.append(_replace(storage, name, _remember_yes(check)))


def _engine(storage: Any, url: str) -> Any:
    options: dict[str, Any] = {
        "isolation_level": "AUTOCOMMIT",
        "pool_size": 1,
        "max_overflow": _MAX_OVERFLOW,
        "pool_recycle": _RECYCLE_SECONDS,
    }
    provider = getattr(storage, "_token_provider", None)
    if provider is not None:
        from dagster_postgres.utils import create_pg_engine

        engine = create_pg_engine(url, provider, **options)
    else:
        from dagster._core.storage.sql import create_engine

        engine = create_engine(url, **options)
        relay.use(engine)
    _ping_when_stale(engine)
    _connect_patiently(engine)
    _engines.add(engine)
    return engine


def _connect_patiently(engine: Any) -> None:
    import sqlalchemy.exc
    from dagster._utils.interrupts import check_captured_interrupt

    stock = engine.connect
    away_since: float | None = None

    def connect(*args: Any, **kwargs: Any) -> Any:
        nonlocal away_since
        while True:
            try:
                connection = stock(*args, **kwargs)
            except sqlalchemy.exc.OperationalError as err:
                now = time.monotonic()
                if away_since is None:
                    away_since = now
                    _log.warning("Dagster's storage is away: %s", err)
                if now - away_since >= _patience_seconds or check_captured_interrupt():
                    raise
                time.sleep(_OUTAGE_POLL_SECONDS)
            else:
                away_since = None
                return connection

    engine.connect = connect


def _ping_when_stale(engine: Any) -> None:
    """As the pool's pre-ping, but not for a connection that has just worked."""
    import sqlalchemy.event
    import sqlalchemy.exc

    def checkout(connection: Any, record: Any, proxy: Any) -> None:
        if time.monotonic() - record.info.get("stepfleet_used", -1e9) < _FRESH_SECONDS:
            return
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except Exception as err:
            # The pool then throws the connection away and makes another.
            raise sqlalchemy.exc.DisconnectionError(str(err)) from err

    def used(connection: Any, record: Any) -> None:
        record.info["stepfleet_used"] = time.monotonic()

    sqlalchemy.event.listen(engine, "checkout", checkout)
    sqlalchemy.event.listen(engine, "checkin", used)
    sqlalchemy.event.listen(engine, "connect", used)


_WRITER = "stepfleet_writer"
_COLUMNS = (
    "run_id",
    "event",
    "dagster_event_type",
    "timestamp",
    "step_key",
    "asset_key",
    "partition",
)
# In the driver's own words: to build the statement anew costs a step process more than to run it.
_INSERT = f"INSERT INTO event_logs ({', '.join(_COLUMNS)}) VALUES "
_ROW = f"({', '.join(['%s'] * len(_COLUMNS))})"
# One round trip and one commit.
_LEARN_TABLES = (
    "INSERT INTO event_logs (run_id, event, timestamp) SELECT '', '', now() WHERE false;"
    "SELECT * FROM runs WHERE run_id = ''"
)


class _Writer:
    """A store_event that inserts ordinary events and does nothing else."""

    def __init__(self, storage: Any) -> None:
        from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, DagsterEventType

        self._storage = storage
        self._stock: Callable[[Any], None] = storage.store_event
        self._special = ASSET_EVENTS | ASSET_CHECK_EVENTS
        # In a step, only Dagster's own code runs between one of these and the next event. So they
        # may go with it: a step that is killed in between has not got to user code.
        self._companions = {DagsterEventType.RESOURCE_INIT_SUCCESS, DagsterEventType.LOGS_CAPTURED}
        self.joins = False  # whether events may wait for the next one
        self.begin_anew()
        _writers.add(self)

    def begin_anew(self) -> None:
        """With nothing that waits, and a lock that nobody holds."""
        self._waiting: list[tuple[Any, ...]] = []
        self._lock = threading.Lock()

    def __call__(self, event: Any) -> None:
        kind = event.dagster_event_type if event.is_dagster_event else None
        if kind in self._special:
            self.flush()
            self._stock(event)
            return
        columns = self._storage._event_to_row(event)
        row = tuple(columns[name] for name in _COLUMNS)
        if self.joins and kind in self._companions:
            with self._lock:
                self._waiting.append(row)
            return
        self._write(row)

    def flush(self) -> None:
        """Writes what waits for a next event."""
        self._write()

    def _write(self, *last: tuple[Any, ...]) -> None:
        """Writes what waits and the last row, in this order."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        try:
            self._insert([*waiting, *last])
        except BaseException:
            with self._lock:
                self._waiting = waiting + self._waiting
            raise

    def _insert(self, rows: list[tuple[Any, ...]]) -> None:
        if not rows:
            return
        statement = _INSERT + ", ".join([_ROW] * len(rows))
        values = tuple(value for row in rows for value in row)
        with self._storage._connect() as connection:
            connection.exec_driver_sql(statement, values)


def _replace(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Sets an attribute of the object; returns what puts back what was there."""
    had = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)

    def undo() -> None:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)

    return undo


def _remember_yes(check: Callable[[], bool]) -> Callable[[], bool]:
    known = False

    def remembered() -> bool:
        nonlocal known
        known = known or check()
        return known

    return remembered
