"""Where the executor sends steps, against a server of the test and real forked children."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.execution.api import execute_run

from tests.fakes import FakeServer, TemplateProcess, Worker
from tests.payloads import PYTHON, create_run, recon

DEFS = ModuleCodePointer("tests.routing_defs", "defs", PYTHON)
CONFIG = {"queue": "gpu", "priority": 1, "step_timeout_seconds": 90, "lost_step_retries": 1}


@pytest.fixture
def worker(server: FakeServer, template: TemplateProcess) -> Iterator[Worker]:
    with Worker(server, template) as worker:
        yield worker


def execute(instance: DagsterInstance, job: str, config: dict | None = None):
    tags = dict(recon(job, DEFS).get_definition().run_tags)  # as every launch of the job does
    run = create_run(instance, job, config, tags, pointer=DEFS)
    execute_run(recon(job, DEFS), run, instance)
    return instance.get_run_by_id(run.run_id)


def placements(server: FakeServer) -> dict[str, tuple]:
    return {
        task["step_key"]: (
            task["queue"],
            task["priority"],
            task["timeout_seconds"],
            task["retry_budget"]["lost_step_retries"],
        )
        for task in server.tasks.values()
    }


@pytest.mark.parametrize(
    ("job", "config", "plain"),
    [
        ("untagged", None, ("default", 0, 0, 0)),
        ("untagged", CONFIG, ("gpu", 1, 90, 1)),
        ("tagged_job", CONFIG, ("default", 4, 60, 2)),
    ],
)
def test_op_over_job_over_executor_config_over_default(
    instance, server, worker, job, config, plain
):
    assert execute(instance, job, config).status == DagsterRunStatus.SUCCESS
    assert placements(server) == {"plain": plain, "tagged": ("gpu", 7, 30, 3)}


def test_a_fan_out_warns_once_of_each_tag(instance, server, worker):
    run = execute(instance, "fan_of_sized")
    assert run.status == DagsterRunStatus.SUCCESS
    records = instance.get_records_for_run(
        run.run_id, of_type=DagsterEventType.ENGINE_EVENT
    ).records
    notes = [r.event_log_entry.dagster_event for r in records]
    warnings = [e for e in notes if "is not followed" in (e.message or "")]
    assert [e.message.split("=")[0] for e in warnings] == [
        "The op tag ecs/cpu",
        "The op tag ecs/memory",
    ]
    assert all(e.step_key.startswith("sized[") for e in warnings)


def test_config_that_the_server_would_refuse_fails_the_run_before_it_submits(instance, server):
    with pytest.raises(ValueError, match=r"queue: 'With\.Dot', which is not a queue name"):
        execute(instance, "untagged", {"queue": "With.Dot"})
    assert server.calls == []
