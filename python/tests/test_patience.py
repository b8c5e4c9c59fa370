"""Connections that are cut in the middle of a statement. Needs a database."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
import sqlalchemy
from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
)
from dagster._core.events.log import EventLogEntry
from dagster._core.instance import InstanceRef

from dagster_stepfleet import StepfleetRunLauncher, patience, relay, storage
from dagster_stepfleet.events import EventReader
from tests.entries import entry, materialization, said
from tests.payloads import create_run
from tests.proxies import Cut, Proxy

INSERT = b"INSERT INTO event_logs"


@pytest.fixture
def instance(pooled):
    return pooled


class Asked:
    """Grants what the gate is asked."""

    def __init__(self, monkeypatch) -> None:
        self.kinds: list[str] = []
        monkeypatch.setattr(patience, "_ask_gate", self.kinds.append)


def reply_bytes(proxy: Proxy, instance, event: EventLogEntry) -> int:
    """How many bytes the server answers to the storing of an event."""
    proxy.arm(Cut(INSERT))
    instance.event_log_storage.store_event(event)
    assert proxy.answered > 0
    return proxy.answered


def test_an_event_is_there_once_wherever_the_answer_to_it_is_cut(instance, proxy):
    run = create_run(instance, "chain")
    whole = reply_bytes(proxy, instance, entry(run, "whole"))
    for cut_at in range(whole):
        proxy.arm(Cut(INSERT, reply=cut_at))
        instance.event_log_storage.store_event(entry(run, f"cut at {cut_at}"))
    assert proxy.cuts == whole
    assert said(instance, run) == {"whole": 1, **{f"cut at {n}": 1 for n in range(whole)}}


@pytest.mark.parametrize("cut_at", [0, 1, 5, 100, -1])
def test_an_event_is_there_once_wherever_the_statement_is_cut(instance, proxy, cut_at):
    run = create_run(instance, "chain")
    proxy.arm(Cut(INSERT, request=cut_at))
    instance.event_log_storage.store_event(entry(run, "cut"))
    assert proxy.cuts == 1
    assert said(instance, run) == {"cut": 1}


def test_events_that_go_together_are_there_once_and_in_order(instance, proxy):
    run = create_run(instance, "chain")
    storage.join_events(instance)
    for cut_at in (0, 10):
        captured = entry(run, f"captured {cut_at}", DagsterEventType.LOGS_CAPTURED)
        instance.event_log_storage.store_event(captured)
        proxy.arm(Cut(INSERT, reply=cut_at))
        instance.event_log_storage.store_event(entry(run, f"next {cut_at}"))
    assert proxy.cuts == 2
    assert list(said(instance, run)) == ["captured 0", "next 0", "captured 10", "next 10"]
    assert set(said(instance, run).values()) == {1}


def test_asset_events_are_whole_wherever_they_are_cut(instance, proxy, behind):
    run = create_run(instance, "chain")
    reply_bytes(proxy, instance, materialization(run, -1))  # the first one asks the catalogue
    stored = 0
    # To beyond the last byte that the server answers.
    while proxy.cuts == stored:
        proxy.arm(Cut(INSERT, reply=7 * stored))
        instance.event_log_storage.store_event(materialization(run, stored))
        stored += 1
    assert stored > 20
    assert said(instance, run) == {f"asset {n}": 1 for n in range(-1, stored)}
    tags = sqlalchemy.text(
        "SELECT asset_key, count(*), count(distinct event_id) FROM asset_event_tags "
        "WHERE asset_key LIKE :ours GROUP BY 1"
    )
    rows = behind.execute(tags, {"ours": f"%{run.run_id}%"}).fetchall()
    assert len(rows) == stored + 1
    assert len({tuple(row[1:]) for row in rows}) == 1, "all as the first, which was not cut"
    for number in range(stored):
        record = instance.get_latest_materialization_event(AssetKey(f"{run.run_id}-{number}"))
        assert record is not None and record.user_message == f"asset {number}"


def test_a_batch_is_there_once(instance, proxy):
    run = create_run(instance, "chain")
    for cut_at in (0, 10, 60, 100):
        proxy.arm(Cut(INSERT, reply=cut_at))
        events = [materialization(run, number) for number in range(cut_at, cut_at + 3)]
        instance.event_log_storage.store_event_batch(events)
    assert proxy.cuts == 4
    assert len(said(instance, run)) == 12 and set(said(instance, run).values()) == {1}


def test_check_evaluations_are_whole_wherever_they_are_cut(instance, proxy, behind):
    run = create_run(instance, "chain")

    def evaluation(number: int) -> EventLogEntry:
        data = AssetCheckEvaluation(AssetKey(run.run_id), f"check_{number}", True, {})
        return entry(run, f"check {number}", DagsterEventType.ASSET_CHECK_EVALUATION, data)

    whole = reply_bytes(proxy, instance, evaluation(0))
    cuts = range(0, whole, 5)
    for number, cut_at in enumerate(cuts, 1):
        proxy.arm(Cut(INSERT, reply=cut_at))
        instance.event_log_storage.store_event(evaluation(number))
    assert said(instance, run) == {f"check {n}": 1 for n in range(len(cuts) + 1)}
    query = "SELECT check_name, count(*) FROM asset_check_executions WHERE run_id = :run GROUP BY 1"
    rows = behind.execute(sqlalchemy.text(query), {"run": run.run_id}).fetchall()
    assert dict(map(tuple, rows)) == {f"check_{n}": 1 for n in range(len(cuts) + 1)}


def test_a_statement_that_still_runs_is_ended_before_the_look(
    instance, proxy, behind, postgres_url, monkeypatch
):
    asked = Asked(monkeypatch)
    run = create_run(instance, "chain")
    event = entry(run, "blocked", DagsterEventType.RESOURCE_INIT_FAILURE)
    writing = threading.Thread(target=instance.event_log_storage.store_event, args=[event])
    with locked_log(postgres_url):
        writing.start()
        first = _blocked(behind, set())
        proxy.sever()  # the server does not notice: it waits for the lock
        second = _blocked(behind, first)
        assert not first & second, "the lost statement may still be done"
    writing.join(20)
    assert said(instance, run) == {"blocked": 1}
    assert asked.kinds == ["RESOURCE_INIT_FAILURE"]


@contextlib.contextmanager
def locked_log(url: str):
    """Within it nobody can insert into the event log."""
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("LOCK TABLE event_logs IN SHARE MODE"))
        yield
    engine.dispose()


def _blocked(connection, before: set[int]) -> set[int]:
    """Returns the server's processes that wait to insert, once there are others than before."""
    query = sqlalchemy.text(
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT%'"
    )
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = {row[0] for row in connection.execute(query)}
        if found - before:
            return found
        time.sleep(0.02)
    raise AssertionError("nobody waits")


