"""Events that the ledger's own word allows. Ledger and log are in one database."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy
from dagster import AssetKey, DagsterEventType, DagsterInstance
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.instance import InstanceRef

from dagster_stepfleet import fenced, gate, storage
from dagster_stepfleet.verdicts import VerdictGate
from tests.entries import entry, materialization, said
from tests.payloads import create_run, step
from tests.proxies import Cut

MIGRATIONS = Path(__file__).parents[2] / "internal/postgres/migrations"
TASK = (
    "INSERT INTO stepfleet.task (fence, session_id, state, turn, priority, attempt, policy_retries,"
    " lost_retries, payload, step_hash, run_id, step_key, queue, kind, op, job, code_location)"
    " VALUES (1, 7, 'running', 1, 0, 0, 0, 0, '', :hash, 'r', 's', 'default', 'step', '', '', '')"
    " RETURNING id"
)
SESSION = (
    "INSERT INTO stepfleet.session (id, worker, instance, host, pid, version, slots)"
    " OVERRIDING SYSTEM VALUE VALUES (7, 'w', 'i', 'h', 1, '', '{}')"
)
DIE = "UPDATE stepfleet.session SET state = 'dead', ended_at = now(), end_reason = 'silent'"
LOSE = "UPDATE stepfleet.task SET fence = fence + 1, state = 'lost', ended_at = now()"
TAKE = "SELECT id FROM stepfleet.task WHERE state = 'running' FOR NO KEY UPDATE SKIP LOCKED"


@pytest.fixture
def ledger(behind):
    """The ledger's tables beside Dagster's."""
    behind.exec_driver_sql("CREATE SCHEMA stepfleet")
    try:
        for file in sorted(MIGRATIONS.glob("*.sql")):
            up = re.split(r"-- \+goose (?:Up|Down)\n", file.read_text())[1]
            cursor = behind.connection.cursor()
            cursor.execute(up)
        behind.exec_driver_sql(SESSION)
        yield behind
    finally:
        behind.exec_driver_sql("DROP SCHEMA stepfleet CASCADE")


def new_task(ledger) -> int:
    return ledger.execute(sqlalchemy.text(TASK), {"hash": str(time.time()).encode()}).scalar()


class Refused(BaseException):
    """In place of the process's end."""


@pytest.fixture
def instance(pooled, ledger, monkeypatch):
    def leave(status: int) -> None:
        assert status == gate.REFUSED_STATUS
        raise Refused

    monkeypatch.setattr(fenced.os, "_exit", leave)
    storage.writer_of(storage.storages(pooled)[0]).fence = fenced.Fence(new_task(ledger), 1)
    return pooled


def test_an_owner_writes_in_one_statement(instance, behind):
    run = create_run(instance, "chain")
    statements: list[str] = []
    engine = storage.storages(instance)[0]._engine
    instance.event_log_storage.store_event(entry(run, "first"))
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    instance.event_log_storage.store_event(entry(run, "second"))
    assert len(statements) == 1
    assert said(instance, run) == {"first": 1, "second": 1}


@pytest.mark.parametrize("make", [lambda run, n: entry(run, f"event {n}"), materialization])
def test_one_whose_task_was_taken_writes_nothing_and_leaves(instance, ledger, make):
    run = create_run(instance, "chain")
    instance.event_log_storage.store_event(make(run, 1))
    ledger.exec_driver_sql(LOSE)
    with pytest.raises(Refused):
        instance.event_log_storage.store_event(make(run, 2))
    with pytest.raises(Refused):
        instance.event_log_storage.store_event_batch([materialization(run, 3)])
    assert sum(said(instance, run).values()) == 1


def test_one_whose_session_is_dead_writes_nothing_and_leaves(instance, ledger):
    run = create_run(instance, "chain")
    ledger.exec_driver_sql(DIE)
    with pytest.raises(Refused):
        instance.event_log_storage.store_event(entry(run, "late"))
    assert said(instance, run) == {}


