"""The project loads, and says what the mission asks of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import DefaultScheduleStatus

from stepfleet_examples.definitions import defs

JOBS = [
    "assets",
    "chain",
    "diamond",
    "dynamic",
    "failing",
    "fan_out",
    "fast",
    "mixed",
    "recover",
    "retry",
    "slow",
    "to_postgres",
]

PROBE = """
import json
from dagster import DefaultScheduleStatus
from stepfleet_examples.definitions import defs
print(json.dumps({
    "running": [
        s.name for s in defs.schedules if s.default_status == DefaultScheduleStatus.RUNNING
    ],
    "crons": sorted({s.cron_schedule for s in defs.schedules}),
    "chain": len(defs.resolve_job_def("chain").nodes),
}))
"""


def probe(**env: str) -> dict[str, object]:
    """What a fresh process with this environment makes of the project."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, **env},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_every_job_of_the_mission_is_there() -> None:
    names = [job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")]
    assert sorted(names) == JOBS


def test_jobs_use_the_executor_of_the_project() -> None:
    from dagster_stepfleet import stepfleet_executor

    for name in JOBS:
        assert defs.resolve_job_def(name).executor_def is stepfleet_executor


def test_three_jobs_tick_every_ten_minutes_and_are_stopped() -> None:
    schedules = list(defs.schedules or [])
    assert sorted(getattr(s, "job_name", "") for s in schedules) == ["fast", "mixed", "slow"]
    for name in ("fast_schedule", "mixed_schedule", "slow_schedule"):
        schedule = defs.resolve_schedule_def(name)
        assert schedule.cron_schedule == "*/10 * * * *"
        assert schedule.default_status == DefaultScheduleStatus.STOPPED


def test_the_environment_starts_schedules_and_changes_sizes() -> None:
    got = probe(
        STEPFLEET_EXAMPLE_SCHEDULES="on",
        STEPFLEET_EXAMPLE_CRON="* * * * *",
        STEPFLEET_EXAMPLE_CHAIN_STEPS="3",
    )
    assert got == {
        "running": ["fast_schedule", "slow_schedule", "mixed_schedule"],
        "crons": ["* * * * *"],
        "chain": 3,
    }


@pytest.mark.parametrize("value", ["0", "-1", "many", "10001"])
def test_a_size_that_makes_no_sense_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stepfleet_examples import settings

    monkeypatch.setenv("STEPFLEET_EXAMPLE_CHAIN_STEPS", value)
    with pytest.raises(ValueError, match="STEPFLEET_EXAMPLE_CHAIN_STEPS"):
        settings.steps("CHAIN_STEPS", 10)
