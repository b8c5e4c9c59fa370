"""The executor against a server of the test, its steps in real forked children."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.execution.api import execute_run

from dagster_stepfleet import attempts, seams
from dagster_stepfleet.client import Client, Completions, Ended
from dagster_stepfleet.executor import _granted
from dagster_stepfleet.handler import Launch, Open, StepfleetStepHandler
from dagster_stepfleet.tags import Placement
from tests.fakes import FakeServer, TemplateProcess, Worker
from tests.payloads import create_run as create
from tests.payloads import recon


def execute(instance: DagsterInstance, job: str, config: dict | None = None, tags=None):
    run = create(instance, job, config, tags)
    execute_run(recon(job), run, instance)
    return instance.get_run_by_id(run.run_id)


def events(instance: DagsterInstance, run, kind: DagsterEventType):
    records = instance.get_records_for_run(run.run_id, of_type=kind).records
    return [r.event_log_entry.dagster_event for r in records]


def steps(instance: DagsterInstance, run, kind: DagsterEventType) -> list[str]:
    return sorted(e.step_key for e in events(instance, run, kind))


@pytest.fixture
def worker(server: FakeServer, template: TemplateProcess) -> Iterator[Worker]:
    with Worker(server, template) as worker:
        yield worker


def test_chain(instance, server, worker):
    run = execute(instance, "chain")
    assert run.status == DagsterRunStatus.SUCCESS
    assert steps(instance, run, DagsterEventType.STEP_SUCCESS) == ["b", "c", "one"]
    assert worker.ran == ["one", "b", "c"]
    assert [r["outputs"] for r in worker.results] == [["result"]] * 3
    assert server.closed == {run.run_id: "the run's steps have ended"}
    assert server.bodies("/adjudicate") == [], "a step that says how it ended costs no question"
    first = server.bodies("/tasks")[0]
    task = first["tasks"][0]
    assert task["idempotency_key"] == f"{run.run_id}/one"
    assert (task["op"], task["job"], task["attempt"], task["queue"]) == (
        "one",
        "chain",
        0,
        "default",
    )
    assert list(first["payloads"]) == [task["payload"]]


def test_the_end_of_the_last_step_is_not_waited_upon(instance, server, worker, monkeypatch):
    waits: list[int] = []
    stock = StepfleetStepHandler.wait

    def wait(handler: StepfleetStepHandler) -> None:
        assert handler.client is not None
        inner = handler.client.wait
        monkeypatch.setattr(
            handler.client, "wait", lambda *args: waits.append(len(handler.open)) or inner(*args)
        )
        stock(handler)
        monkeypatch.setattr(handler.client, "wait", inner)

    monkeypatch.setattr(StepfleetStepHandler, "wait", wait)
    run = execute(instance, "chain")
    assert run.status == DagsterRunStatus.SUCCESS
    assert waits and 0 not in waits, "the loop's pass after the last step has nothing to wait for"


def test_dynamic_steps_share_one_payload_and_one_submit(instance, server, worker):
    run = execute(instance, "dynamic")
    assert run.status == DagsterRunStatus.SUCCESS
    mapped = [b for b in server.bodies("/tasks") if b and len(b["tasks"]) == 3]
    assert len(mapped) == 1 and len(mapped[0]["payloads"]) == 1


def test_assets_and_checks(instance, server, worker):
    run = execute(instance, "assets")
    assert run.status == DagsterRunStatus.SUCCESS
    assert len(events(instance, run, DagsterEventType.ASSET_MATERIALIZATION)) == 2
    assert len(events(instance, run, DagsterEventType.ASSET_CHECK_EVALUATION)) == 1


def test_failure_of_user_code(instance, server, worker):
    run = execute(instance, "failing")
    assert run.status == DagsterRunStatus.FAILURE
    assert steps(instance, run, DagsterEventType.STEP_FAILURE) == ["boom"]
    assert worker.results[0]["error"] == {
        "code": "step_failure",
        "message": "ValueError: this op fails",
    }


def test_skips(instance, server, worker):
    run = execute(instance, "skipping")
    assert run.status == DagsterRunStatus.SUCCESS
    assert sorted(worker.ran) == ["after_a", "only_a"]


def test_retry_policy_makes_a_new_attempt(instance, server, worker):
    run = execute(instance, "retried")
    assert run.status == DagsterRunStatus.SUCCESS
    assert sorted(attempt for _, _, attempt in server.tasks) == [0, 1]
    (retry,) = events(instance, run, DagsterEventType.STEP_UP_FOR_RETRY)
    (success,) = events(instance, run, DagsterEventType.STEP_SUCCESS)
    assert attempts.is_late(retry, 1) and not attempts.is_late(retry, 0)
    assert attempts.is_late(success, 2) and not attempts.is_late(success, 1)


def test_resource_failure(instance, server, worker):
    run = execute(instance, "broken_resource")
    assert run.status == DagsterRunStatus.FAILURE
    ends = DagsterEventType.STEP_FAILURE
    if seams.resource_init_failure_ends_step():  # before Dagster 1.12
        ends = DagsterEventType.RESOURCE_INIT_FAILURE
    assert steps(instance, run, ends) == ["needs_broken"]
    if not seams.resource_init_failure_ends_step():
        assert server.adjudicated == {(run.run_id, "needs_broken", 0): [1]}


def test_a_resource_that_works_at_a_retry_fails_the_run(instance, server, worker):
    """As under multiprocess, whose run worker raises what the step's process has raised."""
    run = execute(instance, "mended_resource")
    assert run.status == DagsterRunStatus.FAILURE
    (failure,) = events(instance, run, DagsterEventType.RUN_FAILURE)
    assert "no such database yet" in str(failure.event_specific_data)
    if not seams.resource_init_failure_ends_step():  # since Dagster 1.12
        assert steps(instance, run, DagsterEventType.STEP_SUCCESS) == ["add", "needs_mended"]
        assert server.closed == {run.run_id: "the run's steps have ended"}


