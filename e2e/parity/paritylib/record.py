"""Reads a finished run from Dagster's storage into a plain structure that can be compared."""

import ast
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from dagster import DagsterEvent, DagsterInstance, EventLogEntry, MetadataValue
from dagster._serdes import serialize_value

from paritylib.normal import Normaliser
from paritylib.versions import Versions, asset_value

# In a log above this, a line that comes many times in a row is kept once, with their number.
MAX_TEXT_BYTES = 1 << 20

# What the first of several failed steps is called; docs/dagster.md names it.
NAMES = ("FIRST",)
_FAILED_STEPS = re.compile(r"Steps failed: (\[.*\])\.$")


@dataclass
class Record:
    """One run. An event is a text: its type and what is in it, as sorted JSON. A line that user
    code has logged is one too."""

    status: str = ""
    run_events: Counter[str] = field(default_factory=Counter[str])
    states: dict[str, str] = field(default_factory=dict[str, str])
    attempts: dict[str, int] = field(default_factory=dict[str, int])
    events: dict[str, Counter[str]] = field(default_factory=dict[str, "Counter[str]"])
    # By step: of each captured attempt, in order, stdout and stderr.
    logs: dict[str, list[tuple[str, str]]] = field(default_factory=dict[str, list[tuple[str, str]]])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    types: Counter[str] = field(default_factory=Counter[str])
    # Steps in the order of their beginnings, and the most that were between begin and end at once.
    order: list[str] = field(default_factory=list[str])
    most_at_once: int = 0
    # Of each retry: how long it was to wait, and how long it did; None when it did not come.
    waits: list[tuple[float, float | None]] = field(
        default_factory=list["tuple[float, float | None]"]
    )


def records(
    instance: DagsterInstance, run_ids: Sequence[str], normaliser: Normaliser
) -> list[Record]:
    """The runs of a case, in the order of the ids."""
    logs = [instance.get_records_for_run(run_id).records for run_id in run_ids]
    versions = Versions(logs, normaliser)
    return [
        _record(instance, run_id, [row.event_log_entry for row in rows], normaliser, versions)
        for run_id, rows in zip(run_ids, logs, strict=True)
    ]


def _record(
    instance: DagsterInstance,
    run_id: str,
    entries: Sequence[EventLogEntry],
    normaliser: Normaliser,
    versions: Versions,
) -> Record:
    run = instance.get_run_by_id(run_id)
    assert run is not None, f"Dagster's storage has no run {run_id}"
    result = Record(status=run.status.value)
    result.tags = {
        normaliser.text(key): normaliser.tag(key, value) for key, value in sorted(run.tags.items())
    }
    for stats in instance.get_run_step_stats(run_id):
        key = normaliser.text(stats.step_key)
        result.states[key] = stats.status.value if stats.status else "NONE"
        result.attempts[key] = stats.attempts or 0
    _take_events(result, entries, normaliser, versions)
    _take_parallelism(result, entries, normaliser)
    _take_waits(result, entries)
    _take_logs(result, instance, entries, normaliser)
    return result


def _take_events(
    result: Record, entries: Sequence[EventLogEntry], normaliser: Normaliser, versions: Versions
) -> None:
    for entry in entries:
        event = entry.dagster_event
        if event is None:
            text = f"LOG {entry.level} {normaliser.text(entry.user_message)}"
            _count(result, entry.step_key, text, normaliser)
            continue
        kind = event.event_type_value
        result.types[kind] += 1
        detail = normaliser.value(
            {"level": entry.level, "message": event.message, **_detail(event, versions)}
        )
        text = f"{kind} {json.dumps(detail, sort_keys=True, ensure_ascii=False)}"
        _count(result, event.step_key, text, normaliser)


def _count(result: Record, step_key: str | None, text: str, normaliser: Normaliser) -> None:
    if step_key is None:
        result.run_events[text] += 1
    else:
        result.events.setdefault(normaliser.text(step_key), Counter())[text] += 1


def _take_parallelism(
    result: Record, entries: Sequence[EventLogEntry], normaliser: Normaliser
) -> None:
    going: set[str] = set()
    for entry in sorted(entries, key=lambda e: e.timestamp):
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        kind = event.event_type_value
        if kind in ("STEP_START", "STEP_RESTARTED"):
            going.add(event.step_key)
            result.most_at_once = max(result.most_at_once, len(going))
            result.order.append(normaliser.text(event.step_key))
        elif kind in ("STEP_SUCCESS", "STEP_FAILURE", "STEP_UP_FOR_RETRY"):
            going.discard(event.step_key)


