"""The key and the fence of a step, on stepfleet and elsewhere."""

import contextvars
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dagster import DagsterInstance, OpExecutionContext, RetryRequested, graph, job, op

from dagster_stepfleet import idempotency
from tests.payloads import create_run, step

seen: list[tuple[str, int]] = []


def look() -> None:
    seen.append((idempotency.key(), idempotency.fence()))


@pytest.fixture(autouse=True)
def _forget() -> None:
    seen.clear()


def given(
    monkeypatch: pytest.MonkeyPatch, key: str, step_key: str, attempt: int, fence: int
) -> None:
    monkeypatch.setenv("STEPFLEET_IDEMPOTENCY_KEY", key)
    monkeypatch.setenv("STEPFLEET_STEP_KEY", step_key)
    monkeypatch.setenv("STEPFLEET_ATTEMPT", str(attempt))
    monkeypatch.setenv("STEPFLEET_FENCE", str(fence))


@op
def looks() -> int:
    look()
    return 1


@op
def fails_once(context: OpExecutionContext) -> None:
    look()
    if context.retry_number == 0:
        raise RetryRequested(max_retries=1)


@graph
def inner() -> None:
    looks.alias("twin")()


@job
def nested() -> None:
    inner()
    fails_once()


def test_a_child_of_a_worker_tells_what_it_was_given(
    instance: DagsterInstance, template, monkeypatch
):
    child = template.fork()
    child.ready()
    run = create_run(instance, "idempotent")
    task, payload = step(instance, run, "tells_key")
    key = f"{run.run_id}/tells_key"
    child.run(
        task,
        payload,
        STEPFLEET_IDEMPOTENCY_KEY=key,
        STEPFLEET_ATTEMPT="2",
        STEPFLEET_FENCE="7",
    )
    import pickle

    path = Path(instance.storage_directory()) / run.run_id / "tells_key" / "result"
    assert pickle.loads(path.read_bytes()) == (key, (2 << 32) + 7)


def test_a_later_attempt_has_a_larger_fence_though_its_claims_are_counted_anew(monkeypatch):
    given(monkeypatch, "run/a", "a", 0, 5)
    look()
    given(monkeypatch, "run/a", "a", 1, 1)
    look()
    (first, early), (second, late) = seen
    assert first == second == "run/a" and early < late < 2**63


def test_under_dagsters_executor_the_key_is_the_same_and_the_fence_counts_attempts(instance):
    result = nested.execute_in_process(instance=instance)
    assert result.success
    assert sorted(seen) == [
        (f"{result.run_id}/fails_once", 0),
        (f"{result.run_id}/fails_once", 1 << 32),
        (f"{result.run_id}/inner.twin", 0),
    ]


def test_steps_inside_a_run_worker_are_not_the_run_worker(instance, monkeypatch):
    given(monkeypatch, "run/@run", "@run", 0, 3)
    result = nested.execute_in_process(instance=instance)
    assert {key for key, _ in seen} == {
        f"{result.run_id}/{s}" for s in ("fails_once", "inner.twin")
    }


def test_a_run_inside_a_step_has_keys_of_its_own(instance, monkeypatch):
    given(monkeypatch, "outer/a", "a", 1, 3)
    result = nested.execute_in_process(instance=instance)
    assert all(key.startswith(result.run_id + "/") for key, _ in seen) and len(seen) == 3


def test_a_thread_of_the_step_on_stepfleet_is_told_too(monkeypatch):
    given(monkeypatch, "run/a", "a", 1, 3)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [("run/a", (1 << 32) + 3)]


@pytest.mark.parametrize("ask", [idempotency.key, idempotency.fence])
def test_outside_of_a_step_the_error_says_where_to_call_it(ask, monkeypatch):
    with pytest.raises(idempotency.NoStepError, match="body of an op or an asset"):
        contextvars.Context().run(ask)
    given(monkeypatch, "run/@run", "@run", 0, 3)
    with pytest.raises(idempotency.NoStepError):
        contextvars.Context().run(ask)


def test_importing_it_imports_nothing_of_dagster():
    code = "import sys; from dagster_stepfleet import idempotency; print('dagster' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.stdout.strip() == "False", done.stderr