def test_killed_process_fails_the_step_with_the_ledgers_reason(instance, server, worker):
    run = execute(instance, "dying")
    assert run.status == DagsterRunStatus.FAILURE
    (failure,) = events(instance, run, DagsterEventType.STEP_FAILURE)
    assert "worker-1's session died" in failure.step_failure_data.error.message
    assert "ended as failed" in failure.step_failure_data.error.message
    assert list(server.adjudicated) == [(run.run_id, failure.step_key, 0)]


def test_the_ledger_is_told_of_no_more_retries_than_it_keeps(instance, server, worker):
    assert execute(instance, "patient").status == DagsterRunStatus.SUCCESS
    (batch,) = server.bodies("/tasks")
    (task,) = batch["tasks"]
    assert task["retry_budget"] == {"policy_retries": 2**31 - 1, "lost_step_retries": 0}


@pytest.mark.parametrize("where", ["config", "tag"])
def test_lost_step_retries(instance, server, worker, where):
    worker.state_of_dead = "lost"
    config = {"lost_step_retries": 1} if where == "config" else None
    tags = {"stepfleet/lost_step_retries": "1"} if where == "tag" else None
    run = execute(instance, "dying", config, tags)
    assert run.status == DagsterRunStatus.SUCCESS
    assert steps(instance, run, DagsterEventType.STEP_UP_FOR_RETRY) == ["die_once"]


@pytest.mark.parametrize(
    ("lost", "status"), [(2, DagsterRunStatus.SUCCESS), (3, DagsterRunStatus.FAILURE)]
)
def test_lost_step_retries_are_beyond_the_policy(instance, server, worker, lost, status):
    """One retry is the policy's, one is granted, and there is no third."""
    worker.state_of_dead = "lost"
    worker.env["DEATHS"] = str(lost)
    run = execute(instance, "dying_often", {"lost_step_retries": 1})
    assert run.status == status
    assert worker.ran == ["dies"] * 3
    notes = [e.message for e in events(instance, run, DagsterEventType.ENGINE_EVENT)]
    (grant,) = [note for note in notes if "lost_step_retries" in note]
    assert "Attempt 1 of step dies" in grant and "grants new attempt 1 of 1" in grant