def _take_waits(result: Record, entries: Sequence[EventLogEntry]) -> None:
    asked: dict[str, tuple[float, float]] = {}
    for entry in sorted(entries, key=lambda e: e.timestamp):
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        if event.event_type_value == "STEP_UP_FOR_RETRY":
            wait = event.step_retry_data.seconds_to_wait or 0.0
            asked[event.step_key] = (wait, entry.timestamp)
        elif event.event_type_value == "STEP_RESTARTED" and event.step_key in asked:
            wait, since = asked.pop(event.step_key)
            result.waits.append((wait, entry.timestamp - since))
    result.waits += [(wait, None) for wait, _ in asked.values()]


def _take_logs(
    result: Record,
    instance: DagsterInstance,
    entries: Sequence[EventLogEntry],
    normaliser: Normaliser,
) -> None:
    for entry in entries:
        event = entry.dagster_event
        if event is None or event.event_type_value != "LOGS_CAPTURED":
            continue
        data = event.logs_captured_data
        key = instance.compute_log_manager.build_log_key_for_run(entry.run_id, data.file_key)
        logs = instance.compute_log_manager.get_log_data(key)
        steps = ",".join(sorted(data.step_keys or [])) if event.step_key is None else event.step_key
        result.logs.setdefault(normaliser.text(steps), []).append(
            (_log(logs.stdout, normaliser), _log(logs.stderr, normaliser))
        )


def _log(raw: bytes | None, normaliser: Normaliser) -> str:
    if raw is None:
        return "(no file)"
    text = raw.decode(errors="replace")
    return normaliser.text(shortened(text) if len(raw) > MAX_TEXT_BYTES else text)


def shortened(text: str) -> str:
    """The text with one line, and their number, for equal lines that follow one another."""
    result: list[str] = []
    for line, same in itertools.groupby(text.splitlines(keepends=True)):
        number = sum(1 for _ in same)
        result.append(line if number == 1 else f"{line.rstrip()} x {number}\n")
    return "".join(result)


def _detail(event: DagsterEvent, versions: Versions) -> dict[str, Any]:
    """What is in the event beside its message."""
    kind = event.event_type_value
    if kind in _ASSETS:
        return _ASSETS[kind](event, versions)
    describe = _DETAILS.get(kind)
    return describe(event) if describe else {}


def _metadata(metadata: Any) -> dict[str, Any]:
    return {
        key: json.loads(serialize_value(cast("Any", value)))
        if isinstance(value, MetadataValue)
        else str(value)
        for key, value in (metadata or {}).items()
    }


def _error(error: Any) -> Any:
    """With what it was raised from and raised over."""
    if error is None:
        return None
    return {
        "class": error.cls_name or "",
        "message": error.message.strip(),
        "stack": list(error.stack),
        "cause": _error(error.cause),
        "context": _error(error.context),
    }


def _type_check(data: Any) -> dict[str, Any]:
    return {
        "success": data.success,
        "label": data.label,
        "description": data.description,
        "metadata": _metadata(data.metadata),
    }


def _step_output(event: DagsterEvent) -> Any:
    data = event.step_output_data
    return {
        "output": data.output_name,
        "key": data.step_output_handle.mapping_key,
        "type_check": _type_check(data.type_check_data),
        "metadata": _metadata(data.metadata),
    }


def _step_input(event: DagsterEvent) -> Any:
    data: Any = event.event_specific_data
    return {"input": data.input_name, "type_check": _type_check(data.type_check_data)}


def _step_failure(event: DagsterEvent) -> Any:
    data = event.step_failure_data
    user = data.user_failure_data
    return {
        "error": _error(data.error),
        "source": data.error_source.value if data.error_source else None,
        "label": user.label if user else None,
        "description": user.description if user else None,
        "metadata": _metadata(user.metadata) if user else {},
    }


def _retry(event: DagsterEvent) -> Any:
    data = event.step_retry_data
    return {"error": _error(data.error), "seconds_to_wait": data.seconds_to_wait}


def _handled_output(event: DagsterEvent) -> Any:
    data: Any = event.event_specific_data
    return {
        "output": data.output_name,
        "manager": data.manager_key,
        "metadata": _metadata(data.metadata),
    }


def _loaded_input(event: DagsterEvent) -> Any:
    data: Any = event.event_specific_data
    return {
        "input": data.input_name,
        "manager": data.manager_key,
        "from": [data.upstream_step_key, data.upstream_output_name],
        "metadata": _metadata(data.metadata),
    }


def _asset(event: DagsterEvent, versions: Versions) -> dict[str, Any]:
    value = asset_value(event)
    return {
        "asset": value.asset_key.path,
        "partition": value.partition,
        "description": value.description,
        "metadata": _metadata(value.metadata),
        "tags": versions.tags(value.tags),
    }


