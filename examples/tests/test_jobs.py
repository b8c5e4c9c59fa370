"""Each job runs in process, and the effect log says what it should."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, ExecuteInProcessResult

from stepfleet_examples import verdict
from stepfleet_examples.definitions import defs
from stepfleet_examples.verdict import Step
from stepfleet_examples.work import duration_seconds

STEPS = {
    "assets": 5,
    "chain": 10,
    "diamond": 5,
    "dynamic": 7,
    "fan_out": 22,
    "fast": 6,
    "mixed": 9,
    "recover": 7,
    "retry": 2,
    "slow": 3,
}


def run(name: str, **options: Any) -> ExecuteInProcessResult:
    with DagsterInstance.ephemeral() as instance:
        return defs.resolve_job_def(name).execute_in_process(
            instance=instance, raise_on_error=False, **options
        )


def succeeded(result: ExecuteInProcessResult) -> list[Step]:
    return [Step(result.run_id, str(e.step_key)) for e in result.get_step_success_events()]


@pytest.mark.parametrize("name", sorted(STEPS))
def test_job_succeeds_and_every_step_ran_once(name: str, effect_log: Path) -> None:
    result = run(name)
    assert result.success
    expected = succeeded(result)
    assert len(expected) == STEPS[name]

    found = verdict.judge(verdict.read(effect_log), expected)
    assert found.ok, found
    assert found.cut == []
    assert found.steps_done == len(expected)


def test_a_chain_counts_its_steps(effect_log: Path) -> None:
    assert run("chain").output_for_node("add_one_9") == 9


def test_a_diamond_meets_again(effect_log: Path) -> None:
    assert run("diamond").output_for_node("total") == 3
    keys = {e.key.step_key for e in verdict.read(effect_log)}
    assert {"left.first", "left.second", "right"} <= keys


def test_dynamic_takes_its_size_from_config(effect_log: Path) -> None:
    result = run("dynamic", run_config={"ops": {"split": {"config": {"count": 3}}}})
    assert result.output_for_node("total") == 0 + 1 + 2 + 3
    keys = {e.key.step_key for e in verdict.read(effect_log)}
    assert {"add_one[piece_0]", "add_one[piece_1]", "add_one[piece_2]"} <= keys


def test_retry_fails_once_and_then_ends_well(effect_log: Path) -> None:
    assert run("retry").success
    events = [
        (e.event, e.key.attempt) for e in verdict.read(effect_log) if e.key.step_key == "flaky"
    ]
    assert events == [("begin", 0), ("error", 0), ("begin", 1), ("end", 1)]


def test_failing_skips_only_what_is_downstream(effect_log: Path) -> None:
    result = run("failing")
    assert not result.success
    events = Counter((e.event, e.key.step_key) for e in verdict.read(effect_log))
    assert events == {
        ("begin", "source"): 1,
        ("end", "source"): 1,
        ("begin", "beside"): 1,
        ("end", "beside"): 1,
        ("begin", "fails"): 1,
        ("error", "fails"): 1,
    }
    # Dagster 1.13 says so in an engine event only.
    assert "skipped" not in {e.step_key for e in result.all_events}


def test_the_asset_check_is_recorded() -> None:
    (check,) = run("assets").get_asset_check_evaluations()
    assert check.passed and check.check_name == "all_paid"


def test_the_log_names_fence_and_worker(effect_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPFLEET_FENCE", "7")
    monkeypatch.setenv("STEPFLEET_WORKER", "w1")
    monkeypatch.setenv("STEPFLEET_ATTEMPT", "2")
    run("slow")
    effects = verdict.read(effect_log)
    assert {(e.fence, e.worker, e.key.attempt, e.op) for e in effects} == {
        ("7", "w1", 2, "slow_op")
    }


def test_without_a_log_nothing_is_written(
    effect_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STEPFLEET_EFFECT_LOG")
    assert run("slow").success
    assert not effect_log.exists()


def test_durations_depend_on_run_and_step_only() -> None:
    first = duration_seconds("run", "step", 20, 10)
    assert first == duration_seconds("run", "step", 20, 10)
    assert first != duration_seconds("other run", "step", 20, 10)
    draws = [duration_seconds("run", f"step_{i}", 20, 10) for i in range(500)]
    assert min(draws) >= 10 and max(draws) <= 30
    assert max(draws) - min(draws) > 15
