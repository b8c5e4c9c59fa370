"""The run branch of a child: executes a whole run through Dagster's own code.

It is `dagster api execute_run` or `resume_run` in a process that was warm before the run was
launched. The start gate stands before it, and the event gate before whatever decides about the run
or its steps: a run worker that has lost its task to another one writes nothing more.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import deserialize_value
from dagster._utils.interrupts import capture_interrupts

from dagster_stepfleet import child, client, gate, process, storage
from dagster_stepfleet.gate import Parent

seams.verify(seams.RUN_WORKER_CHECKS)

# The states in which Dagster waits for a run worker. A launch that came too late, because somebody
# has ended the run meanwhile, must not begin.
_WAITS_FOR_LAUNCH = frozenset({DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING})
_WAITS_FOR_RESUME = frozenset({DagsterRunStatus.STARTING, DagsterRunStatus.STARTED})


@dataclass
class Verdict:
    """How the run worker ended: it has succeeded when its run has an end, whatever that is."""

    outcome: str
    code: str = ""
    message: str = ""

    def result(self, execution_seconds: float) -> dict[str, Any]:
        result: dict[str, Any] = {
            "v": child.RESULT_VERSION,
            "success": self.outcome == "succeeded",
            "outcome": self.outcome,
            "event": "",
            "outputs": [],
            "execution_seconds": round(execution_seconds, 6),
            "worker": os.environ.get("STEPFLEET_WORKER", ""),
            "exit_code": 0,
        }
        if self.code:
            message = child.clip(self.message, child.MAX_ERROR_BYTES)
            result["error"] = {"code": self.code, "message": message}
        return result


def run(parent: Parent, frame: dict[str, Any], warm: child.Warm) -> dict[str, Any]:
    """Executes or resumes the run of a run frame and returns the task's result."""
    task = frame["task"]
    os.environ.update(frame.get("env") or {})
    client.take_token()
    child.arm_signals()
    process.own_run = True
    process.launched[task["run_id"]] = task["attempt"]
    stack = ExitStack()
    try:
        stack.enter_context(capture_interrupts())
        args = deserialize_value(frame["payload"], (ExecuteRunArgs, ResumeRunArgs))
        if args.run_id != task["run_id"]:
            raise ValueError(f"the payload is of run {args.run_id}, the task of {task['run_id']}")
        instance = child.open_instance(args, warm, stack)
        parent.survive_forks()
        storage.guard(instance, parent, gate.RUN_EVENTS, frame)
    except Exception as err:
        problem = f"before the run began: {type(err).__name__}: {err}"
        return Verdict("failed", "prepare", problem).result(0.0)
    parent.ask({"op": "start"})
    started = time.monotonic()
    verdict = _execute(args, instance)
    # The instance is not closed: the process ends here, and closing costs time.
    return verdict.result(time.monotonic() - started)


def _execute(args: ExecuteRunArgs | ResumeRunArgs, instance: DagsterInstance) -> Verdict:
    resume = isinstance(args, ResumeRunArgs)
    try:
        found = instance.get_run_by_id(args.run_id)
        if found is None:
            raise LookupError(f"Dagster's storage has no run {args.run_id}")
        if found.status not in (_WAITS_FOR_RESUME if resume else _WAITS_FOR_LAUNCH):
            return _unwanted(instance, found)
        body = seams.run_body(resume=resume)
        body(args.run_id, instance, _forget, set_exit_code_on_failure=True)
        return _judge(instance.get_run_by_id(args.run_id))
    except BaseException as err:
        traceback.print_exc()
        problem = "".join(traceback.format_exception_only(err)).strip()
        _fail(instance, args.run_id, problem)
        return Verdict("failed", "run_worker_crashed", problem)


def _forget(event: Any) -> None:
    """Takes what the body yields. It is in the log already."""


def _unwanted(instance: DagsterInstance, found: DagsterRun) -> Verdict:
    if found.status == DagsterRunStatus.CANCELING:
        instance.report_run_canceled(found, "The run was canceled before its run worker began.")
    return Verdict(
        "cancelled",
        "run_not_waiting",
        f"Dagster shows the run as {found.status.value}: nobody waits for this run worker",
    )


def _judge(found: DagsterRun | None) -> Verdict:
    """A run that goes on without its run worker needs another one."""
    if found is None or found.is_finished:
        return Verdict("succeeded")
    return Verdict(
        "failed",
        "run_unfinished",
        f"the run worker has left its run as {found.status.value}, as when it is interrupted while "
        "run monitoring can resume the run",
    )


def _fail(instance: DagsterInstance, run_id: str, problem: str) -> None:
    """Ends a run that its run worker could not begin, instead of letting it time out."""
    try:
        found = instance.get_run_by_id(run_id)
        if found is not None and found.status in _WAITS_FOR_LAUNCH:
            instance.report_run_failed(found, f"The run worker could not begin the run: {problem}")
    except Exception as err:
        print(f"stepfleet: the run could not be marked as failed: {err}", file=sys.stderr)