def test_behind_a_pooler_no_strangers_process_is_ended(instance, proxy, behind, postgres_url):
    """A pooler tells numbers of its own; here the first is that of somebody else's process."""
    run = create_run(instance, "chain")
    stranger = sqlalchemy.create_engine(postgres_url)
    number = sqlalchemy.text("SELECT pg_backend_pid()")
    with stranger.connect() as theirs:
        proxy.number = theirs.execute(number).scalar_one()
        assert proxy.number is not None
        storage.dispose(instance)  # so that the next connection is told it
        proxy.arm(Cut(INSERT, request=0))
        instance.event_log_storage.store_event(entry(run, "cut"))
        assert theirs.execute(number).scalar_one() == proxy.number, "it lives"
    stranger.dispose()
    assert proxy.cuts == 1
    assert said(instance, run) == {"cut": 1}


def test_a_statement_that_is_late_finds_nobody_to_do_it(instance, proxy, behind):
    run = create_run(instance, "chain")
    deliver = threading.Event()
    proxy.arm(Cut(INSERT, request=0, deliver=deliver))
    instance.event_log_storage.store_event(entry(run, "late"))
    deliver.set()
    instance.event_log_storage.store_event(entry(run, "next"))
    assert said(instance, run) == {"late": 1, "next": 1}


def test_the_gate_is_asked_again_after_an_outage(instance, proxy, monkeypatch):
    asked = Asked(monkeypatch)
    run = create_run(instance, "chain")
    store = instance.event_log_storage.store_event
    store(entry(run, "before", DagsterEventType.RESOURCE_INIT_FAILURE))
    assert asked.kinds == [], "the gate itself was asked, and nothing has happened since"
    monkeypatch.setattr(storage, "_FRESH_SECONDS", 0.0)
    proxy.refusing = True
    proxy.sever()
    threading.Timer(0.5, setattr, [proxy, "refusing", False]).start()
    store(entry(run, "after", DagsterEventType.RESOURCE_INIT_FAILURE))
    assert asked.kinds == ["RESOURCE_INIT_FAILURE"]
    assert said(instance, run) == {"before": 1, "after": 1}


def test_a_refused_writer_writes_nothing(instance, proxy, monkeypatch):
    class Refused(BaseException):
        pass

    def refuse(kind: str) -> None:
        raise Refused(kind)

    monkeypatch.setattr(patience, "_ask_gate", refuse)
    run = create_run(instance, "chain")
    proxy.arm(Cut(INSERT, request=0))
    with pytest.raises(Refused):
        instance.event_log_storage.store_event(
            entry(run, "x", DagsterEventType.RESOURCE_INIT_FAILURE)
        )
    assert said(instance, run) == {}


