"""The run launcher against a server of the test."""

from __future__ import annotations

import socket
import time

import pytest
from dagster import DagsterEventType, DagsterRunStatus
from dagster._core.launcher import LaunchRunContext, ResumeRunContext, WorkerStatus

from dagster_stepfleet import StepfleetRunLauncher
from dagster_stepfleet.client import ServerUnreachable, StepfleetError
from tests.fakes import TERMINAL, FakeServer, Worker
from tests.payloads import create_run


def launcher_of(instance, **config) -> StepfleetRunLauncher:
    launcher = StepfleetRunLauncher(**config)
    launcher.register_instance(instance)
    return launcher


@pytest.fixture
def launcher(instance, server) -> StepfleetRunLauncher:
    return launcher_of(instance)


def starting(instance, job: str = "chain", **tags: str):
    """A run as a launcher is given it."""
    run = create_run(instance, job, tags=tags)
    instance.report_dagster_event(event(run, DagsterEventType.PIPELINE_STARTING), run.run_id)
    return instance.get_run_by_id(run.run_id)


def event(run, kind: DagsterEventType):
    from dagster import DagsterEvent

    return DagsterEvent(event_type_value=kind.value, job_name=run.job_name)


def started(instance):
    run = starting(instance)
    instance.report_dagster_event(event(run, DagsterEventType.PIPELINE_START), run.run_id)
    return instance.get_run_by_id(run.run_id)


def launch(launcher, run) -> None:
    launcher.launch_run(LaunchRunContext(run, None))


def status(instance, run) -> DagsterRunStatus:
    return instance.get_run_by_id(run.run_id).status


def messages(instance, run) -> list[str]:
    return [str(e.message) for e in instance.all_logs(run.run_id)]


def the_task(server: FakeServer) -> dict:
    (task,) = server.tasks.values()
    return task


