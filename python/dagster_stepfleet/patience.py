"""Has a process that does a run's work outlast a PostgreSQL that goes away.

A connection may be cut anywhere: before a statement has reached the server, while it runs, or in
the middle of its answer. What reads is repeated. What writes looks first whether it is there, and
for that look to be worth something, the server's process of the lost connection is ended before:
nothing that it was sent can come about later.

A grant to write is as old as the wait that came after it. So the gate is asked again on every
connection that was waited for.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

_log = logging.getLogger("dagster.stepfleet")

T = TypeVar("T")

# How long a process that does a run's work waits for PostgreSQL to come back. Dagster gives up
# after some 6 s, and the run or the step ends with it; a failover takes longer, up to the two
# minutes that are promised. A worker that is cut off kills its children before its run lease is
# over, however long they still wait; one with a long run lease has them wait longer, by the
# variable.
_OUTAGE_SECONDS = 150.0
_OUTAGE_VARIABLE = "STEPFLEET_OUTAGE_SECONDS"
_OUTAGE_POLL_SECONDS = 0.5
# How long a new connection waits for the end of a lost one's process, before it counts as away.
_END_SECONDS = 10.0
_END_POLL_SECONDS = 0.05

_patience_seconds = 0.0
_ask_gate: Callable[[str], None] | None = None

# Of a connection that the process had at the time, so the number cannot be another's by now. A
# pooler makes up the numbers that it tells, and one of them may be a stranger's: where the
# connection that asks has another process than it was told, nobody is ended.
_END_BACKEND = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s "
    "AND usename = current_user AND datname = current_database() "
    "AND backend_start <= clock_timestamp() - make_interval(secs => %s) "
    "AND pg_backend_pid() = %s"
)
# Under this name a pooled connection keeps its server process's number, and since when it has it.
_BACKEND = "stepfleet_backend"
# What a statement says that took too long, or was cancelled: it has changed nothing.
_CANCELED = "57014"


class _Here(threading.local):
    """What this thread is at."""

    def __init__(self) -> None:
        self.busy = False  # in a call that will be repeated as a whole
        self.seconds = 0.0  # how long it waits for an outage to end
        self.speaks = ""  # the type of the event that it writes
        self.doubt = False  # whether a connection was lost or waited for since the gate was asked
        self.lost: list[tuple[int, float]] = []  # server processes that may still be at work


_here = _Here()


def wait_out_outages() -> None:
    """Has storages wait for a PostgreSQL that is away, in this process from now on. The template
    and its idle children must not: they have a parent to answer."""
    global _patience_seconds
    told = os.environ.get(_OUTAGE_VARIABLE, "")
    _patience_seconds = float(told) if told.isdecimal() else _OUTAGE_SECONDS


def ask_again_with(ask: Callable[[str], None]) -> None:
    """Sets who is asked, with an event's type, before a write that an outage has held up."""
    global _ask_gate
    _ask_gate = ask


def patiently(
    act: Callable[[], T],
    again: Callable[[], T] | None = None,
    speaks: str = "",
    seconds: float | None = None,
) -> T:
    """Calls `act` and, when the connection was lost under it, `again`, for as long as an outage
    may last. What has an `again` is a write: it is also repeated when it took too long.

    Within another such call it leaves that to it.
    """
    if _here.busy:
        return act()
    _here.busy, _here.speaks = True, speaks
    _here.seconds = _patience_seconds if seconds is None else seconds
    began: float | None = None
    try:
        while True:
            try:
                return act()
            except Exception as err:
                if not (_is_lost(err) or (again is not None and _is_canceled(err))):
                    raise
                now = time.monotonic()
                first, began = began is None, began or now
                if now - began >= _here.seconds or (not first and _interrupted()):
                    raise
                # Not the error whole, which shows the statement's values.
                _log.warning("Dagster's storage was lost in a statement: %s", _cause(err))
                if not first:
                    time.sleep(_OUTAGE_POLL_SECONDS)
            act = again or act
            _here.doubt = True
    finally:
        _here.busy, _here.seconds, _here.speaks, _here.doubt = False, 0.0, "", False
        _here.lost.clear()


def connect_patiently(engine: Any) -> None:
    """Has the engine's connect wait for a PostgreSQL that is away."""
    import sqlalchemy.exc

    stock = engine.connect
    away_since: float | None = None

    def connect(*args: Any, **kwargs: Any) -> Any:
        nonlocal away_since
        while True:
            try:
                connection = stock(*args, **kwargs)
                if _here.doubt:
                    _settle(connection)
            except sqlalchemy.exc.OperationalError as err:
                _here.doubt = _here.busy
                now = time.monotonic()
                if away_since is None:
                    away_since = now
                    _log.warning("Dagster's storage is away: %s", err)
                patience = max(_patience_seconds, _here.seconds)
                if now - away_since >= patience or _interrupted():
                    raise
                time.sleep(_OUTAGE_POLL_SECONDS)
            else:
                away_since = None
                return connection

    engine.connect = connect


