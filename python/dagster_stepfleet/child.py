"""One process, one task: waits for a step, runs it through Dagster's own code, reports, exits."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NoReturn

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import deserialize_value, serialize_value
from dagster._utils.interrupts import capture_interrupts

from dagster_stepfleet import gate, logs, pages, storage
from dagster_stepfleet.events import ENDING_TYPES
from dagster_stepfleet.frames import PROTOCOL_VERSION
from dagster_stepfleet.gate import Parent

seams.verify(seams.CHILD_CHECKS)

# As TaskVersion in task.go.
RESULT_VERSION = 1
# As MaxErrorBytes in task.go; the rest is in the step's logs.
MAX_ERROR_BYTES = 16 << 10

# What a step's process leaves open; dropped, it would close. Its interrupts stay captured, too: one
# must not end the wait for threads.
_kept: list[ExitStack] = []

# Tells the template the serialised instance_ref of a task, so that it can build it ahead of need.
Teach = Callable[[str], None]


@dataclass
class Warm:
    """What an idle child has inherited: instances by their serialised ref."""

    instances: dict[str, DagsterInstance] = field(default_factory=dict[str, DagsterInstance])
    teach: Teach | None = None
    # Set where the template wants to know what memory a step copies.
    lesson: pages.Lesson | None = None


@dataclass
class Outcome:
    """How the attempt ended, from the events that it wrote."""

    event: str = ""
    outputs: list[str] = field(default_factory=list[str])
    code: str = ""
    message: str = ""
    # When the attempt came to its phases (Phase in task.go), in Unix seconds.
    phases: dict[str, float] = field(default_factory=dict[str, float])

    def reach(self, phase: str) -> None:
        self.phases.setdefault(phase, round(time.time(), 6))

    def note(self, event: DagsterEvent) -> None:
        kind = event.event_type
        if kind != DagsterEventType.STEP_WORKER_STARTED:
            self.reach("plan")
        if kind == DagsterEventType.STEP_START:
            self.reach("user_code")
        if kind in ENDING_TYPES:
            self.event = event.event_type_value
        if kind == DagsterEventType.STEP_OUTPUT:
            self.reach("outputs")
            handle = event.step_output_data.step_output_handle
            name = handle.output_name
            self.outputs.append(f"{name}[{handle.mapping_key}]" if handle.mapping_key else name)
        error: Any = getattr(event.event_specific_data, "error", None)
        # What comes after the end, of a hook for example, does not explain it.
        if error is not None and (kind in ENDING_TYPES or not self.event):
            self.code = {
                DagsterEventType.STEP_FAILURE: "step_failure",
                DagsterEventType.STEP_UP_FOR_RETRY: "step_up_for_retry",
                DagsterEventType.RESOURCE_INIT_FAILURE: "resource_init_failure",
            }.get(kind, "no_ending_event")
            # Dagster's own wrapper says where; the cause says why.
            while error.cause is not None:
                error = error.cause
            self.message = str(error.message).strip()

    def note_exception(self, err: BaseException) -> None:
        if not self.event:
            interrupted = isinstance(err, DagsterExecutionInterruptedError | KeyboardInterrupt)
            self.code = "interrupted" if interrupted else "no_ending_event"
        if not self.message:
            self.message = "".join(traceback.format_exception_only(err)).strip()

    def result(self, execution_seconds: float) -> dict[str, Any]:
        self.phases["ended"] = round(time.time(), 6)
        success = self.event == DagsterEventType.STEP_SUCCESS.value
        result: dict[str, Any] = {
            "v": RESULT_VERSION,
            "success": success,
            "outcome": "succeeded" if success else "failed",
            "event": self.event,
            "outputs": self.outputs,
            "execution_seconds": round(execution_seconds, 6),
            "worker": os.environ.get("STEPFLEET_WORKER", ""),
            "exit_code": 0,
            "phases": self.phases,
        }
        if not success:
            message = self.message or "the step wrote no ending event"
            result["error"] = {
                "code": self.code or "no_ending_event",
                "message": clip(message, MAX_ERROR_BYTES),
            }
        return result


def serve(parent: Parent, warm: Warm) -> NoReturn:
    """Says that it is ready, runs the one task that comes, and ends the process."""
    parent.send({"op": "ready", "v": PROTOCOL_VERSION, "pid": os.getpid()})
    frame = parent.receive()
    if frame is None or frame.get("op") != "run":
        os._exit(0)
    status = 0
    try:
        if frame["task"].get("kind") == "run":
            from dagster_stepfleet import run_worker

            if warm.lesson is not None:
                warm.lesson.decline()
            result = run_worker.run(parent, frame, warm)
        else:
            result = run(parent, frame, warm)
            if warm.lesson is not None:
                warm.lesson.tell()
        logs.flush()  # the result is the last word: the parent kills who has told it
        parent.send({"op": "result", "result": result})
    except BaseException:
        traceback.print_exc()
        status = 1
    logs.flush()
    # No exit handlers: they belong to the template, and user code must not hold up the next task.
    os._exit(status)


def run(parent: Parent, frame: dict[str, Any], warm: Warm) -> dict[str, Any]:
    """Runs the task of a run frame and returns its result."""
    os.environ.update(frame.get("env") or {})
    arm_signals()
    outcome = Outcome()
    started = 0.0
    with ExitStack() as stack:
        try:
            stack.enter_context(capture_interrupts())
            # The start is recorded meanwhile: nothing of the user's runs before both are done.
            with parent.asking({"op": "start"}):
                args, instance, dagster_run = _prepare(parent, frame, warm, stack)
                outcome.reach("prepared")
        except Exception as err:
            outcome.code = "prepare"
            outcome.message = f"before the step began: {type(err).__name__}: {err}"
            return outcome.result(0.0)
        outcome.reach("started")
        started = time.monotonic()
        try:
            flush = storage.join_events(instance)
            try:
                for event in seams.step_body()(args, instance, dagster_run):
                    outcome.note(event)
                    if event.event_type in ENDING_TYPES:
                        _say_ended(parent, outcome, started)
            finally:
                flush()
        except BaseException as err:  # Dagster's interrupt is no Exception
            traceback.print_exc()
            outcome.note_exception(err)
        finally:
            # Nothing is put back: the process ends here, and closing costs time.
            _kept.append(stack.pop_all())
    _await_threads(parent, outcome, started)
    return outcome.result(time.monotonic() - started)


def _say_ended(parent: Parent, outcome: Outcome, started: float) -> None:
    """Tells the parent what Dagster's log says by now, should this process not come to its last
    word: the hooks and the end of the resources are still to come. There is no answer to wait for.
    """
    parent.send({"op": "ended", "result": outcome.result(time.monotonic() - started)})


def _await_threads(parent: Parent, outcome: Outcome, started: float) -> None:
    """Waits for threads that outlive the op, as a child of Dagster's multiprocess executor does,
    and tells the parent that nothing else is left of the step.
    """
    if all(t.daemon or t is threading.main_thread() for t in threading.enumerate()):
        return
    parent.send({"op": "lingers", "result": outcome.result(time.monotonic() - started)})
    try:
        seams.join_threads()
    except BaseException:  # of a hook, or of the user's own signal handler
        traceback.print_exc()


def _prepare(
    parent: Parent, frame: dict[str, Any], warm: Warm, stack: ExitStack
) -> tuple[ExecuteStepArgs, DagsterInstance, DagsterRun]:
    args = _with_step(deserialize_value(frame["payload"], ExecuteStepArgs), frame["task"])
    instance = open_instance(args, warm, stack)
    parent.survive_forks()
    storage.guard(instance, parent, gate.GATED_EVENTS, frame)
    logs.install(instance)
    dagster_run = instance.get_run_by_id(args.run_id)
    if dagster_run is None:
        raise LookupError(f"Dagster's storage has no run {args.run_id}")
    return args, instance, dagster_run


def _with_step(args: ExecuteStepArgs, task: dict[str, Any]) -> ExecuteStepArgs:
    if args.run_id != task["run_id"]:
        raise ValueError(f"the payload is of run {args.run_id}, the task of {task['run_id']}")
    return ExecuteStepArgs(
        job_origin=args.job_origin,
        run_id=args.run_id,
        step_keys_to_execute=[task["step_key"]],
        instance_ref=args.instance_ref,
        retry_mode=args.retry_mode,
        known_state=args.known_state,
        should_verify_step=False,
        print_serialized_events=False,
    )


def open_instance(args: Any, warm: Warm, stack: ExitStack) -> DagsterInstance:
    storage.wait_out_outages()
    ref = serialize_value(args.instance_ref) if args.instance_ref else ""
    instance = warm.instances.get(ref)
    if instance is not None:
        return instance
    if warm.teach is not None and ref:
        warm.teach(ref)
    instance = stack.enter_context(seams.instance_for_cli(args.instance_ref))
    storage.pool(instance)
    return instance


def arm_signals() -> None:
    """As a process that `dagster api execute_step` starts: SIGTERM is an interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def clip(text: str, limit: int) -> str:
    raw = text.encode(errors="replace")
    if len(raw) <= limit:
        return text
    return raw[: limit - 3].decode(errors="ignore") + "..."


def reseed() -> None:
    """Gives a forked process its own random numbers."""
    import random

    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        numpy.random.seed()
