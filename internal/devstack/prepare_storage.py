"""Creates Dagster's tables and ends the runs whose process cannot be alive any more.

Runs before any other process of Dagster, so nobody else creates tables at the same time, and a run
that is marked as going on can only be one whose process ended with the stack before.
"""

import json
import sys

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

GOING_ON = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]

with DagsterInstance.get() as instance:
    instance.schedule_storage  # noqa: B018  creates its tables
    instance.event_log_storage  # noqa: B018
    runs = instance.get_runs(filters=RunsFilter(statuses=GOING_ON), limit=1000)
    for run in runs:
        if run.status == DagsterRunStatus.CANCELING:
            instance.report_run_canceled(
                run, message="stepfleet dev was stopped while this run was being cancelled."
            )
        else:
            instance.report_run_failed(
                run, message="stepfleet dev was stopped while this run was going on."
            )
    json.dump({"ended": [run.run_id for run in runs]}, sys.stdout)
