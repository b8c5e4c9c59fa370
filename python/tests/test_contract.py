"""What the plugin says over HTTP, and what its children report, against the published schemas."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from dagster import DagsterRunStatus
from dagster._core.launcher import LaunchRunContext
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from dagster_stepfleet import StepfleetRunLauncher
from dagster_stepfleet.client import Client
from tests.fakes import TOKEN, FakeServer, TemplateProcess, Worker
from tests.test_executor import execute
from tests.test_iocheck import session
from tests.test_launcher import starting

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def contract() -> Registry[Any]:
    registry: Registry[Any] = Registry()
    for name in ("task", "result"):
        schema = json.loads((ROOT / f"docs/schema/{name}.schema.json").read_text())
        registry = registry.with_resource(schema["$id"], DRAFT202012.create_resource(schema))
    spec = yaml.safe_load((ROOT / "internal/api/openapi.yaml").read_text())
    return registry.with_resource("urn:openapi", DRAFT202012.create_resource(spec))


def check(contract: Registry[Any], schema: str, value: Any) -> None:
    reference = {"$ref": f"urn:openapi#/components/schemas/{schema}"}
    jsonschema.Draft202012Validator(reference, registry=contract).validate(value)


@pytest.fixture
def worker(server: FakeServer, template: TemplateProcess) -> Iterator[Worker]:
    with Worker(server, template) as worker:
        yield worker


@pytest.mark.parametrize("job", ["chain", "dynamic", "failing"])
def test_submissions_and_results(contract, instance, server, worker, job):
    run = execute(instance, job)
    assert run.status in (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE)
    submissions = server.bodies("/tasks")
    assert submissions and worker.results
    for body in submissions:
        if body is not None:  # a read has none
            check(contract, "Submission", body)
    for body in server.bodies("/close"):
        check(contract, "Close", body)
    for body in server.bodies("/epoch"):
        check(contract, "TakeEpoch", body)
    result = jsonschema.Draft202012Validator({"$ref": "urn:stepfleet:result:1"}, registry=contract)
    for report in worker.results:
        result.validate(report)


def test_calls(contract, server):
    client = Client(server.url, "run-1", token=TOKEN)
    client.epoch()
    client.adjudicate([("a", 0)])
    client.confirm()
    for schema, path in (("Adjudicate", "/adjudicate"), ("TakeEpoch", "/epoch")):
        assert server.bodies(path)
        for body in server.bodies(path):
            check(contract, schema, body)
    client.cancel(None, "asked")
    client.cancel([("a", 0)], "asked")
    for body in server.bodies("/cancel"):
        check(contract, "Cancel", body)
    assert len(server.bodies("/cancel")) == 2


def test_sessions(contract, server):
    server.sessions = [session("here", "default"), session("there", "gpu", state="suspect")]
    client = Client(server.url, "run-1", token=TOKEN)
    check(contract, "Sessions", {"v": 1, "sessions": client.sessions()})
    assert [s["host"] for s in client.sessions()] == ["here", "there"]


def test_launches_and_run_workers(contract, instance, server, worker):
    worker.env |= {"STEPFLEET_URL": server.url, "STEPFLEET_TOKEN": TOKEN}
    launcher = StepfleetRunLauncher()
    launcher.register_instance(instance)
    run = starting(instance, "alone")
    launcher.launch_run(LaunchRunContext(run, None))
    deadline = time.monotonic() + 30
    while not worker.results:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (body,) = [body for body in server.bodies("/tasks") if body is not None]
    check(contract, "Submission", body)
    result = jsonschema.Draft202012Validator({"$ref": "urn:stepfleet:result:1"}, registry=contract)
    result.validate(worker.results[0])


def test_the_contract_can_fail(contract):
    with pytest.raises(jsonschema.ValidationError):
        check(contract, "Submission", {"v": 1, "identity": "id", "payloads": {}, "tasks": [{}]})
