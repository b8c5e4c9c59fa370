"""Dagster's own step-delegating executor, as its Kubernetes, ECS and Docker executors use it, with
a plain process for each step: the reference where multiprocess is the odd one out."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, cast

from dagster import (
    DagsterEvent,
    Executor,
    InitExecutorContext,
    executor,
    multiple_process_executor_requirements,
)
from dagster._core.execution.retries import RetryMode, get_retries_config
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
)

_HEALTH_SECONDS = 2


class ProcessStepHandler(StepHandler):
    """Starts `dagster api execute_step` and looks at its exit status."""

    def __init__(self) -> None:
        super().__init__()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def name(self) -> str:
        return "ProcessStepHandler"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        args = step_handler_context.execute_step_args
        self._processes[_key(step_handler_context)] = subprocess.Popen(
            [sys.executable, "-m", "dagster", "api", "execute_step"],
            env={**os.environ, **{pair["name"]: pair["value"] for pair in args.get_command_env()}},
            start_new_session=True,
        )
        return iter(())

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        process = self._processes.get(_key(step_handler_context))
        status = process.poll() if process else None
        if status in (None, 0):
            return CheckStepHealthResult.healthy()
        return CheckStepHealthResult.unhealthy(f"the process exited with status {status}")

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        self._processes[_key(step_handler_context)].send_signal(signal.SIGTERM)
        return iter(())


def _key(context: StepHandlerContext) -> str:
    (key,) = context.execute_step_args.step_keys_to_execute or []
    return key


@executor(
    name="step_delegating_parity",
    config_schema={"retries": get_retries_config()},
    requirements=multiple_process_executor_requirements(),
)
def step_delegating_executor(init_context: InitExecutorContext) -> Executor:
    config = cast("dict[str, Any]", init_context.executor_config)
    return StepDelegatingExecutor(
        ProcessStepHandler(),
        retries=RetryMode.from_config(config["retries"]) or RetryMode.ENABLED,
        check_step_health_interval_seconds=_HEALTH_SECONDS,
    )
