"""Whether the run is still this executor's, and how to leave one that is not.

The server's answers and the run's stream say when another executor has taken over. Where there is
reason to doubt, the executor asks; where it cannot ask, it goes by what Dagster's log says.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import DagsterEventType

from dagster_stepfleet import process
from dagster_stepfleet.client import Client, ServerUnreachable, Superseded
from dagster_stepfleet.patience import patiently

if TYPE_CHECKING:
    from dagster import DagsterEvent, DagsterInstance
    from dagster._core.execution.context.system import PlanOrchestrationContext

_log = logging.getLogger("dagster.stepfleet")

# A loop that has not come round for so long was stopped, or hung: another may have taken over.
STOPPED_SECONDS = 10.0


def resume_of(instance: DagsterInstance, run_id: str, *, resuming: bool) -> int:
    """Which resume of the run this run worker is of; 0: its first start. The ledger refuses an
    executor of an earlier one than it has heard of.

    Our launcher has fixed it when it submitted the run worker. For another's it is the number of
    resumes that Dagster's log has by now, which may be more than when this one was launched.
    """
    if run_id in process.launched:
        return process.launched[run_id]
    if not resuming:
        return 0
    of_type = DagsterEventType.ENGINE_EVENT
    found = patiently(lambda: instance.get_records_for_run(run_id, of_type=of_type))
    return sum(r.event_log_entry.message == seams.RESUME_MESSAGE for r in found.records)


class Place:
    """The executor's place as the one that speaks for the run."""

    def __init__(self) -> None:
        # Dagster has launched another run worker for this run, says its log.
        self.replaced = False
        self._came_round = 0.0

    def check(self, client: Client | None) -> None:
        """Called once a round. Raises Superseded where doubt turns out to be right."""
        now = process.clock_seconds()
        doubt = self.replaced or now - self._came_round > STOPPED_SECONDS
        self._came_round = now
        if doubt and client is not None and client.completions.epoch:
            client.confirm()
            self._came_round = process.clock_seconds()

    def hear(self, event: DagsterEvent) -> None:
        """Takes an event of the run that was written since this executor began."""
        if event.event_type == DagsterEventType.ENGINE_EVENT:
            self.replaced = self.replaced or event.message == seams.RESUME_MESSAGE

    def conclude(self, err: Exception) -> None:
        """Raises Superseded for an executor that cannot ask and was replaced, says the log."""
        if isinstance(err, ServerUnreachable) and self.replaced:
            raise Superseded(
                "Dagster has launched another run worker for this run, and the stepfleet server "
                "cannot be reached from this one, which leaves the run to it."
            ) from err


def leave_process(err: Superseded) -> None:
    """Ends a process that is nothing but this run's worker, from within Dagster's loop: what the
    loop would still tidy up, such as its places in the lines for pools, is another's by now."""
    if process.is_run_worker():
        _log.warning("%s", err)
        process.leave()


def leave_run(
    plan_context: PlanOrchestrationContext, err: Superseded
) -> DagsterExecutionInterruptedError:
    """Leaves the run where the process goes on. Returns what to raise so that Dagster writes no end
    of the run."""
    leave_process(err)
    _log.warning("%s", err)
    # An interrupted run worker writes no end of a run that will be resumed; this one was.
    instance: Any = plan_context.instance
    stock = instance.run_will_resume

    def run_will_resume(run_id: str) -> bool:
        return run_id == plan_context.run_id or stock(run_id)

    instance.run_will_resume = run_will_resume
    return DagsterExecutionInterruptedError(str(err))