@pytest.mark.parametrize(
    ("told", "seconds"), [(None, 150.0), ("600", 600.0), ("", 150.0), ("soon", 150.0)]
)
def test_a_process_waits_as_long_as_its_worker_says(monkeypatch, told, seconds):
    monkeypatch.setattr(patience, "_patience_seconds", 0.0)
    monkeypatch.delenv("STEPFLEET_OUTAGE_SECONDS", raising=False)
    if told is not None:
        monkeypatch.setenv("STEPFLEET_OUTAGE_SECONDS", told)
    storage.wait_out_outages()
    assert patience._patience_seconds == seconds


def test_a_process_without_patience_is_told(instance, proxy, monkeypatch):
    monkeypatch.setattr(patience, "_patience_seconds", 0.0)
    run = create_run(instance, "chain")
    proxy.arm(Cut(INSERT, reply=0))
    with pytest.raises(sqlalchemy.exc.OperationalError):
        instance.event_log_storage.store_event(entry(run, "cut"))


def test_an_undisturbed_event_is_one_statement(instance, proxy, behind):
    run = create_run(instance, "chain")
    store = instance.event_log_storage.store_event
    store(entry(run, "first"))
    accepted, statements = proxy.accepted, []
    engine = storage.storages(instance)[0]._engine
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    store(entry(run, "second"))
    assert [s.split(" (")[0] for s in statements] == ["INSERT INTO event_logs"]
    assert proxy.accepted == accepted


def test_a_runs_status_outlasts_a_cut(instance, proxy, monkeypatch):
    asked = Asked(monkeypatch)
    run = create_run(instance, "chain")
    for kind, cut_at, status in (
        (DagsterEventType.PIPELINE_START, 0, DagsterRunStatus.STARTED),
        (DagsterEventType.PIPELINE_SUCCESS, 8, DagsterRunStatus.SUCCESS),
    ):
        proxy.arm(Cut(b"UPDATE runs", reply=cut_at))
        instance.report_dagster_event(DagsterEvent(kind.value, run.job_name), run.run_id)
        assert instance.get_run_by_id(run.run_id).status == status
    assert proxy.cuts == 2
    assert asked.kinds == ["PIPELINE_START", "PIPELINE_SUCCESS"]


def test_reads_outlast_cuts_and_an_outage(instance, proxy):
    run = create_run(instance, "chain")
    for number in range(20):
        instance.event_log_storage.store_event(entry(run, f"event {number}"))
    reader = EventReader(instance, run.run_id, set())
    for cut_at in (0, 1, 100, 4000):
        proxy.arm(Cut(b"event_logs", reply=cut_at))
        records = patience.patiently(lambda: reader.read(0))
        assert len({r.storage_id for r in records if r.event_log_entry.step_key}) == 20
        reader.mark(records)
        assert patience.patiently(lambda: reader.read(0)) == []
        reader.seen.clear()
    proxy.refusing = True
    proxy.sever()
    threading.Timer(0.5, setattr, [proxy, "refusing", False]).start()
    assert instance.get_run_by_id(run.run_id).run_id == run.run_id
    proxy.arm(Cut(b"FROM runs", reply=10))
    assert instance.get_run_by_id(run.run_id).run_id == run.run_id
    assert proxy.cuts == 5


def _timeout(instance) -> str:
    with storage.storages(instance)[0]._connect() as connection:
        return connection.exec_driver_sql("SHOW statement_timeout").scalar()


def _instance_at(path, database, query, options):
    url = sqlalchemy.make_url(database).update_query_dict(query)
    if options:
        url = url.update_query_dict({"options": options})
    text = url.render_as_string(hide_password=False)
    (path / "dagster.yaml").write_text(
        f"telemetry: {{enabled: false}}\nstorage: {{postgres: {{postgres_url: '{text}'}}}}\n"
    )
    return DagsterInstance.from_ref(InstanceRef.from_dir(str(path)))


@pytest.mark.parametrize(
    ("said", "options", "without_options", "want"),
    [
        ("1500ms", "", False, "1500ms"),
        ("2min", "-csearch_path=public", False, "2min"),
        ("1500ms", "-cstatement_timeout=7s", False, "7s"),
        ("1500ms", "", True, "0"),
        ("0", "", False, "0"),
        ("soon", "", False, "0"),
        ("", "", False, "0"),
    ],
)
def test_statements_are_bounded_where_nobody_else_has(
    tmp_path, proxy, monkeypatch, said, options, without_options, want
):
    monkeypatch.setenv(relay.TIMEOUT_VARIABLE, said)
    monkeypatch.setattr(patience, "_patience_seconds", 20.0)
    proxy.without_options = without_options
    with _instance_at(tmp_path, proxy.url, {}, options) as instance:
        storage.pool(instance)
        assert _timeout(instance) == want
        storage.dispose(instance)
        assert _timeout(instance) == want, "of every connection"


