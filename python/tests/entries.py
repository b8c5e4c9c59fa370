"""Events as a step writes them, and what of them the log has."""

from __future__ import annotations

import time
from collections import Counter

from dagster import AssetKey, AssetMaterialization, DagsterEvent, DagsterEventType
from dagster._core.events import EngineEventData, StepMaterializationData
from dagster._core.events.log import EventLogEntry


def entry(run, said: str, kind=DagsterEventType.ENGINE_EVENT, data=None) -> EventLogEntry:
    event = DagsterEvent(
        kind.value, run.job_name, step_key="one", event_specific_data=data or EngineEventData()
    )
    return EventLogEntry(None, "debug", said, run.run_id, time.time(), "one", run.job_name, event)


def materialization(run, number: int) -> EventLogEntry:
    made = AssetMaterialization(
        AssetKey(f"{run.run_id}-{number}"),
        tags={"dagster/data_version": f"v{number}", "dagster/input_data_version/a": "b"},
    )
    data = StepMaterializationData(made, [])
    return entry(run, f"asset {number}", DagsterEventType.ASSET_MATERIALIZATION, data)


def said(instance, run) -> Counter:
    """How often each message is in the run's log."""
    return Counter(e.user_message for e in instance.all_logs(run.run_id) if e.user_message)
