"""Runs that were shown as starting, and whose process died before it could launch them.

They are in no queue any more, and run monitoring would fail them. A process that lives to launch
runs looks for them when its launcher is made: twice, and then no more. Only a run of which its log
says nothing more than that it starts is launched here, and only while it is neither too young nor
too old: another launcher may be at work on a young one, and run monitoring fails an old one. One
that somebody else launches at the same moment has one run worker all the same, by its task's key.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    QueuedRunCoordinator,
    RunsFilter,
)

from dagster_stepfleet import seams

_log = logging.getLogger("dagster.stepfleet")

# Longer than another launcher takes from a run's start to the first that it writes: EcsRunLauncher
# calls AWS before, and repeats that for 3 s.
MIN_AGE_SECONDS = 10.0
# How long the end of the process waits for a launch that is under way.
_STOP_SECONDS = 5.0

# Launches the run within so many seconds, and gives up when the last says so.
Launch = Callable[[DagsterRun, float, Callable[[], bool]], None]


def launches_runs(instance: DagsterInstance) -> bool:
    """Whether this process lives to launch runs. The daemon's other commands come and go, and a
    webserver launches none that is read-only or gives them to a queue."""
    program, arguments = Path(sys.argv[0]), sys.argv[1:]
    name = program.parent.name if program.name == "__main__.py" else program.name
    if name in seams.DAEMONS:
        return arguments[:1] == ["run"]
    if name not in seams.WEBSERVERS:
        return False
    read_only = "--read-only" in arguments or bool(os.environ.get(seams.READ_ONLY_VARIABLE))
    return not read_only and not isinstance(instance.run_coordinator, QueuedRunCoordinator)


class Lookout:
    """Launches what was left, in a thread that ends before its process does."""

    def __init__(
        self,
        instance: DagsterInstance,
        launch: Launch,
        budget_seconds: float,
        *,
        clock: Callable[[], float] = time.time,
        stopped: threading.Event | None = None,
    ) -> None:
        self._instance = instance
        self._launch = launch
        self._budget_seconds = budget_seconds
        self._clock = clock
        self._stopped = stopped or threading.Event()
        self._thread = threading.Thread(target=self._run, name="stepfleet-lookout", daemon=True)

    def start(self) -> None:
        atexit.register(self.stop)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        try:
            self.watch()
        except Exception as err:
            _log.warning("whether runs were left without a run worker is not known: %s", err)
        finally:
            atexit.unregister(self.stop)

    def watch(self) -> None:
        """Looks once all are old enough that were left before this process began, and again for
        those that were left since."""
        if self._stopped.wait(MIN_AGE_SECONDS):
            return
        deadline = self._clock() + MIN_AGE_SECONDS + self._budget_seconds
        starting = RunsFilter(statuses=[DagsterRunStatus.STARTING])
        young = self._look(self._instance.get_runs(starting, ascending=True), deadline)
        if young and not self._stopped.wait(MIN_AGE_SECONDS):
            self._look(young, deadline)

    def _look(self, runs: Sequence[DagsterRun], deadline: float) -> list[DagsterRun]:
        """Launches those of the runs that are left. Returns those that are too young to tell."""
        young = []
        oldest = self._instance.run_monitoring_start_timeout_seconds  # 180, also where it is off
        for run in runs:
            if self._stopped.is_set():
                break
            age = self._age(run.run_id)
            if age is None or age >= oldest:
                continue
            if age < MIN_AGE_SECONDS:
                young.append(run)
                continue
            self._launch_within(run, min(deadline - self._clock(), oldest - age))
        return young

    def _age(self, run_id: str) -> float | None:
        """How long ago the run was shown as starting, if nothing has been heard of it since."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.status is not DagsterRunStatus.STARTING:
            return None
        said = self._instance.get_records_for_run(run_id, limit=1, ascending=False).records
        if not said:
            return None
        last = said[0].event_log_entry
        if last.dagster_event_type is not DagsterEventType.PIPELINE_STARTING:
            return None
        return self._clock() - last.timestamp

    def _launch_within(self, run: DagsterRun, budget_seconds: float) -> None:
        try:
            if budget_seconds <= 0:
                raise TimeoutError("the launches before it have taken all the time there was")
            self._launch(run, budget_seconds, self._stopped.is_set)
        except Exception as err:
            _log.warning("run %s was left without a run worker, and gets none: %s", run.run_id, err)