@pytest.mark.parametrize("timeout", ["1500ms", "0"])
@pytest.mark.parametrize(
    ("options", "without_options", "query", "want"),
    [
        ("", False, {}, "stepfleet/0123abcd/{group}"),
        ("-csearch_path=public", False, {}, "stepfleet/0123abcd/{group}"),
        ("-capplication_name=mine", False, {}, "mine"),
        ("", False, {"application_name": "mine"}, "mine"),
        ("", True, {}, ""),
    ],
)
def test_connections_say_which_process_has_them(
    tmp_path, proxy, monkeypatch, timeout, options, without_options, query, want
):
    monkeypatch.setenv(relay.TIMEOUT_VARIABLE, timeout)
    monkeypatch.setenv(relay.NAME_VARIABLE, "stepfleet/0123abcd")
    monkeypatch.setattr(patience, "_patience_seconds", 20.0)
    proxy.without_options = without_options
    with _instance_at(tmp_path, proxy.url, query, options) as instance:
        storage.pool(instance)
        assert _name(instance) == want.format(group=os.getpgrp())
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # as a template's, of a group of its own, which connects anew
            try:
                os.setpgid(0, 0)
                os.write(write, _name(instance).encode())
            finally:
                os._exit(0)
        os.close(write)
        with open(read) as told:
            assert told.read() == want.format(group=child)
        os.waitpid(child, 0)


def _name(instance) -> str:
    with storage.storages(instance)[0]._connect() as connection:
        return connection.exec_driver_sql("SHOW application_name").scalar()


def test_a_write_that_took_too_long_is_made_again(instance, behind, postgres_url, monkeypatch):
    asked = Asked(monkeypatch)
    run = create_run(instance, "chain")
    with storage.storages(instance)[0]._connect() as connection:
        connection.exec_driver_sql("SET statement_timeout = '200ms'")  # it is the only connection
    event = entry(run, "slow", DagsterEventType.RESOURCE_INIT_FAILURE)
    writing = threading.Thread(target=instance.event_log_storage.store_event, args=[event])
    with locked_log(postgres_url):
        writing.start()
        while not asked.kinds:
            time.sleep(0.01)
    writing.join(20)
    assert said(instance, run) == {"slow": 1}
    assert set(asked.kinds) == {"RESOURCE_INIT_FAILURE"}


def test_events_outlast_an_immediate_restart_of_the_server(instance, behind):
    """A server process that is killed takes all others with it, and the server recovers."""
    run = create_run(instance, "chain")
    done = threading.Event()

    def write() -> None:
        for number in range(300):
            instance.event_log_storage.store_event(entry(run, f"event {number}"))
        done.set()

    def server_process() -> int:
        with storage.storages(instance)[0]._engine.connect() as connection:
            return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()

    writing = threading.Thread(target=write)
    writing.start()
    for number in (50, 150, 250):
        while not done.is_set() and len(said(instance, run)) < number:
            time.sleep(0.01)
        os.kill(patience.patiently(server_process), signal.SIGKILL)
    writing.join(40)
    assert said(instance, run) == {f"event {number}": 1 for number in range(300)}


def test_a_process_that_launches_runs_outlasts_cuts(tmp_path, proxy):
    """What Dagster's daemon does to a run before its launcher has it."""
    where = f"{{postgres: {{postgres_url: '{proxy.url}'}}}}"
    (tmp_path / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\nstorage: {where}\n")
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        StepfleetRunLauncher().register_instance(instance)
        cuts = [(b"INSERT INTO event_logs", n) for n in range(0, 100, 9)]
        cuts += [(b"UPDATE runs", n) for n in (0, 5, 15)] + [(b"FROM runs", n) for n in (0, 50)]
        for number, (marker, cut_at) in enumerate(cuts, 1):
            run = create_run(instance, "chain")
            proxy.arm(Cut(marker, reply=cut_at))
            starting = DagsterEvent(DagsterEventType.PIPELINE_STARTING.value, run.job_name)
            instance.report_dagster_event(starting, run.run_id)
            found = instance.get_run_by_id(run.run_id)
            assert found is not None and found.status == DagsterRunStatus.STARTING
            kinds = [e.dagster_event.event_type_value for e in instance.all_logs(run.run_id)]
            assert kinds.count("PIPELINE_STARTING") == 1
            assert proxy.cuts == number, (marker, cut_at)
