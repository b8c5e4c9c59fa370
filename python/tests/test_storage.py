"""One kept PostgreSQL connection. Needs a database: STEPFLEET_TEST_POSTGRES_URL."""

from __future__ import annotations

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy
from dagster import DagsterEventType, DagsterInstance
from dagster._core.instance import InstanceRef

from dagster_stepfleet import gate, patience, storage, writer
from tests.payloads import create_run, step
from tests.test_events import store

URL = os.environ.get("STEPFLEET_TEST_POSTGRES_URL", "")


@pytest.fixture
def postgres(tmp_path):
    if not URL:
        if os.environ.get("CI"):
            pytest.fail("STEPFLEET_TEST_POSTGRES_URL is not set")
        pytest.skip("STEPFLEET_TEST_POSTGRES_URL is not set")
    (tmp_path / "dagster.yaml").write_text(
        f"telemetry: {{enabled: false}}\nstorage: {{postgres: {{postgres_url: '{URL}'}}}}\n"
    )
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        yield instance


def _backend(instance) -> int:
    with storage.storages(instance)[0]._connect() as connection:
        return connection.execute(sqlalchemy.text("select pg_backend_pid()")).scalar()


def test_one_connection_is_kept(postgres):
    assert _backend(postgres) != _backend(postgres), "stock opens one for each use"
    restore = storage.pool(postgres)
    first = _backend(postgres)
    run = create_run(postgres, "chain")
    for _ in range(3):
        store(postgres, run, DagsterEventType.ENGINE_EVENT, "one")
    assert postgres.get_run_by_id(run.run_id) is not None
    assert _backend(postgres) == first
    records = postgres.get_records_for_run(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    assert len(records.records) == 3
    restore()
    assert _backend(postgres) != _backend(postgres)
    assert "store_event" not in vars(storage.storages(postgres)[0])


def test_lost_connection_is_replaced(postgres, monkeypatch):
    monkeypatch.setattr(storage, "_FRESH_SECONDS", 0.0)
    storage.pool(postgres)
    first = _backend(postgres)
    run = create_run(postgres, "chain")
    engine = sqlalchemy.create_engine(URL)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"select pg_terminate_backend({first})"))
    store(postgres, run, DagsterEventType.ENGINE_EVENT, "one")
    assert _backend(postgres) != first
    engine.dispose()


def test_template_holds_no_connection(postgres, template):
    run = create_run(postgres, "chain")
    for _ in range(2):  # the second finds the instance that the first has taught
        child = template.fork()
        child.ready()
        assert child.run(*step(postgres, run, "one"))["success"]
        template.exited(child.pid)
        child.close()
    frame, child = template.try_fork()
    assert child is not None, frame
    child.close()


def test_processes_that_a_step_forks_report_for_themselves(postgres, template):
    run = create_run(postgres, "forking")
    child = template.fork()
    child.ready()
    assert child.run(*step(postgres, run, "forker"))["success"]
    entries = postgres.all_logs(run.run_id)
    said = Counter(entry.user_message for entry in entries if " says " in entry.user_message)
    assert said == {f"process {p} says {n}": 1 for p in range(5) for n in range(25)}
    reported = Counter(
        entry.dagster_event.asset_key.to_user_string()
        for entry in entries
        if entry.is_dagster_event
        and entry.dagster_event.event_type == DagsterEventType.ASSET_MATERIALIZATION
    )
    assert reported == {f"of_{p}": 25 for p in range(5)}
    assert child.asked.count("ASSET_MATERIALIZATION") == 125


class Away:
    """An engine whose PostgreSQL comes back after some tries."""

    def __init__(self, tries: int) -> None:
        self.left = tries

    def connect(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise sqlalchemy.exc.OperationalError("", None, Exception("connection refused"))
        return "connected"


def test_connect_waits_for_a_storage_that_is_away_only_when_told(monkeypatch):
    monkeypatch.setattr(patience, "_OUTAGE_POLL_SECONDS", 0.0)
    monkeypatch.setattr(patience, "_patience_seconds", 0.0)
    away = Away(10)
    patience.connect_patiently(away)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        away.connect()
    assert away.left == 9
    storage.wait_out_outages()
    assert away.connect() == "connected"


def test_connect_gives_up_after_a_long_outage(monkeypatch):
    monkeypatch.setattr(patience, "_OUTAGE_POLL_SECONDS", 0.0)
    monkeypatch.setattr(patience, "_patience_seconds", 0.01)
    away = Away(10**9)
    patience.connect_patiently(away)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        away.connect()


class Granting:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, frame) -> None:
        self.asked.append(frame["event"])


def _types(instance, run) -> list[str]:
    records = instance.get_records_for_run(run.run_id, of_type=set(DagsterEventType)).records
    return [r.event_log_entry.dagster_event.event_type_value for r in records]


def test_events_before_any_user_code_go_with_the_next(postgres):
    storage.pool(postgres)
    run = create_run(postgres, "chain")
    before = _types(postgres, run)
    store(postgres, run, DagsterEventType.LOGS_CAPTURED, "one")
    assert _types(postgres, run) == [*before, "LOGS_CAPTURED"], "not unless it is asked for"
    parent = Granting()
    gate.guard(postgres.event_log_storage, parent)
    flush = storage.join_events(postgres)
    store(postgres, run, DagsterEventType.RESOURCE_INIT_SUCCESS, "one")
    store(postgres, run, DagsterEventType.LOGS_CAPTURED, "one")
    assert _types(postgres, run) == [*before, "LOGS_CAPTURED"]
    store(postgres, run, DagsterEventType.STEP_START, "one")
    joined = [*before, "LOGS_CAPTURED", "RESOURCE_INIT_SUCCESS", "LOGS_CAPTURED", "STEP_START"]
    assert _types(postgres, run) == joined
    store(postgres, run, DagsterEventType.LOGS_CAPTURED, "one")
    assert _types(postgres, run) == joined
    flush()
    flush()
    store(postgres, run, DagsterEventType.RESOURCE_INIT_FAILURE, "one")
    assert parent.asked == ["RESOURCE_INIT_FAILURE"]
    assert _types(postgres, run) == [*joined, "LOGS_CAPTURED", "RESOURCE_INIT_FAILURE"]


def test_events_that_wait_outlast_a_write_that_fails(postgres, monkeypatch):
    storage.pool(postgres)
    run = create_run(postgres, "chain")
    before = _types(postgres, run)
    storage.join_events(postgres)
    store(postgres, run, DagsterEventType.LOGS_CAPTURED, "one")
    with monkeypatch.context() as patched:
        patched.setattr(writer, "_INSERT", "INSERT INTO nowhere VALUES ")
        with pytest.raises(sqlalchemy.exc.ProgrammingError):
            store(postgres, run, DagsterEventType.STEP_START, "one")
    store(postgres, run, DagsterEventType.STEP_START, "one")
    assert _types(postgres, run) == [*before, "LOGS_CAPTURED", "STEP_START"]


def test_any_number_of_threads_may_write_at_once(postgres):
    storage.pool(postgres)
    run = create_run(postgres, "chain")
    together = threading.Barrier(40)
    storage.storages(postgres)[0]._engine.connect().close()

    def write(number):
        with storage.storages(postgres)[0]._connect():
            together.wait(30)  # each has a connection, and keeps it until all have one
        store(postgres, run, DagsterEventType.ENGINE_EVENT, f"step {number}")

    with ThreadPoolExecutor(40) as threads:
        list(threads.map(write, range(40)))
    assert _types(postgres, run).count("ENGINE_EVENT") == 40
