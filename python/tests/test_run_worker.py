"""The run branch of a child, as a worker meets it."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest
from dagster import DagsterRunStatus
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import serialize_value

from dagster_stepfleet import gate, seams
from tests.fakes import TOKEN, Child
from tests.payloads import create_run
from tests.test_host import kinds
from tests.test_launcher import started, starting, status


@pytest.fixture(params=["forked", "cold"])
def child(request, template):
    child = template.fork() if request.param == "forked" else Child.cold()
    child.ready()
    yield child
    child.close()


def frame(instance, run, resume: bool = False) -> tuple[dict, str]:
    make = ResumeRunArgs if resume else ExecuteRunArgs
    args = make(run.job_code_origin, run.run_id, instance.get_ref(), True)
    task = {"kind": "run", "run_id": run.run_id, "step_key": "@run", "attempt": int(resume)}
    return task, serialize_value(args)


def test_a_run_is_executed(instance, child):
    run = starting(instance, "alone")
    result = child.run(*frame(instance, run))
    assert (result["outcome"], result["success"], result["event"]) == ("succeeded", True, "")
    assert result["worker"] == "worker-1" and result["execution_seconds"] > 0
    assert status(instance, run) == DagsterRunStatus.SUCCESS
    assert child.asked == [
        "start",
        "PIPELINE_START",
        "STEP_OUTPUT",
        "STEP_SUCCESS",
        "PIPELINE_SUCCESS",
    ]


def test_user_code_in_a_run_worker_does_not_find_the_token(instance, child):
    """The executor does: see test_a_launched_run_succeeds_in_warm_processes."""
    run = starting(instance, "alone_environ")
    assert child.run(*frame(instance, run), STEPFLEET_TOKEN="secret")["success"]
    path = Path(instance.storage_directory()) / run.run_id / "environ" / "result"
    names = pickle.loads(path.read_bytes()).split(",")
    assert "STEPFLEET_WORKER" in names and "STEPFLEET_TOKEN" not in names


def test_a_run_that_fails_is_work_done(instance, child):
    run = starting(instance, "alone_failing")
    assert child.run(*frame(instance, run))["outcome"] == "succeeded"
    assert status(instance, run) == DagsterRunStatus.FAILURE


@pytest.mark.parametrize("refused", ["start", "PIPELINE_START", "STEP_SUCCESS", "PIPELINE_SUCCESS"])
def test_a_refused_run_worker_ends_without_writing(instance, template, refused):
    child = template.fork()
    child.ready()
    run = starting(instance, "alone")
    before = kinds(instance, run)
    assert child.run(*frame(instance, run), refuse={refused}) == {}
    assert template.exited(child.pid)["status"] == gate.REFUSED_STATUS
    written = kinds(instance, run)[len(before) :]
    assert not {refused, "PIPELINE_SUCCESS", "PIPELINE_FAILURE"} & set(written)
    if refused == "start":
        assert written == []


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_has_ended_meanwhile_does_not_begin(instance, template, resume):
    child = template.fork()
    child.ready()
    run = started(instance) if resume else starting(instance)
    instance.report_run_failed(run)
    before = kinds(instance, run)
    result = child.run(*frame(instance, run, resume))
    assert (result["outcome"], result["error"]["code"]) == ("cancelled", "run_not_waiting")
    assert kinds(instance, run) == before


def test_a_launch_of_a_run_that_has_begun_does_not_begin(instance, template):
    child = template.fork()
    child.ready()
    run = started(instance)
    assert child.run(*frame(instance, run))["outcome"] == "cancelled"
    assert status(instance, run) == DagsterRunStatus.STARTED


def test_a_run_that_is_being_canceled_is_canceled(instance, template):
    child = template.fork()
    child.ready()
    run = started(instance)
    instance.report_run_canceling(run)
    assert child.run(*frame(instance, run, resume=True))["outcome"] == "cancelled"
    assert status(instance, run) == DagsterRunStatus.CANCELED


def test_a_run_worker_asks_for_its_run_as_the_resume_that_it_was_launched_for(
    instance, server, template
):
    """Its task says so. Dagster's log may have a later resume by the time it begins."""
    run = started(instance)
    for _ in range(3):
        instance.report_engine_event(seams.RESUME_MESSAGE, run)
    server.take(run.run_id, "the one that followed it", resume=3)
    child = template.fork()
    child.ready()
    task, payload = frame(instance, run, resume=True)
    env = {"STEPFLEET_URL": server.url, "STEPFLEET_TOKEN": TOKEN}
    assert child.run({**task, "attempt": 2}, payload, **env) == {}
    assert template.exited(child.pid)["status"] == 0
    assert {body.get("resume") for body in server.bodies("/epoch")} == {2}
    assert status(instance, run) == DagsterRunStatus.STARTED


def test_a_second_sigterm_changes_nothing_of_a_run_workers_end(instance, server):
    """Dagster catches it as it does the first: the run still gets its end. Its worker kills what
    does not come to one."""
    run = starting(instance, "chain")
    submitted = threading.Event()
    server.on_submit = lambda task, payload: submitted.set()
    child = Child.cold()
    child.ready()

    def stop_twice() -> None:
        assert submitted.wait(30)
        (task,) = server.tasks.values()
        instance.report_run_canceling(instance.get_run_by_id(run.run_id))
        task["state"] = "running"  # so the run worker waits for its process to be gone
        os.kill(child.pid, signal.SIGTERM)
        until = time.monotonic() + 30
        while not task.get("cancel_requested") and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGTERM)
        server.finish(task, "cancelled")

    stopping = threading.Thread(target=stop_twice)
    stopping.start()
    result = child.run(*frame(instance, run), STEPFLEET_TOKEN=TOKEN)
    stopping.join()
    assert child.proc.wait(30) == 0
    assert result["outcome"] == "succeeded", result
    assert status(instance, run) == DagsterRunStatus.CANCELED
    assert kinds(instance, run).count("PIPELINE_CANCELED") == 1
    assert run.run_id in server.closed
    child.close()


def test_a_run_whose_code_is_gone_fails(instance, template):
    child = template.fork()
    child.ready()
    run = create_run(instance, "alone")
    run = run._replace(run_id="unknown")
    result = child.run(*frame(instance, run))
    assert (result["outcome"], result["error"]["code"]) == ("failed", "run_worker_crashed")
    assert "no run unknown" in result["error"]["message"]


def test_the_payload_of_another_run(instance, template):
    child = template.fork()
    child.ready()
    run = starting(instance, "alone")
    task, payload = frame(instance, run)
    result = child.run(task | {"run_id": "other"}, payload)
    assert result["error"]["code"] == "prepare" and child.asked == []