def test_an_asset_event_is_whole(instance, proxy, behind):
    run = create_run(instance, "chain")
    for number, cut_at in enumerate([10_000, 0, 40, 80, 120, 160], 1):
        proxy.arm(Cut(b"INSERT INTO event_logs", reply=cut_at))
        instance.event_log_storage.store_event(materialization(run, number))
        key = AssetKey(f"{run.run_id}-{number}")
        assert instance.get_latest_materialization_event(key) is not None
    assert said(instance, run) == {f"asset {n}": 1 for n in range(1, 7)}
    query = (
        "SELECT count(*), count(DISTINCT event_id) FROM asset_event_tags WHERE asset_key LIKE :a"
    )
    counts = behind.execute(sqlalchemy.text(query), {"a": f"%{run.run_id}%"}).one()
    assert tuple(counts) == (6, 6)


def test_an_event_is_there_once_wherever_the_answer_to_it_is_cut(instance, proxy):
    run = create_run(instance, "chain")
    for cut_at in range(0, 80, 3):
        proxy.arm(Cut(b"INSERT INTO event_logs", reply=cut_at))
        instance.event_log_storage.store_event(entry(run, f"cut at {cut_at}"))
    assert said(instance, run) == {f"cut at {n}": 1 for n in range(0, 80, 3)}


def test_who_takes_the_task_meanwhile_comes_first(instance, ledger, postgres_url):
    run = create_run(instance, "chain")
    sweep = sqlalchemy.create_engine(postgres_url).connect()
    sweep.exec_driver_sql(LOSE)
    refused = threading.Event()

    def write() -> None:
        try:
            instance.event_log_storage.store_event(entry(run, "late"))
        except Refused:
            refused.set()

    writing = threading.Thread(target=write)
    writing.start()
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    until = time.monotonic() + 20
    while not ledger.exec_driver_sql(query).scalar() and time.monotonic() < until:
        time.sleep(0.01)
    sweep.commit()
    sweep.close()
    writing.join(20)
    assert refused.is_set()
    assert said(instance, run) == {}


def test_a_task_is_not_taken_from_one_that_writes(instance, ledger):
    writer = storage.writer_of(storage.storages(instance)[0])
    with storage.storages(instance)[0].index_transaction() as connection:
        writer.fence.hold(connection)
        assert ledger.exec_driver_sql(TAKE).fetchall() == []
    assert len(ledger.exec_driver_sql(TAKE).fetchall()) == 1


def test_a_run_workers_verdict_is_subject_to_it(instance, ledger):
    run = create_run(instance, "chain")
    verdicts = VerdictGate(instance, run.run_id, KnownExecutionState())
    ledger.exec_driver_sql(LOSE)
    with verdicts.expecting("one", 0), pytest.raises(Refused):
        data = StepFailureData(error=None, user_failure_data=None)
        failure = entry(run, "given up", DagsterEventType.STEP_FAILURE, data)
        instance.event_log_storage.store_event(failure)
    verdicts.close()
    assert said(instance, run) == {}


@pytest.fixture
def unpooled(postgres_url, tmp_path):
    home = tmp_path / "unpooled"
    home.mkdir()
    where = f"{{postgres: {{postgres_url: '{postgres_url}'}}}}"
    (home / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\nstorage: {where}\n")
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        yield instance


def test_a_superseded_child_writes_nothing(unpooled, ledger, template):
    for lost in (False, True):
        run = create_run(unpooled, "chain")
        task, payload = step(unpooled, run, "one")
        task["task_id"] = new_task(ledger)
        if lost:
            ledger.exec_driver_sql(LOSE)
        child = template.fork()
        child.ready()
        result = child.run(task, payload, STEPFLEET_FENCED_EVENTS="true")
        status = template.exited(child.pid)["status"]
        child.close()
        events = [e for e in unpooled.all_logs(run.run_id) if e.step_key == "one"]
        if lost:
            assert (result, status, events) == ({}, gate.REFUSED_STATUS, [])
        else:
            assert result["success"] and status == 0
            assert events[-1].dagster_event.event_type == DagsterEventType.STEP_SUCCESS


def test_a_ledger_that_is_elsewhere_is_said(unpooled, template):
    run = create_run(unpooled, "chain")
    child = template.fork()
    child.ready()
    result = child.run(*step(unpooled, run, "one"), STEPFLEET_FENCED_EVENTS="1")
    assert "GRANT USAGE ON SCHEMA stepfleet" in result["error"]["message"], result
    child.close()
