"""Code location of mode step_delegating: Dagster's StepDelegatingExecutor with its defaults, under
which it looks at the event log once a second, and a step handler that does what those for Docker,
Kubernetes and ECS do: `dagster api execute_step` for every step. What a container adds to a process
is not in it."""

import os
import subprocess
from collections.abc import Iterator
from typing import Any

from dagster import (
    DagsterEvent,
    Definitions,
    Executor,
    InitExecutorContext,
    executor,
    multiple_process_executor_requirements,
)
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating.step_delegating_executor import (
    StepDelegatingExecutor,
)
from dagster._core.executor.step_delegating.step_handler.base import (
    CheckStepHealthResult,
    StepHandler,
    StepHandlerContext,
)

from benchlib.settings import SLOTS
from benchlib.shapes import jobs

# sleep_seconds is its default, 1 s.
EXECUTOR_CONFIG: dict[str, Any] = {"max_concurrent": SLOTS}


class ProcessStepHandler(StepHandler):
    """A process per step, on this machine."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def name(self) -> str:
        return "ProcessStepHandler"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        args = step_handler_context.execute_step_args
        command = args.get_command_args(skip_serialized_namedtuple=True)
        environment = os.environ | {str(v["name"]): str(v["value"]) for v in args.get_command_env()}
        self._steps[self._key(step_handler_context)] = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL
        )
        return iter(())

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        code = self._steps[self._key(step_handler_context)].poll()
        if code in (None, 0):
            return CheckStepHealthResult.healthy()
        return CheckStepHealthResult.unhealthy(f"its process exited with {code}")

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        self._steps[self._key(step_handler_context)].terminate()
        return iter(())

    def _key(self, step_handler_context: StepHandlerContext) -> str:
        (key,) = step_handler_context.execute_step_args.step_keys_to_execute or []
        return key


@executor(name="step_delegating", requirements=multiple_process_executor_requirements())
def step_delegating_executor(init_context: InitExecutorContext) -> Executor:
    return StepDelegatingExecutor(
        ProcessStepHandler(), retries=RetryMode.ENABLED, **EXECUTOR_CONFIG
    )


defs = Definitions(jobs=jobs(step_delegating_executor))