@pytest.mark.parametrize(
    ("lost", "by_policy", "attempt", "granted"),
    [
        ({0}, 0, 0, 0),  # this one is the first
        ({0, 1}, 0, 1, 1),
        ({0, 1}, 1, 1, 0),  # the policy has retried attempt 0
        ({0, 1, 2}, 1, 2, 1),
        ({2}, 1, 2, 0),  # attempts 0 and 1 have failed by themselves
        ({1, 3}, 1, 3, 1),
        (set(), 2, 5, 0),
    ],
)
def test_grants_are_counted_from_the_ledger(lost, by_policy, attempt, granted):
    assert _granted(lost, by_policy, attempt) == granted


def test_lost_step_without_budget_fails(instance, server, worker):
    worker.state_of_dead = "lost"
    assert execute(instance, "dying").status == DagsterRunStatus.FAILURE


def test_lost_step_retries_is_ignored_where_retries_are_disabled(instance, server, worker):
    worker.state_of_dead = "lost"
    run = execute(instance, "dying", {"lost_step_retries": 1, "retries": {"disabled": {}}})
    assert run.status == DagsterRunStatus.FAILURE
    notes = [e.message for e in events(instance, run, DagsterEventType.ENGINE_EVENT)]
    assert any("retries are disabled" in note for note in notes)


def test_refused_step_fails_alone(instance, server, worker):
    run = execute(instance, "misplaced")
    assert run.status == DagsterRunStatus.FAILURE
    (failure,) = events(instance, run, DagsterEventType.STEP_FAILURE)
    assert failure.step_key == "unknown_queue"
    assert "no queue nowhere [unknown_queue]" in failure.step_failure_data.error.message
    assert steps(instance, run, DagsterEventType.STEP_SUCCESS) == ["fine"]


def test_malformed_tag_is_a_warning(instance, server, worker):
    run = execute(instance, "warned")
    assert run.status == DagsterRunStatus.SUCCESS
    notes = [e.message for e in events(instance, run, DagsterEventType.ENGINE_EVENT)]
    assert any("stepfleet/priority='high' is ignored" in note for note in notes)


def test_hooks_of_the_last_step_are_not_cut_off(instance, server, worker):
    run = execute(instance, "slow_hook")
    assert run.status == DagsterRunStatus.SUCCESS
    assert steps(instance, run, DagsterEventType.HOOK_COMPLETED) == ["quick"]
    assert [task["state"] for task in server.tasks.values()] == ["succeeded"]


def test_a_cancelled_run_ends_after_its_steps():
    """The daemon's word on a run that took too long must come before the run worker's."""
    handler = StepfleetStepHandler()
    told: list[str] = []
    completions = Completions()
    completions.epoch = 1
    client: Any = SimpleNamespace(
        completions=completions,
        cancel=lambda *_, **__: told.append("cancel"),
        close_run=lambda *_, **__: told.append("close"),
        shutdown=lambda: None,
    )
    handler.client, handler._tried, handler._going = client, True, {("slow", 0)}
    end = functools.partial(handler.end, reason="interrupted", leaving=False, budget_seconds=30)
    ending = threading.Thread(target=end)
    ending.start()
    ending.join(0.3)
    assert ending.is_alive()
    assert told == ["cancel"]
    completions.add(Ended("slow", 0, "cancelled", 1))
    ending.join(10)
    assert told == ["cancel", "close"]


def ending_with_pool(leaving: bool) -> list[str]:
    """Ends a run whose steps hold slots of a pool; returns the steps whose slots are freed."""
    freed: list[str] = []
    completions = Completions()
    completions.epoch = 1
    states = {"ended": "cancelled", "there": "running", "free": "cancelled"}
    client: Any = SimpleNamespace(
        run_id="run",
        completions=completions,
        cancel=lambda *_, **__: None,
        close_run=lambda *_, **__: None,
        shutdown=lambda: None,
        tasks=lambda **_: [
            {"step_key": key, "attempt": 0, "state": state} for key, state in states.items()
        ],
    )
    handler = StepfleetStepHandler()
    handler.client, handler._tried = client, True
    handler._slots = SimpleNamespace(
        supports_global_concurrency_limits=True,
        free_concurrency_slot_for_step=lambda run_id, step_key: freed.append(step_key),
    )
    placement = Placement("default", 0, 0)
    for key in (*states, "buffered"):
        handler.open[key] = Open(0, placement, launched_after=0, pooled=key != "free")
    handler.end(reason="the run was interrupted", leaving=leaving, budget_seconds=1)
    return freed