def _planned(event: DagsterEvent) -> Any:
    data = event.asset_materialization_planned_data
    return {
        "asset": data.asset_key.path,
        "partition": data.partition,
        "partitions": sorted(data.partitions_subset.get_partition_keys())
        if data.partitions_subset
        else None,
    }


def _check(event: DagsterEvent, versions: Versions) -> dict[str, Any]:
    data = event.asset_check_evaluation_data
    target = data.target_materialization_data
    return {
        "asset": data.asset_key.path,
        "check": data.check_name,
        "passed": data.passed,
        "severity": data.severity.value,
        "blocking": data.blocking,
        "description": data.description,
        "metadata": _metadata(data.metadata),
        "target": versions.row(str(target.storage_id)) if target else None,
    }


def _check_planned(event: DagsterEvent) -> Any:
    data: Any = event.event_specific_data
    return {"asset": data.asset_key.path, "check": data.check_name}


def _failed_to_materialize(event: DagsterEvent) -> Any:
    failure = event.asset_failed_to_materialize_data.asset_materialization_failure
    return {
        "asset": failure.asset_key.path,
        "partition": failure.partition,
        "type": failure.failure_type.value,
        "reason": failure.reason.value,
    }


def _expectation(event: DagsterEvent) -> Any:
    data: Any = event.event_specific_data
    result = data.expectation_result
    return {
        "success": result.success,
        "label": result.label,
        "description": result.description,
        "metadata": _metadata(result.metadata),
    }


def _captured(event: DagsterEvent) -> Any:
    return {"steps": sorted(event.logs_captured_data.step_keys or [])}


def _specific_error(event: DagsterEvent) -> Any:
    data: Any = event.event_specific_data
    return {"error": _error(data.error)}


def _resources(event: DagsterEvent) -> Any:
    data = event.engine_event_data
    return {"error": _error(data.error), "metadata": _metadata(data.metadata)}


def _run_failure(event: DagsterEvent) -> Any:
    data: Any = event.event_specific_data
    if data is None:
        return {"error": None, "reason": None, "first": None}
    first = data.first_step_failure_event
    detail = {
        "error": _error(data.error),
        "reason": data.failure_reason.value if data.failure_reason else None,
        "first": first.step_key if first else None,
    }
    failed = _FAILED_STEPS.search(event.message or "")
    if first is None or failed is None or data.error != first.step_failure_data.error:
        return detail
    steps = ast.literal_eval(failed[1])
    if len(steps) > 1 and first.step_key == steps[0]:
        # Which one that was is chance where they go on at once.
        detail |= {"error": NAMES[0], "first": NAMES[0]}
        detail["message"] = f"{(event.message or '')[: failed.start(1)]}{sorted(steps)}."
    return detail


def _run_canceled(event: DagsterEvent) -> Any:
    data: Any = event.event_specific_data
    return {"error": _error(data.error) if data else None}


def _enqueued(event: DagsterEvent) -> Any:
    data: Any = event.event_specific_data
    return {
        "location": data.code_location_name,
        "repository": data.repository_name,
        "partition": data.partition_key,
    }


_ASSETS: dict[str, Callable[[DagsterEvent, Versions], dict[str, Any]]] = {
    "ASSET_MATERIALIZATION": _asset,
    "ASSET_OBSERVATION": _asset,
    "ASSET_CHECK_EVALUATION": _check,
}
# An event that is not here has nothing beside its message; of those that have, a duration, or the
# id of a file.
_DETAILS: dict[str, Callable[[DagsterEvent], dict[str, Any]]] = {
    "PIPELINE_ENQUEUED": _enqueued,
    "PIPELINE_FAILURE": _run_failure,
    "PIPELINE_CANCELED": _run_canceled,
    "STEP_OUTPUT": _step_output,
    "STEP_INPUT": _step_input,
    "STEP_FAILURE": _step_failure,
    "STEP_UP_FOR_RETRY": _retry,
    "HANDLED_OUTPUT": _handled_output,
    "LOADED_INPUT": _loaded_input,
    "ASSET_MATERIALIZATION_PLANNED": _planned,
    "ASSET_CHECK_EVALUATION_PLANNED": _check_planned,
    "ASSET_FAILED_TO_MATERIALIZE": _failed_to_materialize,
    "STEP_EXPECTATION_RESULT": _expectation,
    "RESOURCE_INIT_STARTED": _resources,
    "RESOURCE_INIT_SUCCESS": _resources,
    "RESOURCE_INIT_FAILURE": _resources,
    "HOOK_ERRORED": _specific_error,
    "LOGS_CAPTURED": _captured,
}