def note_losses(engine: Any) -> None:
    """Has threads know the server processes of the connections that they lose."""
    import sqlalchemy.event

    def connected(connection: Any, record: Any) -> None:
        number = getattr(connection, "get_backend_pid", None)
        if number is not None:
            record.info[_BACKEND] = number(), time.monotonic()

    def failed(context: Any) -> None:
        if context.is_disconnect and context.connection is not None and _here.busy:
            backend = context.connection.info.get(_BACKEND)
            if backend is not None:
                _here.lost.append(backend)

    sqlalchemy.event.listen(engine, "connect", connected)
    sqlalchemy.event.listen(engine, "handle_error", failed)


# Of the storages' methods, by how their names begin, those that only read.
_READS = ("get_", "has_", "fetch_", "can_", "check_concurrency_claim", "all_asset_keys")
# Those that may be done twice, which is why Dagster's own processes may as well.
_REPEATABLE = frozenset(
    {
        "add_dynamic_partitions",
        "add_run_tags",
        "claim_concurrency_slot",
        "delete_dynamic_partition",
        "free_concurrency_slot_for_step",
        "free_concurrency_slots_for_run",
        "handle_run_event",
        "initialize_concurrency_limit_to_default",
        "set_cursor_values",
        "update_asset_cached_status_data",
    }
)


def patient_methods(storage: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yields, by name, what to put before the storage's methods that may be repeated."""
    for name in dir(type(storage)):
        if not (name.startswith(_READS) or name in _REPEATABLE):
            continue
        if callable(getattr(type(storage), name)):  # a property would be asked for its value
            yield name, _repeated(getattr(storage, name), name in _REPEATABLE)


# Of those, what stands between a run's being in the queue and its run worker's being submitted.
_LAUNCH = ("get_run_records", "handle_run_event")
# A launch is given up after less than run monitoring gives a run to begin.
_LAUNCH_SECONDS = 60.0


def launch_methods(storage: Any, complete: Callable[[Any], None]) -> Iterator[tuple[str, Any]]:
    """Yields the same for a process that launches runs, and has its own ways with outages else.
    `complete` stores of an event what is missing of it."""
    for name in _LAUNCH:
        if hasattr(storage, name):
            yield name, _repeated(getattr(storage, name), name in _REPEATABLE, _LAUNCH_SECONDS)
    if hasattr(storage, "store_event"):
        stock = storage.store_event

        def store_event(event: Any) -> None:
            patiently(partial(stock, event), partial(complete, event), seconds=_LAUNCH_SECONDS)

        yield "store_event", store_event


def _repeated(
    method: Callable[..., Any], writes: bool, seconds: float | None = None
) -> Callable[..., Any]:
    def repeated(*args: Any, **kwargs: Any) -> Any:
        def act() -> Any:
            return method(*args, **kwargs)

        if not writes:
            return patiently(act, seconds=seconds)
        kinds = [kind for a in args if (kind := getattr(a, "event_type_value", ""))]
        return patiently(act, act, "".join(kinds[:1]), seconds)

    return repeated


def _settle(connection: Any) -> None:
    """Makes sure, on a new connection, that nothing of the lost ones can still come about, and that
    what is to be written still may be."""
    try:
        while _here.lost:
            _end_backend(connection, *_here.lost[-1])
            _here.lost.pop()
        if _here.speaks and _ask_gate is not None:
            _ask_gate(_here.speaks)
    except BaseException:
        connection.close()
        raise
    _here.doubt = False


def _end_backend(connection: Any, number: int, since: float) -> None:
    import sqlalchemy.exc

    told, _ = connection.info.get(_BACKEND, (None, 0.0))
    until = time.monotonic() + _END_SECONDS
    while True:
        values = number, time.monotonic() - since, told
        try:
            found = connection.exec_driver_sql(_END_BACKEND, values).fetchall()
        except sqlalchemy.exc.ProgrammingError as err:
            _log.warning("the server process of a lost connection was left alone: %s", err)
            return
        if not found:
            return
        if time.monotonic() > until:
            cause = TimeoutError(f"the process {number} of a lost connection does not end")
            raise sqlalchemy.exc.OperationalError(_END_BACKEND, None, cause)
        time.sleep(_END_POLL_SECONDS)


def _is_lost(err: Exception) -> bool:
    """Whether the connection is gone, and with it the answer to what was asked."""
    return getattr(err, "connection_invalidated", False) or _is_bare_loss(err)


def _is_bare_loss(err: Exception) -> bool:
    """Whether it is the driver's own error, from where SQLAlchemy lets that through: it sets a
    transaction's isolation level outside of what it watches."""
    import psycopg2

    lost = isinstance(err, psycopg2.OperationalError | psycopg2.InterfaceError)
    return lost and getattr(err, "pgcode", None) is None


def _is_canceled(err: Exception) -> bool:
    return getattr(_cause(err), "pgcode", None) == _CANCELED


def _cause(err: Exception) -> BaseException:
    """The driver's own error."""
    return getattr(err, "orig", None) or err


def _interrupted() -> bool:
    from dagster._utils.interrupts import check_captured_interrupt

    return check_captured_interrupt()
