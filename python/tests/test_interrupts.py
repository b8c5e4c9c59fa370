"""Runs that end before their steps do, and runs that go on in another run worker."""

from __future__ import annotations

from dagster import DagsterEventType, DagsterRunStatus
from dagster._core.execution.api import execute_run_iterator
from dagster._utils import interrupts

from dagster_stepfleet.client import Client, Interrupted
from tests.fakes import FakeServer, TemplateProcess, Worker
from tests.payloads import create_run, recon


def _interrupt_when(server: FakeServer, worker: Worker, step_key: str) -> list:
    """Lets the run worker receive SIGTERM when the step has been submitted; holds the step."""
    held: list = []

    def submit(task, payload):
        if task["step_key"] == step_key:
            held.append((task, payload))
            interrupts._received_interrupt["received"] = True
        else:
            worker.tasks.put((task, payload))

    server.on_submit = submit
    return held


def _execute(run, instance, resume: bool = False, job: str = "chain") -> None:
    with interrupts.capture_interrupts():
        list(execute_run_iterator(recon(job), run, instance, resume_from_failure=resume))


def test_interrupted_run_cancels_in_one_call(instance, server, template: TemplateProcess):
    with Worker(server, template) as worker:
        _interrupt_when(server, worker, "b")
        run = create_run(instance, "chain")
        _execute(run, instance)
    (cancel,) = server.bodies("/cancel")
    assert cancel["tasks"] is None and "interrupted" in cancel["reason"]
    assert run.run_id in server.closed
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.FAILURE


def test_interrupt_before_the_first_submit_reaches_dagsters_loop(instance, server, monkeypatch):
    """The server is away when the run asks who serves its queues, and the run is terminated."""

    def away(self):
        interrupts._received_interrupt["received"] = True
        raise Interrupted("interrupted while waiting for the stepfleet server")

    monkeypatch.setattr(Client, "sessions", away)
    run = create_run(instance, "chain")
    _execute(run, instance)
    records = instance.get_records_for_run(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    notes = [r.event_log_entry.dagster_event.message for r in records.records]
    assert any("received termination signal" in note for note in notes)
    assert server.bodies("/tasks") == []


def test_run_that_will_resume_keeps_its_tasks(instance, server, template, monkeypatch):
    monkeypatch.setattr(type(instance), "run_will_resume", lambda self, run_id: True)
    with Worker(server, template) as worker:
        held = _interrupt_when(server, worker, "b")
        run = create_run(instance, "chain")
        _execute(run, instance)
        assert server.bodies("/cancel") == [] and server.closed == {}
        server.on_submit = lambda task, payload: worker.tasks.put((task, payload))
        for item in held:
            worker.tasks.put(item)
        _execute(instance.get_run_by_id(run.run_id), instance, resume=True)
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.SUCCESS
    assert worker.ran == ["one", "b", "c"], "a resumed run runs nothing twice"
    starts = instance.get_records_for_run(run.run_id, of_type=DagsterEventType.STEP_START)
    assert len(starts.records) == 3


def test_resume_finds_a_step_that_ended_meanwhile(instance, server, template, monkeypatch):
    monkeypatch.setattr(type(instance), "run_will_resume", lambda self, run_id: True)
    with Worker(server, template) as worker:
        held = _interrupt_when(server, worker, "b")
        run = create_run(instance, "chain")
        _execute(run, instance)
        server.on_submit = lambda task, payload: worker.tasks.put((task, payload))
        # No run worker is there while its process is killed.
        server.finish(held[0][0], "lost", "worker-1's session died")
        _execute(instance.get_run_by_id(run.run_id), instance, resume=True)
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.FAILURE
    (failure,) = instance.get_records_for_run(
        run.run_id, of_type=DagsterEventType.STEP_FAILURE
    ).records
    text = failure.event_log_entry.dagster_event.step_failure_data.error.message
    assert "worker-1's session died" in text


def test_resume_after_a_skip(instance, server, template, monkeypatch):
    monkeypatch.setattr(type(instance), "run_will_resume", lambda self, run_id: True)
    with Worker(server, template) as worker:
        held = _interrupt_when(server, worker, "after_a")
        run = create_run(instance, "skipping")
        _execute(run, instance, job="skipping")
        skipped = instance.get_records_for_run(run.run_id, of_type=DagsterEventType.STEP_SKIPPED)
        assert len(skipped.records) == 1
        for item in held:
            worker.tasks.put(item)
        _execute(instance.get_run_by_id(run.run_id), instance, resume=True, job="skipping")
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.SUCCESS


def test_late_end_of_a_step_that_has_ended_is_ignored(instance, server, template):
    """A process that was given up writes once more; Dagster's loop alone would fail the run."""
    with Worker(server, template) as worker:
        run = create_run(instance, "chain")

        def submit(task, payload):
            if task["step_key"] == "c":
                (first,) = [
                    r.event_log_entry
                    for r in instance.get_records_for_run(
                        run.run_id, of_type=DagsterEventType.STEP_SUCCESS
                    ).records
                    if r.event_log_entry.step_key == "one"
                ]
                instance.event_log_storage.store_event(first)
            worker.tasks.put((task, payload))

        server.on_submit = submit
        _execute(run, instance)
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.SUCCESS
