"""The executor's memory: steps that Dagster has launched, and what the ledger has said of them.

Dagster's loop calls it through StepHandler's four members; the executor calls it at the loop's
other seams. It buffers launches, submits them in one batch, waits for completions, and reads the
event log so that the loop misses nothing and is told nothing twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
import sqlalchemy.exc
from dagster import (
    DagsterEvent,
)
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import DagsterEventType, EngineEventData
from dagster._core.executor.step_delegating.step_handler.base import (
    CheckStepHealthResult,
    StepHandler,
    StepHandlerContext,
)
from dagster._grpc.types import ExecuteStepArgs
from dagster._utils.interrupts import check_captured_interrupt

from dagster_stepfleet import attempts, resume, tags
from dagster_stepfleet.arguments import attempt_of, shared_payload, step_key_of
from dagster_stepfleet.client import (
    DEFAULT_URL,
    PROTOCOL_VERSION,
    TERMINAL_STATES,
    Client,
    Ended,
    Interrupted,
    ServerRefused,
    StepfleetError,
    Superseded,
    read_token,
)
from dagster_stepfleet.events import ENDING_TYPES, WINDOW_IDS, EventReader
from dagster_stepfleet.identity import run_identity
from dagster_stepfleet.patience import patiently
from dagster_stepfleet.takeover import Place, leave_process, resume_of
from dagster_stepfleet.verdicts import Adjudicator, VerdictGate

if TYPE_CHECKING:
    from dagster import DagsterInstance, EventLogRecord
    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.storage.event_log.base import EventLogStorage
    from dagster_shared.error import SerializableErrorInfo

seams.verify(seams.EXECUTOR_CHECKS)

_log = logging.getLogger("dagster.stepfleet")

# The server's limit on one submission.
MAX_BATCH_TASKS = 2000
# The loop looks at the event log this often even when the stream is silent.
WAIT_SECONDS = 1.0
# What the loop takes for the current attempt's.
_OF_AN_ATTEMPT = ENDING_TYPES | {DagsterEventType.STEP_OUTPUT}
# How often a run whose steps have all ended asks for those whose processes have not.
LOOK_SECONDS = 15.0
# A run that fails for resources says of so many attempts why.
MAX_RESOURCE_ERRORS = 20


@dataclass(frozen=True)
class Launch:
    """A step that Dagster has vended and that waits for the next submit."""

    step_key: str
    attempt: int
    args: ExecuteStepArgs
    # Launches of one pass of the loop have the same known state, and so share one payload.
    generation: int
    op: str
    policy_retries: int
    placement: tags.Placement
    location: str


@dataclass
class Open:
    """A step that Dagster counts as in flight."""

    attempt: int
    placement: tags.Placement
    # The highest event id at its launch: its own events are all above.
    launched_after: int
    # Whether it has taken a slot of a pool.
    pooled: bool = False
    refusal: Ended | None = None
    rewound: bool = False


class StepfleetStepHandler(StepHandler):
    """Buffers launches, and answers about health from what the ledger has said."""

    def __init__(
        self,
        *,
        server_url: str | None = None,
        outage_budget_seconds: float = 300.0,
        defaults: tags.Defaults | None = None,
    ) -> None:
        super().__init__()
        self._server_url = server_url or os.environ.get("STEPFLEET_URL") or DEFAULT_URL
        self._outage_budget_seconds = outage_budget_seconds
        self.defaults = defaults or tags.Defaults()
        self._router = tags.Router({}, self.defaults)
        self.client: Client | None = None
        self.reader: EventReader | None = None
        self.buffer: list[Launch] = []
        self.open: dict[str, Open] = {}
        self.generation = 0
        # The ledger's tasks when this run worker resumed the run, by step key and attempt.
        self.inherited: dict[tuple[str, int], dict[str, Any]] = {}
        self.resuming = False
        # Why attempts could not make their resources, also before this run worker resumed the run.
        self.resource_errors: list[SerializableErrorInfo] = []
        self.adjudicator = Adjudicator()
        self._gate: VerdictGate | None = None
        self._slots: EventLogStorage | None = None
        self.place = Place()
        self._tried = False
        # An event of our own waits in the log: the loop must pop it without waiting.
        self.nudged = False
        # The loop has had the end of a step since it waited: if none is open, it may be complete.
        self._heard_end = False
        self._identity = ""
        self._job_name = ""
        self._retry_at: list[float] = []
        self._seen_version = 0
        # Attempts that the ledger has taken and, as far as is known, not ended.
        self._going: set[tuple[str, int]] = set()

    @property
    def name(self) -> str:
        return "StepfleetStepHandler"

    # Called by the executor's execute.

    def begin(self, plan_context: PlanOrchestrationContext, gate: VerdictGate) -> None:
        run = plan_context.dagster_run
        self.client = Client(
            self._server_url,
            run.run_id,
            token=read_token(),
            outage_budget_seconds=self._outage_budget_seconds,
            interrupted=check_captured_interrupt,
            resume=resume_of(
                plan_context.instance, run.run_id, resuming=plan_context.resume_from_failure
            ),
        )
        self._router = tags.Router(run.tags, self.defaults)
        self.client.start()
        self._gate = gate
        self._slots = plan_context.instance.event_log_storage
        self.resuming = plan_context.resume_from_failure
        self.place.check(None)
        self._job_name = run.job_name
        origin = run.job_code_origin or plan_context.reconstructable_job.get_python_origin()
        self._identity = run_identity(origin, run.job_snapshot_id)

    def inherit(self) -> list[dict[str, Any]]:
        """Returns the run's tasks as they stand now that nobody else can submit any more."""
        assert self.client is not None
        try:
            views = [v for v in self.client.tasks() if v["kind"] == "step"]
        except Interrupted as err:
            raise DagsterExecutionInterruptedError(str(err)) from err
        for view in views:
            self.inherited[view["step_key"], view["attempt"]] = view
        self.client.completions.add_ended(views)
        self._tried = bool(views)  # so that `end` closes what the earlier run worker has begun
        return views

    def _take_over(self) -> None:
        """Waits for the epoch. A closed run needs no executor: its steps have ended, or will."""
        assert self.client is not None
        try:
            self.client.epoch()
        except Interrupted as err:
            raise DagsterExecutionInterruptedError(str(err)) from err
        except ServerRefused as err:
            if err.code != "run_closed":
                raise

    def end(self, *, reason: str | None, leaving: bool, budget_seconds: float) -> None:
        """Ends the run in the ledger: closes it, after cancelling all when there is a reason.
        Leaving, it only hangs up."""
        client, self.client = self.client, None
        if client is None:
            return
        try:
            self.buffer.clear()
            if leaving or not self._tried or not client.completions.epoch:
                return
            if reason is not None:
                client.cancel(None, reason, budget_seconds=budget_seconds)
                self._await_cancelled(client, budget_seconds)
            client.close_run(reason or "the run's steps have ended", budget_seconds=budget_seconds)
            if reason is not None:
                self._free_slots(client, budget_seconds)
        except StepfleetError as err:
            self.place.conclude(err)
            # The server closes runs that Dagster shows as ended by itself.
            _log.warning("stepfleet could not close run %s: %s", client.run_id, err)
        finally:
            client.shutdown()

    def _await_cancelled(self, client: Client, budget_seconds: float) -> None:
        """Waits until the cancelled processes are gone, as multiprocess does: their last events
        come before the run's, and the daemon, which has sent the interrupt because the run took
        too long, gets to call it failed before the run worker calls it cancelled."""
        completions = client.completions
        deadline = time.monotonic() + budget_seconds
        while completions.refused is None and (left := deadline - time.monotonic()) > 0:
            version = completions.version
            if all(completions.get(*key) is not None for key in self._going):
                return
            completions.wait(version, left)

    def _free_slots(self, client: Client, budget_seconds: float) -> None:
        """Gives back the pools' slots of cancelled steps: Dagster's loop, which does so at a step's
        end, is over. A step whose process is still there keeps its slot."""
        pooled = [(key, step.attempt) for key, step in self.open.items() if step.pooled]
        storage = self._slots
        if not pooled or storage is None or not storage.supports_global_concurrency_limits:
            return
        there = {
            (view["step_key"], view["attempt"])
            for view in client.tasks(budget_seconds=budget_seconds)
            if view["state"] not in TERMINAL_STATES
        }
        try:
            for key, attempt in pooled:
                if (key, attempt) not in there:
                    storage.free_concurrency_slot_for_step(client.run_id, key)
        except sqlalchemy.exc.DBAPIError as err:
            # The run ends as it would have; Dagster's monitoring can free them, too.
            _log.warning("stepfleet could not free the slots of run %s: %s", client.run_id, err)

    # Called by the loop.

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        args = step_handler_context.execute_step_args
        run = step_handler_context.dagster_run
        step_key = step_key_of(args)
        step_context = step_handler_context.get_step_context(step_key)
        placement = self._router.place(step_handler_context.step_tags[step_key])
        for warning in placement.warnings:
            DagsterEvent.engine_event(step_context, warning, EngineEventData())
        attempt = attempt_of(args, step_key)
        policy = step_context.op_retry_policy
        location = run.remote_job_origin.location_name if run.remote_job_origin else ""
        self.buffer.append(
            Launch(
                step_key=step_key,
                attempt=attempt,
                args=args,
                generation=self.generation,
                op=step_context.step.node_handle.name,
                policy_retries=tags.cut_retries(policy.max_retries) if policy else 0,
                placement=placement,
                location=location,
            )
        )
        self.open[step_key] = Open(
            attempt=attempt,
            placement=placement,
            launched_after=self.reader.highest if self.reader else 0,
            pooled=seams.pool_of(step_context.step) is not None,
        )
        return
        yield  # a generator without events: the child writes them

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Unhealthy when the ledger has ended the step and Dagster's log has not, and this executor
        may say so."""
        try:
            step_key = step_key_of(step_handler_context.execute_step_args)
            if step_key not in self.open and not self._adopt(step_key, step_handler_context):
                return CheckStepHealthResult.unhealthy("the ledger has no task of it")
            ended = self.verdict(step_key)
            if ended is None or self.reader is None or not self.open[step_key].rewound:
                return CheckStepHealthResult.healthy()
            if self.reader.has_unseen_ending(step_key):
                # It became visible only now, maybe below the window: read the whole log again.
                self.open[step_key].rewound = False
                return CheckStepHealthResult.healthy()
            if not self._may_end(step_key) or not self.open[step_key].rewound:
                return CheckStepHealthResult.healthy()
            return CheckStepHealthResult.unhealthy(ended.describe())
        except Superseded as err:
            leave_process(err)
            raise
        except Exception as err:
            # A storage that is down for a moment must not fail a step.
            _log.warning("stepfleet could not check a step's health: %s", err)
            return CheckStepHealthResult.healthy()

    def _adopt(self, step_key: str, step_handler_context: StepHandlerContext) -> bool:
        """Takes over a step that an earlier run worker has submitted."""
        args, run = step_handler_context.execute_step_args, step_handler_context.dagster_run
        attempt = attempt_of(args, step_key)
        if (step_key, attempt) not in self.inherited:
            return False
        self.open[step_key] = Open(
            attempt=attempt,
            placement=tags.place(step_handler_context.step_tags[step_key], run.tags, self.defaults),
            launched_after=0,
            pooled=seams.pool_of(step_handler_context.get_step_context(step_key).step) is not None,
        )
        self._going.add((step_key, attempt))  # a run that ends waits for it, too
        return True

    def _may_end(self, step_key: str) -> bool:
        """Adjudicates all that waits for it, in one call. False means to ask again later."""
        assert self.client is not None
        wanted = step_key, self.open[step_key].attempt
        waiting = {(k, s.attempt) for k, s in self.open.items() if s.rewound and self.verdict(k)}
        for key in self.adjudicator.ask(self.client, wanted, waiting):
            # The executor before may have written it since the log was read: read it again.
            self.open[key].rewound = False
        return self.adjudicator.granted(wanted)

    def writing_end(self, step_key: str) -> contextlib.AbstractContextManager[None]:
        """Within it, the end of the step's attempt is written unless the log has it."""
        step = self.open.get(step_key)
        if self._gate is None or step is None:
            return contextlib.nullcontext()
        return self._gate.expecting(step_key, step.attempt)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        """Does nothing by itself: `end` cancels all the run's tasks in one call."""
        return iter(())

    # Called by the executor's seams.

    def flush(self) -> None:
        """Submits what is buffered. Raises when the whole batch is refused."""
        while self.buffer and self.client is not None:
            batch = self.buffer[:MAX_BATCH_TASKS]
            receipts = self._submit(batch)
            del self.buffer[: len(batch)]
            for launch, receipt in zip(batch, receipts, strict=True):
                self._take_receipt(launch, receipt)

    def wait(self) -> None:
        """Waits for a completion, an interrupt or the end of a retry's delay; 1 s at most."""
        if self.client is None:
            return
        refused = self.client.completions.refused
        if refused is not None and (self.open or isinstance(refused, Superseded)):
            raise refused
        heard_end, self._heard_end = self._heard_end, False
        if self.nudged or (heard_end and not self.open):
            self.nudged = False
            return
        now = time.time()
        self._retry_at = [at for at in self._retry_at if at > now]
        timeout = min([WAIT_SECONDS, *(at - now for at in self._retry_at)])
        self.client.wait(self._seen_version, timeout)

    def await_processes(self) -> None:
        """Waits until the ledger has ended every attempt, at the end of a run.

        A step's success is in Dagster's log before its hooks have run and its resources are closed.
        A run that was closed then would have them killed; so Dagster's own executors wait too.
        """
        client = self.client
        looked = time.monotonic()
        while client is not None and client.completions.refused is None:
            version = client.completions.version
            self._going = {key for key in self._going if client.completions.get(*key) is None}
            if not self._going:
                return
            if check_captured_interrupt():
                raise DagsterExecutionInterruptedError
            if client.wait(version, WAIT_SECONDS) or time.monotonic() - looked < LOOK_SECONDS:
                continue
            # The stream may be down, or behind.
            looked = time.monotonic()
            try:
                client.completions.add_ended(client.tasks())
            except StepfleetError as err:
                _log.warning("stepfleet does not wait for the hooks of %s: %s", self._going, err)
                return

    def verdict(self, step_key: str) -> Ended | None:
        """Returns how the ledger ended the step's current attempt, None while it has not."""
        step = self.open.get(step_key)
        if step is None or self.client is None:
            return None
        return step.refusal or self.client.completions.get(step_key, step.attempt)

    def verdict_waits(self) -> bool:
        """Whether an ended step is still unexplained after a full read of the log."""
        return any(step.rewound and self.verdict(key) for key, step in self.open.items())

    def pop(self, instance: DagsterInstance, run_id: str, seen: set[int]) -> list[DagsterEvent]:
        """Returns the events that were not returned before, and keeps account of steps."""
        first = self.reader is None
        reader = self.reader = self.reader or EventReader(instance, run_id, seen)
        self.generation += 1
        if first and self.resuming:
            self._take_over()  # before the read: the earlier executor decides nothing after it
        self.place.check(self.client)
        if self.client is not None:
            self._seen_version = self.client.completions.version
        after = 0 if first else max(0, reader.highest - WINDOW_IDS)
        records = patiently(lambda: self._read(reader, after))
        if first and self.resuming:
            records = resume.answered(records)
            reader.mark(records)
            events, due = resume.history(records, time.time())
            self._retry_at += due
            for event in events:
                self._note_resource_failure(event)
            return events
        records = [r for r in records if not self._too_early(r)]
        reader.mark(records)
        events = [e for r in records if (e := r.event_log_entry.dagster_event) is not None]
        return [event for event in events if self._account(event)]

    def _too_early(self, record: EventLogRecord) -> bool:
        """Whether the loop must not see the event yet. It answers a RESOURCE_INIT_FAILURE by
        writing the step's end, which needs the task to have ended and a grant."""
        event = record.event_log_entry.dagster_event
        if event is None or event.event_type != DagsterEventType.RESOURCE_INIT_FAILURE:
            return False
        if self._is_late(event):
            return False  # it is no end of what is under way
        if seams.resource_init_failure_ends_step() or event.step_key not in self.open:
            return False
        return self.verdict(event.step_key) is None or not self._may_end(event.step_key)

    def _note_resource_failure(self, event: DagsterEvent) -> None:
        if event.event_type != DagsterEventType.RESOURCE_INIT_FAILURE:
            return
        error = event.engine_event_data.error
        if error is not None and len(self.resource_errors) < MAX_RESOURCE_ERRORS:
            self.resource_errors.append(error)

    def _read(self, reader: EventReader, after: int) -> list[EventLogRecord]:
        # Taken before the read: what ends in the ledger has its events in the log by then, so only
        # these can be missing from it. Ends that arrive during the read are for the next one.
        ended = [k for k, s in self.open.items() if not s.rewound and self.verdict(k) is not None]
        records = reader.read(after)
        # A STEP_SUCCESS must not be handed on before the step's outputs, or Dagster skips what is
        # downstream. Within one read they come together; older ones may lie below the window.
        behind = {
            key
            for r in records
            if (e := r.event_log_entry.dagster_event) is not None
            and e.event_type == DagsterEventType.STEP_SUCCESS
            and (key := e.step_key) is not None
            and (step := self.open.get(key)) is not None
            and step.launched_after < after
        }
        if behind:
            known = {r.storage_id for r in records}
            records += [r for r in reader.read_steps(behind) if r.storage_id not in known]
        ending = {
            e.step_key
            for r in records
            if (e := r.event_log_entry.dagster_event) is not None and e.event_type in ENDING_TYPES
        }
        # Whatever ended in the ledger and not in what was read: one read of the whole log.
        unexplained = [self.open[key] for key in ended if key not in ending]
        if unexplained:
            known = {r.storage_id for r in records}
            records += [r for r in reader.read(0) if r.storage_id not in known]
            for step in unexplained:
                step.rewound = True
        return sorted(records, key=lambda r: r.storage_id)

    def _is_late(self, event: DagsterEvent) -> bool:
        """Whether the event is of an attempt that was given up, and another is under way."""
        step = self.open.get(event.step_key or "")
        late = step is not None and attempts.is_late(event, step.attempt)
        return late and event.event_type in _OF_AN_ATTEMPT

    def _account(self, event: DagsterEvent) -> bool:
        """Closes the step that the event ends. Returns False for the end of no open step, or of an
        earlier attempt: a process that was given up has written late, and Dagster's loop would fail
        on it, or take it for that of the attempt under way."""
        self.place.hear(event)
        if self._is_late(event):
            _log.warning(
                "Dagster's log has a %s of an earlier attempt of step %s, which was given up; it "
                "is ignored.",
                event.event_type_value,
                event.step_key,
            )
            return False
        if event.event_type not in ENDING_TYPES or event.step_key is None:
            return True
        if event.step_key not in self.open:
            _log.warning(
                "Dagster's log has a %s of step %s, which had ended before; it is ignored.",
                event.event_type_value,
                event.step_key,
            )
            return False
        self._note_resource_failure(event)
        if event.event_type == DagsterEventType.RESOURCE_INIT_FAILURE:
            # The loop will write the event that ends the step, and must read it at once.
            self.nudged = True
            if not seams.resource_init_failure_ends_step():
                return True
        if event.event_type == DagsterEventType.STEP_UP_FOR_RETRY:
            delay = event.step_retry_data.seconds_to_wait
            if delay:
                self._retry_at.append(time.time() + float(delay) + 0.001)
        del self.open[event.step_key]
        self._heard_end = True
        return True

    def _submit(self, batch: Sequence[Launch]) -> list[dict[str, Any]]:
        payloads: dict[str, str] = {}
        digests: dict[int, str] = {}
        for launch in batch:
            if launch.generation not in digests:
                payload = shared_payload(launch.args)
                digest = hashlib.sha256(payload.encode()).hexdigest()
                digests[launch.generation] = digest
                payloads[digest] = payload
        assert self.client is not None
        self._tried = True
        return self.client.submit(
            self._identity,
            payloads,
            [self._task(launch, digests[launch.generation]) for launch in batch],
        )

    def _task(self, launch: Launch, payload: str) -> dict[str, Any]:
        run_id = launch.args.run_id
        return {
            "v": PROTOCOL_VERSION,
            "kind": "step",
            "run_id": run_id,
            "step_key": launch.step_key,
            "attempt": launch.attempt,
            "op": launch.op,
            "job": self._job_name,
            "idempotency_key": f"{run_id}/{launch.step_key}",
            "queue": launch.placement.queue,
            "priority": launch.placement.priority,
            "timeout_seconds": launch.placement.timeout_seconds,
            "code_location": launch.location,
            "payload": payload,
            "retry_budget": {
                "policy_retries": launch.policy_retries,
                "lost_step_retries": launch.placement.lost_step_retries,
            },
        }

    def _take_receipt(self, launch: Launch, receipt: dict[str, Any]) -> None:
        error = receipt.get("error")
        state = str(receipt.get("state") or "")
        step = self.open.get(launch.step_key)
        assert self.client is not None
        if not error:
            self._going.add((launch.step_key, launch.attempt))
        if error:
            if step is not None and step.attempt == launch.attempt:
                message = f"refused at submit: {error.get('message')} [{error.get('code')}]"
                step.refusal = Ended(launch.step_key, launch.attempt, "refused", 0, message)
                step.rewound = True
                self.nudged = True
        elif state in TERMINAL_STATES:
            # The stream's snapshot tells the same with reason and result; it may come later.
            if self.client.completions.get(launch.step_key, launch.attempt) is None:
                self._look_up(launch, state, receipt)
            self.nudged = True

    def _look_up(self, launch: Launch, state: str, receipt: dict[str, Any]) -> None:
        """Notes every attempt that has ended: lost ones count, whichever the stream tells first."""
        assert self.client is not None
        completions = self.client.completions
        try:
            completions.add_ended(self.client.tasks())
        except StepfleetError as err:
            _log.warning("stepfleet could not read how step %s ended: %s", launch.step_key, err)
        task_id = int(receipt.get("task_id") or 0)
        completions.add(Ended(launch.step_key, launch.attempt, state, task_id))
