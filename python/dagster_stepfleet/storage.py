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
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dagster_stepfleet import gate, patience, relay, seams
from dagster_stepfleet.writer import Writer

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from dagster_stepfleet.gate import Parent

_log = logging.getLogger("dagster.stepfleet")

# User code may log from threads of its own: those beyond the first connect, and are closed again.
# There is no limit to them, as there is none without a pool.
_MAX_OVERFLOW = -1
# A connection that was used this recently is not asked whether it still lives.
_FRESH_SECONDS = 1.0
# A step that writes nothing for longer gets a new connection, before a NAT gateway or a proxy has
# forgotten the old one. Within it, a ping before use finds a connection that is gone.
_RECYCLE_SECONDS = 300

# Catalogue checks of the run storage whose answer stays once it is yes.
_MIGRATION_CHECKS = ("has_run_stats_index_cols", "has_backfill_id_column")

# One round trip and one commit.
_LEARN_TABLES = (
    "INSERT INTO event_logs (run_id, event, timestamp) SELECT '', '', now() WHERE false;"
    "SELECT * FROM runs WHERE run_id = ''"
)

# An id that no run has.
_NO_RUN = "00000000-0000-0000-0000-000000000000"
# As in fenced.py, which is imported where it is set to one of these.
_FENCED_VARIABLE = "STEPFLEET_FENCED_EVENTS"
_YES = ("1", "true", "yes", "on")
# The event log's storage has its writer under this name.
_WRITER = "stepfleet_writer"
# Marks an instance whose storages are pooled.
_POOLED = "_stepfleet_pooled"

# Engines and writers of this process, of which a process that it forks must not use what is open.
_engines: weakref.WeakSet[Any] = weakref.WeakSet()
_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


def _forget_inherited() -> None:
    """In a forked process: leaves the connections to the other, and makes its own when needed."""
    for engine in _engines:
        if engine.pool.checkedin() or engine.pool.checkedout():
            engine.dispose(close=False)
    for writer in _writers:
        writer.begin_anew()


os.register_at_fork(after_in_child=_forget_inherited)

# As those who pool storages call it.
wait_out_outages = patience.wait_out_outages


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


def outlast_launches(instance: DagsterInstance) -> None:
    """Has a process of Dagster's own, which launches runs, outlast a connection that is cut between
    what says that a run starts and its launch. Such a run would be neither in the queue nor with a
    run worker, and run monitoring would fail it. All else stays as it is."""
    if getattr(instance, _POOLED, False):
        return
    event_storage, run_storage = storages(instance)
    if not (is_postgres(event_storage) and is_postgres(run_storage)):
        return
    seams.check_postgres()
    complete = Writer(event_storage).complete
    for storage in (event_storage, run_storage):
        patience.note_losses(storage._engine)
        patience.connect_patiently(storage._engine)
        for name, patient in patience.launch_methods(storage, complete):
            setattr(storage, name, patient)


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
    writer = writer_of(storages(instance)[0])
    if writer is None:
        return _nothing
    writer.joins = True
    return writer.flush


def guard(
    instance: DagsterInstance, parent: Parent, events: frozenset[str], frame: Mapping[str, Any]
) -> None:
    """Puts the event gate before the instance's event log, for its whole life. It is asked again
    where an outage comes between the grant and the write. Where that is wanted, each write is
    subject to the ledger's own word as well."""
    task = frame["task"]
    attempt = int(task["attempt"]) if task.get("kind") != "run" else None
    gate.guard(instance.event_log_storage, parent, events, attempt)

    def ask_again(kind: str) -> None:
        if kind in events:
            parent.ask({"op": "gate", "event": kind})

    patience.ask_again_with(ask_again)
    if os.environ.get(_FENCED_VARIABLE, "").lower() in _YES:
        _fence(instance, int(frame["task_id"]), int(frame["fence"]))


def _fence(instance: DagsterInstance, task_id: int, fence: int) -> None:
    from dagster_stepfleet import fenced

    writer = writer_of(storages(instance)[0])
    if writer is None:
        raise RuntimeError(
            f"{_FENCED_VARIABLE} is set, and Dagster's event log is not PostgreSQL's"
        )
    writer.fence = fenced.Fence(task_id, fence)
    with storages(instance)[0]._connect() as connection:
        writer.fence.try_out(connection)


def writer_of(storage: Any) -> Writer | None:
    # Under this name: the event gate may stand before store_event by now.
    return getattr(storage, _WRITER, None)


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
            writer = Writer(storage)
            undo.append(_replace(storage, "store_event", writer))
            undo.append(_replace(storage, "store_event_batch", writer.batch))
            undo.append(_replace(storage, _WRITER, writer))
            _writers.add(writer)
        url = storage.postgres_url
        if url not in engines:
            engines[url] = _engine(storage, url)
            undo.append(engines[url].dispose)
        undo.append(_replace(storage, "_engine", engines[url]))
        for name, patient in patience.patient_methods(storage):
            undo.append(_replace(storage, name, patient))
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
    relay.introduce(engine)
    if provider is None:
        relay.use(engine)
    _ping_when_stale(engine)
    patience.note_losses(engine)
    patience.connect_patiently(engine)
    _engines.add(engine)
    return engine


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
