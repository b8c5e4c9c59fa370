"""Takes a run on where an earlier run worker left it.

Dagster replays the run's events through its bookkeeping as if it vended the same steps again in the
same order. That fails on a skipped step, where limits or pools let it vend others, and on what
follows a retry with a delay; and it learns nothing of steps that had been submitted and had not
begun. Here each event moves the step that it names, and what is in flight is what the ledger has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster import DagsterEvent
from dagster._core.events import DagsterEventType
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.objects import StepRetryData

from dagster_stepfleet import attempts

if TYPE_CHECKING:
    from dagster import EventLogRecord
    from dagster._core.execution.plan.step import ExecutionStep

seams.verify(seams.RESUME_CHECKS)

_log = logging.getLogger("dagster.stepfleet")

_ENDS = frozenset(
    {
        DagsterEventType.STEP_SUCCESS,
        DagsterEventType.STEP_FAILURE,
        DagsterEventType.STEP_UP_FOR_RETRY,
    }
)


def answered(records: Iterable[EventLogRecord]) -> list[EventLogRecord]:
    """Leaves out a RESOURCE_INIT_FAILURE to which no run worker has written the step's end yet: the
    loop is to meet it and do so."""
    records = list(records)
    if seams.resource_init_failure_ends_step():
        return records
    last_end = {
        e.step_key: r.storage_id
        for r in records
        if (e := r.event_log_entry.dagster_event) is not None and e.event_type in _ENDS
    }

    def waits(record: EventLogRecord) -> bool:
        event = record.event_log_entry.dagster_event
        return (
            event is not None
            and event.event_type == DagsterEventType.RESOURCE_INIT_FAILURE
            and event.step_key is not None
            and last_end.get(event.step_key, 0) < record.storage_id
        )

    return [r for r in records if not waits(r)]


def history(
    records: Sequence[EventLogRecord], now: float
) -> tuple[list[DagsterEvent], list[float]]:
    """Returns the events for the replay, and when the retries are due that still wait.

    A retry's delay counts from when it was written, not from the replay; one that an attempt has
    followed is over.
    """
    last = {
        e.step_key: r.storage_id
        for r in records
        if (e := r.event_log_entry.dagster_event) is not None
        and e.event_type != DagsterEventType.ENGINE_EVENT
    }
    events: list[DagsterEvent] = []
    due: list[float] = []
    for record in records:
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        if event.event_type == DagsterEventType.STEP_UP_FOR_RETRY:
            data = event.step_retry_data
            delay = float(data.seconds_to_wait or 0)
            left = min(delay, record.event_log_entry.timestamp + delay - now)
            waits = left > 0 and last[event.step_key] == record.storage_id
            if waits:
                due.append(now + left)
            event = event._replace(
                event_specific_data=StepRetryData(data.error, cast("Any", left) if waits else None)
            )
        events.append(event)
    return events, due


def replaying(inherit: Callable[[], list[dict[str, Any]]]) -> Callable[..., ActiveExecution]:
    """Returns what the loop calls in ActiveExecution's place. `inherit` returns the ledger's tasks
    of the run."""

    def make(*args: Any, **kwargs: Any) -> ActiveExecution:
        return ReplayedExecution(inherit, *args, **kwargs)

    return make


class ReplayedExecution(ActiveExecution):
    """Dagster's bookkeeping of a run, brought to where the log and the ledger say the run is."""

    def __init__(
        self, inherit: Callable[[], list[dict[str, Any]]], *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._inherit = inherit

    def rebuild_from_events(self, dagster_events: Sequence[DagsterEvent]) -> list[ExecutionStep]:
        for event in dagster_events:
            self._replay(event)
        for view in sorted(self._inherit(), key=lambda view: view["task_id"]):
            key = str(view["step_key"])
            if view["attempt"] == self.retry_state.get_attempt_count(key):
                self._vend(key)
        steps = [self.get_step_by_key(key) for key in self._in_flight]
        self._take_slots(steps)
        return steps

    def _replay(self, event: DagsterEvent) -> None:
        key, kind = event.step_key, event.event_type
        if key is None:
            return
        if kind == DagsterEventType.STEP_SKIPPED:
            if self._take(key):
                self._skip_for_dynamic_outputs(self.get_step_by_key(key))
                self.mark_skipped(key)
            return
        ends = kind in _ENDS or (
            kind == DagsterEventType.RESOURCE_INIT_FAILURE
            and seams.resource_init_failure_ends_step()
        )
        if not ends and kind != DagsterEventType.STEP_OUTPUT:
            return
        late = attempts.is_late(event, self.retry_state.get_attempt_count(key))
        if late or not self._vend(key):
            _log.warning(
                "Dagster's log has a %s of step %s, which had ended before; it is ignored.",
                event.event_type_value,
                key,
            )
            return
        self.handle_event(event)
        if ends:
            self._free_slot(key)

    def _vend(self, key: str) -> bool:
        """Puts the step in flight as the loop does, whatever its limits say now."""
        if key in self._in_flight:
            return True
        if not self._take(key):
            return False
        self._prep_for_dynamic_outputs(self.get_step_by_key(key))
        return True

    def _take(self, key: str) -> bool:
        """Puts the step in flight from wherever it waits. False for one that has ended."""
        if key in self._in_flight:
            return True
        self._update()
        for waiting in (
            self._executable,
            self._pending_skip,
            self._pending_retry,
            self._pending_abandon,
        ):
            if key in waiting:
                waiting.remove(key)
                break
        else:
            if self._pending.pop(key, None) is None and not self._waiting_to_retry.pop(key, None):
                return False
        self._in_flight.add(key)
        return True

    def _free_slot(self, key: str) -> None:
        """Gives back the slot of a pool that the earlier run worker took for a step that has ended,
        and may not have lived to give back."""
        context = self._instance_concurrency_context
        if context is not None and seams.pool_of(self.get_step_by_key(key)):
            seams.free_slot(context, key)

    def _take_slots(self, steps: Sequence[ExecutionStep]) -> None:
        """Takes over the slots of what is in flight, so that they are given back at its end."""
        context = self._instance_concurrency_context
        for step in steps:
            pool = seams.pool_of(step)
            if context is not None and pool and not context.claim(pool, step.key, 0):
                # It runs without one. Waiting for a slot would keep the run from ending.
                seams.free_slot(context, step.key)