def test_cancelled_steps_give_back_their_slots():
    """Dagster's loop, which does that at a step's end, is over; another run would wait for ever."""
    assert ending_with_pool(leaving=False) == ["ended", "buffered"]


def test_steps_that_go_on_keep_their_slots():
    assert ending_with_pool(leaving=True) == []


def test_closed_run_fails_clearly(instance, server, worker):
    run = create(instance, "chain")
    server.closed[run.run_id] = "closed before"
    execute_run(recon("chain"), run, instance)
    (failure,) = events(instance, run, DagsterEventType.RUN_FAILURE)
    assert "run_closed" in str(failure.event_specific_data)


def test_wrong_token_fails_at_once(instance, server, worker, monkeypatch):
    monkeypatch.setenv("STEPFLEET_TOKEN", "wrong")
    run = execute(instance, "chain")
    assert run.status == DagsterRunStatus.FAILURE
    (failure,) = events(instance, run, DagsterEventType.RUN_FAILURE)
    assert "STEPFLEET_TOKEN" in str(failure.event_specific_data)


def test_unreachable_server_fails_after_the_budget(instance, monkeypatch):
    monkeypatch.setenv("STEPFLEET_URL", "http://127.0.0.1:9")
    run = execute(instance, "chain", {"outage_budget_seconds": 1})
    assert run.status == DagsterRunStatus.FAILURE
    (failure,) = events(instance, run, DagsterEventType.RUN_FAILURE)
    assert "http://127.0.0.1:9" in str(failure.event_specific_data)


def test_outage_shorter_than_the_budget_costs_nothing(instance, server, worker):
    server.fail_next = [(503, {"v": 1, "error": {"code": "unavailable"}}, {"Retry-After": "0.1"})]
    assert execute(instance, "chain").status == DagsterRunStatus.SUCCESS


def handler_of(step: str, attempt: int) -> StepfleetStepHandler:
    """A handler in the middle of a run, with one step in flight."""
    handler = StepfleetStepHandler()
    handler.client = Client("http://127.0.0.1:9", "run")
    handler.adjudicator._granted = {(step, attempt)}
    handler.open[step] = Open(attempt, Placement("default", 0, 1), launched_after=0, rewound=True)
    return handler


def test_an_ending_that_becomes_visible_late_is_read_again():
    handler = handler_of("a", 0)
    handler.client.completions.add(Ended("a", 0, "lost"))
    handler.reader = SimpleNamespace(has_unseen_ending=lambda step_key: True)
    args = SimpleNamespace(step_keys_to_execute=["a"])
    health = handler.check_step_health(SimpleNamespace(execute_step_args=args))
    assert health.is_healthy
    assert not handler.open["a"].rewound  # the next pass reads the whole log


def test_a_resumed_run_counts_the_attempts_that_were_lost_before(monkeypatch):
    handler = handler_of("a", 1)
    views = [
        {"step_key": "a", "attempt": 0, "state": "lost", "task_id": 1},
        {"step_key": "a", "attempt": 1, "state": "lost", "task_id": 2, "reason": "it died"},
        {"step_key": "b", "attempt": 0, "state": "running", "task_id": 3},
    ]
    monkeypatch.setattr(handler.client, "tasks", lambda: views)
    launch = Launch("a", 1, None, 0, "a", 0, Placement("default", 0, 1), "here")  # type: ignore[arg-type]
    handler._take_receipt(launch, {"step_key": "a", "attempt": 1, "task_id": 2, "state": "lost"})
    assert handler.client.completions.lost_attempts("a") == {0, 1}
    assert handler.verdict("a") == Ended("a", 1, "lost", 2, "it died")
    assert handler.client.completions.get("b", 0) is None
