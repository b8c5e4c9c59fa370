"""The event reader, with events that become visible out of order."""

from __future__ import annotations

import pytest
from dagster import DagsterEvent, DagsterEventType
from dagster._core.events import EngineEventData
from dagster._core.events.log import EventLogEntry

from dagster_stepfleet.events import EventReader
from tests.payloads import create_run


def store(instance, run, kind: DagsterEventType, step: str) -> None:
    event = DagsterEvent(
        kind.value, run.job_name, step_key=step, event_specific_data=EngineEventData()
    )
    entry = EventLogEntry(None, "debug", "", run.run_id, 1.0, step, run.job_name, event)
    instance.event_log_storage.store_event(entry)


@pytest.fixture
def run(instance):
    return create_run(instance, "chain")


def hide(instance, run, storage_id: int):
    """Takes an event out of the log; returns what puts it back, with its id."""
    import sqlalchemy
    from dagster._core.storage.event_log import SqlEventLogStorageTable as Table

    from dagster_stepfleet import seams

    storage = seams.inner_storage(instance.event_log_storage, "event_log_storage")
    with storage.run_connection(run.run_id) as connection:
        row = (
            connection.execute(sqlalchemy.select(Table).where(Table.c.id == storage_id))
            .mappings()
            .one()
        )
        row = dict(row)
        connection.execute(Table.delete().where(Table.c.id == storage_id))

    def show() -> None:
        with storage.run_connection(run.run_id) as connection:
            connection.execute(Table.insert().values(**row))

    return show


def test_latecomer_is_read(instance, run):
    reader = EventReader(instance, run.run_id, set())
    reader.mark(reader.read())
    for step in ("a", "b", "c"):
        store(instance, run, DagsterEventType.ENGINE_EVENT, step)
    late = reader.highest + 1
    show = hide(instance, run, late)
    records = reader.read(max(0, reader.highest - 100))
    assert [r.storage_id for r in records] == [late + 1, late + 2]
    reader.mark(records)
    show()
    assert [r.storage_id for r in reader.read(max(0, reader.highest - 100))] == [late]


def test_reads_page_after_page(instance, run, monkeypatch):
    from dagster_stepfleet import events

    monkeypatch.setattr(events, "_PAGE_EVENTS", 7)
    for n in range(40):
        store(instance, run, DagsterEventType.ENGINE_EVENT, f"s{n}")
    reader = EventReader(instance, run.run_id, set())
    assert len([r for r in reader.read() if r.event_log_entry.step_key]) == 40


def test_unseen_ending(instance, run):
    reader = EventReader(instance, run.run_id, set())
    store(instance, run, DagsterEventType.RESOURCE_INIT_FAILURE, "a")
    assert reader.has_unseen_ending("a") and not reader.has_unseen_ending("b")
    reader.mark(reader.read_steps(["a"]))
    assert not reader.has_unseen_ending("a")
