"""Which runs are refused since their values would lie on one host and be read on another."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from dagster import DagsterEventType, DagsterRunStatus
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.errors import DagsterUnmetExecutorRequirementsError
from dagster._core.execution.api import create_execution_plan, execute_run

from dagster_stepfleet.iocheck import UnsharedFilesystem, refuse_unshared
from dagster_stepfleet.tags import Defaults
from tests.fakes import Worker
from tests.payloads import PYTHON, create_run, recon

DEFS = ModuleCodePointer("tests.io_defs", "defs", PYTHON)
HERE = socket.gethostname()


def session(host: str, *queues: str, state: str = "alive", draining: bool = False) -> dict:
    return {
        "session_id": 1,
        "worker": f"worker on {host}",
        "instance": "instance",
        "host": host,
        "slots": dict.fromkeys(queues, 4),
        "state": state,
        "draining": draining,
    }


class Sessions:
    """The client, as the check uses it."""

    def __init__(self, *sessions: dict) -> None:
        self.answer = list(sessions)
        self.calls = 0

    def sessions(self) -> list[dict]:
        self.calls += 1
        return self.answer


def check(job: str, client: Sessions, steps: list[str] | None = None) -> None:
    plan = create_execution_plan(recon(job, DEFS), step_keys_to_execute=steps)
    context = SimpleNamespace(
        reconstructable_job=recon(job, DEFS),
        dagster_run=SimpleNamespace(run_config={}, tags={}),
    )
    refuse_unshared(context, plan, client, Defaults())  # type: ignore[arg-type]


def refusal(job: str, steps: list[str] | None = None) -> str:
    with pytest.raises(UnsharedFilesystem) as caught:
        check(job, Sessions(session(HERE, "default"), session("far-away", "default")), steps)
    return str(caught.value)


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ("by_default", "Step add loads its input n through the IO manager 'io_manager'"),
        ("by_definition", "'io_manager'"),
        ("by_configured", "(/somewhere)"),
        ("by_class", "(/elsewhere)"),
        ("by_another_key", "Step add loads its input n through the IO manager 'disk'"),
        ("dynamic", "Step add[?] loads its input n"),
        ("makes_cooked", "Step cooked loads its input raw"),
    ],
)
def test_what_loads_from_the_disk_of_another_host_is_refused(job, says):
    text = refusal(job)
    assert says in text
    assert "worker on far-away on far-away" in text and HERE in text
    assert "S3PickleIOManager" in text and "shared_filesystem: true" in text


@pytest.mark.parametrize("job", ["in_a_bucket", "of_the_users_own", "loads_nothing", "makes_raw"])
def test_what_does_not_is_not(job):
    check(job, Sessions(session("far-away", "default")))


@pytest.mark.parametrize("job", ["of_the_users_own", "loads_nothing", "makes_raw"])
def test_the_server_is_asked_only_where_it_matters(job):
    client = Sessions()
    check(job, client)
    assert client.calls == 0


def test_a_bucket_by_environment_is_not_a_disk(monkeypatch):
    monkeypatch.setenv("STEPFLEET_TEST_BASE", "s3://bucket")
    check("by_variable", Sessions(session("far-away", "default")))
    monkeypatch.setenv("STEPFLEET_TEST_BASE", "/here")
    assert "(/here)" in refusal("by_variable")


def test_a_default_that_the_environment_replaces_is_the_users_own(monkeypatch):
    monkeypatch.setenv("DAGSTER_DEFAULT_IO_MANAGER_MODULE", "some.module")
    check("by_default", Sessions(session("far-away", "default")))


def test_steps_that_are_not_executed_do_not_count():
    check("by_default", Sessions(session("far-away", "default")), steps=["one"])
    assert "Step add" in refusal("by_default", steps=["add"])


@pytest.mark.parametrize(
    "elsewhere",
    [
        session(HERE, "default"),
        session("far-away", "gpu"),
        session("far-away", "default", state="dead"),
        session("far-away", "default", draining=True),
    ],
)
def test_hosts_that_will_not_run_its_steps_do_not_count(elsewhere):
    check("by_default", Sessions(session(HERE, "default"), elsewhere))


def test_queues_of_the_steps_count_on_both_sides_of_a_value():
    near = session(HERE, "default", "gpu")
    for queue in ("default", "gpu"):  # of the step that stores, of the step that loads
        with pytest.raises(UnsharedFilesystem):
            check("over_queues", Sessions(near, session("far-away", queue)))


def test_the_run_fails_before_its_first_step_is_submitted(instance, server):
    server.sessions = [session("far-away", "default")]
    run = create_run(instance, "by_default", pointer=DEFS)
    execute_run(recon("by_default", DEFS), run, instance)
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.FAILURE
    (record,) = instance.get_records_for_run(
        run.run_id, of_type=DagsterEventType.RUN_FAILURE
    ).records
    assert "shared_filesystem: true" in str(record.event_log_entry.dagster_event)
    assert server.bodies("/tasks") == []


def test_a_shared_mount_is_the_users_word(instance, server, template):
    server.sessions = [session("far-away", "default")]
    config = {"shared_filesystem": True}
    run = create_run(instance, "by_default", config, pointer=DEFS)
    with Worker(server, template):
        execute_run(recon("by_default", DEFS), run, instance)
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.SUCCESS
    assert [path for _, path, _ in server.calls if path == "/v1/sessions"] == []


def test_values_in_memory_are_refused_by_dagster(instance):
    with pytest.raises(DagsterUnmetExecutorRequirementsError, match="uses multiple processes"):
        create_run(instance, "in_memory", pointer=DEFS)
