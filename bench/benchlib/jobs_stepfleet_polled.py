"""Code location of mode stepfleet_polled: our workers under a loop that sleeps as Dagster's does,
one second, instead of being woken by completions. The difference to mode stepfleet is what the
push is worth; the difference to mode step_delegating is what warm processes are worth."""

from typing import Any

from dagster import (
    Definitions,
    Executor,
    InitExecutorContext,
    executor,
    multiple_process_executor_requirements,
)
from dagster._core.execution.retries import RetryMode
from dagster_stepfleet.executor import StepfleetExecutor
from dagster_stepfleet.handler import StepfleetStepHandler

from benchlib.shapes import jobs

DAGSTERS_SLEEP_SECONDS = 1.0
EXECUTOR_CONFIG = {"sleep_seconds": DAGSTERS_SLEEP_SECONDS}


class PolledExecutor(StepfleetExecutor):
    """Submits what is ready where Dagster's loop sleeps, and then sleeps."""

    @property
    def _sleep_seconds(self) -> float:
        self._handler.flush()
        return DAGSTERS_SLEEP_SECONDS

    @_sleep_seconds.setter
    def _sleep_seconds(self, value: Any) -> None:
        """The base class sets it."""


@executor(name="stepfleet_polled", requirements=multiple_process_executor_requirements())
def stepfleet_polled_executor(init_context: InitExecutorContext) -> Executor:
    return PolledExecutor(StepfleetStepHandler(), retries=RetryMode.ENABLED)


defs = Definitions(jobs=jobs(stepfleet_polled_executor))