def test_a_launch_that_cannot_be_told_of_is_none_the_worse(instance, launcher, server, monkeypatch):
    run = starting(instance)

    def away(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the storage is away")

    monkeypatch.setattr(instance, "report_engine_event", away)
    launch(launcher, run)
    assert the_task(server)["run_id"] == run.run_id


def test_a_launched_run_succeeds_in_warm_processes(instance, server, template, launcher):
    run = starting(instance)
    env = {"STEPFLEET_URL": server.url, "STEPFLEET_TOKEN": "test-token"}
    with Worker(server, template, slots=2, **env) as worker:
        launch(launcher, run)
        deadline = time.monotonic() + 30
        while not all(t["state"] in TERMINAL for t in list(server.tasks.values())):
            assert time.monotonic() < deadline, server.tasks
            time.sleep(0.02)
    assert status(instance, run) == DagsterRunStatus.SUCCESS
    assert sorted(worker.ran) == ["@run", "b", "c", "one"]
    task = server.tasks[(run.run_id, "@run", 0)]
    assert (task["kind"], task["queue"], task["state"]) == ("run", "runs", "succeeded")
    identities = {body["identity"] for body in server.bodies("/tasks") if body}
    assert len(identities) == 1, "launcher and executor name the run alike"


def test_a_second_launch_finds_the_first(instance, server, launcher):
    run = starting(instance)
    launch(launcher, run)
    launch(launcher_of(instance), run)
    assert the_task(server)["attempt"] == 0
    assert sum("Run worker submitted" in m for m in messages(instance, run)) == 1


def test_a_launch_of_a_run_whose_run_worker_has_ended(instance, server, launcher):
    run = starting(instance)
    launch(launcher, run)
    server.finish(the_task(server), "lost")
    with pytest.raises(StepfleetError, match="launched before and has ended as lost"):
        launch(launcher, run)
    instance.report_run_failed(run)
    launch(launcher, run)  # nobody waits for it any more


def test_a_launch_after_the_run_was_closed(instance, server, launcher):
    run = starting(instance)
    server.closed[run.run_id] = "by somebody"
    with pytest.raises(StepfleetError, match="run_closed"):
        launch(launcher, run)
    instance.report_run_canceled(run)
    launch(launcher, run)
    assert server.tasks == {}


def test_queue_and_priority_come_from_tags(instance, server, launcher):
    tags = {"stepfleet/run_queue": "runs-big", "dagster/priority": "7"}
    launch(launcher, starting(instance, **tags))
    task = the_task(server)
    assert (task["queue"], task["priority"]) == ("runs-big", 7)


def test_a_refused_queue_says_where_it_is_set(instance, server):
    with pytest.raises(StepfleetError, match=r"queue nowhere.*stepfleet/run_queue"):
        launch(launcher_of(instance, queue="nowhere"), starting(instance))


@pytest.mark.parametrize(
    ("enabled", "resumes", "attempt", "left"),
    [(True, 3, 0, 3), (True, 3, 2, 1), (False, 3, 0, 0), (True, 2**40, 0, 2**31 - 1)],
)
def test_the_task_says_how_many_run_workers_may_follow(
    instance, server, launcher, monkeypatch, enabled, resumes, attempt, left
):
    monkeypatch.setattr(type(instance), "run_monitoring_enabled", enabled)
    monkeypatch.setattr(type(instance), "run_monitoring_max_resume_run_attempts", resumes)
    run = starting(instance)
    if attempt:
        launcher.resume_run(ResumeRunContext(run, None, attempt))
    else:
        launch(launcher, run)
    assert the_task(server)["attempt"] == attempt
    assert the_task(server)["retry_budget"] == {"policy_retries": 0, "lost_step_retries": left}


def test_a_launch_waits_out_a_short_outage(instance, server, launcher):
    server.fail_next = [(503, {"v": 1}, {"Retry-After": "0.1"})] * 2
    launch(launcher, starting(instance))
    assert the_task(server)["state"] == "queued"


def unused_url() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_an_outage_that_lasts(instance):
    run = started(instance)
    away = launcher_of(instance, server_url=unused_url(), launch_budget_seconds=0.5)
    with pytest.raises(ServerUnreachable):
        launch(away, run)
    health = away.check_run_worker_health(run)
    assert health.status == WorkerStatus.RUNNING, "a server that is away says nothing of the run"


def test_a_resume_that_is_dead_says_why_and_what_to_do(instance, server, launcher):
    run = started(instance)
    server.poisoned = "three attempts of @run were lost"
    launcher.resume_run(ResumeRunContext(run, None, resume_attempt_number=3))
    assert the_task(server)["state"] == "dead"
    (said,) = [m for m in messages(instance, run) if "Run worker" in m]
    assert "Run worker of resume 3 was refused and will not start" in said
    assert "three attempts of @run were lost" in said
    assert "more, and re-execute the run" in said
    assert "submitted" not in said


def test_a_resume_during_an_outage_does_not_fail_the_run(instance, monkeypatch):
    monkeypatch.setattr("dagster_stepfleet.launcher._RESUME_BUDGET_SECONDS", 0.1)
    run = started(instance)
    away = launcher_of(instance, server_url=unused_url())
    away.resume_run(ResumeRunContext(run, None, 1))
    assert any("Resume attempt 1 was not submitted" in m for m in messages(instance, run))
    assert status(instance, run) == DagsterRunStatus.STARTED


def test_a_server_that_hangs_holds_up_one_health_check(instance, monkeypatch):
    monkeypatch.setattr("dagster_stepfleet.launcher._HEALTH_TIMEOUT_SECONDS", 0.5)
    run = started(instance)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung = launcher_of(instance, server_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hung.check_run_worker_health(run).status == WorkerStatus.RUNNING
        before = time.monotonic()
        for _ in range(20):
            assert hung.check_run_worker_health(run).status == WorkerStatus.RUNNING
        assert time.monotonic() - before < 0.5


@pytest.mark.parametrize(
    ("state", "want"),
    [
        ("queued", WorkerStatus.RUNNING),
        ("leased", WorkerStatus.RUNNING),
        ("running", WorkerStatus.RUNNING),
        ("succeeded", WorkerStatus.SUCCESS),
        ("failed", WorkerStatus.FAILED),
        ("lost", WorkerStatus.FAILED),
        ("cancelled", WorkerStatus.FAILED),
        ("dead", WorkerStatus.FAILED),
    ],
)
def test_health_is_the_latest_run_workers(instance, server, launcher, state, want):
    run = started(instance)
    assert launcher.check_run_worker_health(run).status == WorkerStatus.NOT_FOUND
    launch(launcher, run)
    server.finish(the_task(server), "lost")
    launcher.resume_run(ResumeRunContext(run, None, 1))
    server.tasks[(run.run_id, "@run", 1)].update(state=state, reason="because")
    health = launcher.check_run_worker_health(run)
    assert health.status == want and health.run_worker_id == "2"
    if want == WorkerStatus.FAILED:
        assert f"ended as {state}: because" in str(health.msg)


def test_health_is_of_a_run_worker_that_goes_on(instance, server, launcher):
    """Two daemons have resumed the run at once, and the later run worker has lost it."""
    run = started(instance)
    launch(launcher, run)
    server.finish(the_task(server), "lost")
    for attempt in (1, 2):
        launcher.resume_run(ResumeRunContext(run, None, attempt))
    server.finish(server.tasks[(run.run_id, "@run", 2)], "failed")
    assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    server.finish(server.tasks[(run.run_id, "@run", 1)], "failed")
    assert launcher.check_run_worker_health(run).status == WorkerStatus.FAILED


def test_health_reads_no_steps(instance, server, launcher):
    """Run monitoring asks for every run at every poll, and a run may have thousands of steps."""
    run = started(instance)
    launch(launcher, run)
    step = {**the_task(server), "kind": "step", "step_key": "a", "attempt": 7, "state": "running"}
    server.finish(the_task(server), "lost")
    server.tasks[(run.run_id, "a", 7)] = step
    assert launcher.check_run_worker_health(run).status == WorkerStatus.FAILED
    reads = [path for method, path, _ in server.calls if method == "GET"]
    assert reads == [f"/v1/runs/{run.run_id}/tasks?kind=run"]
    server.knows_no_kinds = True  # of an older version
    assert launcher.check_run_worker_health(run).status == WorkerStatus.FAILED


def test_the_story_of_a_run_that_does_not_begin(instance, server, launcher):
    run = starting(instance)
    assert "no run worker" in str(launcher.get_run_worker_debug_info(run))
    launch(launcher, run)
    story = str(launcher.get_run_worker_debug_info(run))
    assert "waits since 2026-01-02T03:04:05Z" in story and "--queue runs:N" in story
    server.tasks[(run.run_id, "@run", 0)].update(state="running", worker="w", started_at="then")
    assert "is running on worker w since then" in str(launcher.get_run_worker_debug_info(run))


def test_terminate_of_a_run_worker_that_waits_ends_the_run(instance, server, launcher):
    run = started(instance)
    launch(launcher, run)
    assert launcher.terminate(run.run_id)
    assert status(instance, run) == DagsterRunStatus.CANCELED
    assert the_task(server)["state"] == "cancelled" and run.run_id in server.closed
    assert not launcher.terminate(run.run_id), "it has ended"


def test_terminate_of_one_that_runs_leaves_the_end_to_it(instance, server, launcher):
    run = started(instance)
    launch(launcher, run)
    the_task(server)["state"] = "running"
    assert launcher.terminate(run.run_id)
    assert status(instance, run) == DagsterRunStatus.CANCELING
    assert the_task(server)["cancel_requested"] and server.closed == {}


def test_terminate_without_a_run_worker_ends_the_run_and_its_steps(instance, server, launcher):
    run = started(instance)
    launch(launcher, run)
    server.finish(the_task(server), "lost")
    assert launcher.terminate(run.run_id)
    assert status(instance, run) == DagsterRunStatus.CANCELED and run.run_id in server.closed


def test_terminate_during_an_outage_says_so(instance, monkeypatch):
    monkeypatch.setattr("dagster_stepfleet.launcher._TERMINATE_BUDGET_SECONDS", 0.1)
    run = started(instance)
    with pytest.raises(ServerUnreachable):
        launcher_of(instance, server_url=unused_url()).terminate(run.run_id)
    assert status(instance, run) == DagsterRunStatus.CANCELING
    assert any("could not be told to stop" in m for m in messages(instance, run))


def test_dagster_takes_the_launcher_from_its_instance_file(tmp_path, monkeypatch):
    from dagster import DagsterInstance

    monkeypatch.setenv("RUN_QUEUE", "runs-big")
    (tmp_path / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\n"
        "run_launcher:\n  module: dagster_stepfleet\n  class: StepfleetRunLauncher\n"
        "  config: {queue: {env: RUN_QUEUE}, server_url: 'http://127.0.0.1:1'}\n"
        "run_monitoring: {enabled: true, max_resume_run_attempts: 3}\n"
    )
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, StepfleetRunLauncher)
        assert launcher.supports_resume_run and launcher.supports_check_run_worker_health
        assert launcher.inst_data is not None
        assert launcher.inst_data.config_dict["queue"] == {"env": "RUN_QUEUE"}
