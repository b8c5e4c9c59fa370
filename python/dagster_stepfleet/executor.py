"""The executor: Dagster's own step-delegating loop, without its polling.

The loop stays Dagster's. What is ours hangs on five of its seams: `launch_step` buffers the steps
that are ready, `_sleep_seconds` submits them in one batch and then waits for a completion,
`_pop_events` reads the log so that no event is missed, the health interval is due at once when the
ledger has ended a step that Dagster still waits for, and the crash helper writes that verdict. On
resume the loop's bookkeeping is replayed by resume.py.

The executor speaks for its run under the epoch that it took at the server. When another has taken
over it raises Superseded out of the loop, touches neither the ledger nor the log any more, and
leaves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster import (
    BoolSource,
    DagsterEvent,
    DagsterRunStatus,
    Executor,
    Field,
    InitExecutorContext,
    IntSource,
    Noneable,
    StringSource,
    executor,
    multiple_process_executor_requirements,
)
from dagster._core.errors import DagsterExecutionInterruptedError, DagsterSubprocessError
from dagster._core.events import EngineEventData
from dagster._core.execution.plan.objects import StepFailureData, StepRetryData
from dagster._core.execution.retries import RetryMode, get_retries_config
from dagster._core.execution.step_dependency_config import (
    StepDependencyConfig,
    get_step_dependency_config_field,
)
from dagster._core.execution.tags import get_tag_concurrency_limits_config
from dagster._core.executor.step_delegating.step_delegating_executor import (
    StepDelegatingExecutor,
)

from dagster_stepfleet import iocheck, resume, storage, tags
from dagster_stepfleet.client import (
    DEFAULT_URL,
    Interrupted,
    ServerUnreachable,
    Superseded,
)
from dagster_stepfleet.handler import StepfleetStepHandler
from dagster_stepfleet.takeover import leave_process, leave_run
from dagster_stepfleet.verdicts import VerdictGate

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from dagster._core.execution.context.system import IStepContext, PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.plan.state import KnownExecutionState
    from dagster_shared.error import SerializableErrorInfo

seams.verify(seams.EXECUTOR_CHECKS)


HEALTH_INTERVAL_SECONDS = 20
# What a run that ends waits for the server to take its cancel or close. The server finds runs
# that Dagster has ended by itself, so this need not be long.
GOODBYE_BUDGET_SECONDS = 15.0

# After these a new attempt would end the same way, or is not wanted.
_STATES_WITHOUT_RETRY = frozenset({"cancelled", "dead", "refused"})


def _will_resume(instance: DagsterInstance, run_id: str) -> bool:
    """Whether another run worker will go on with the run: of one that was cancelled or failed
    meanwhile Dagster's own answer says so, too."""
    run = instance.get_run_by_id(run_id)
    going_on = run is not None and run.status == DagsterRunStatus.STARTED
    return going_on and instance.run_will_resume(run_id)


class StepfleetExecutor(StepDelegatingExecutor):
    """Dagster's step-delegating executor, driven by completions instead of a clock."""

    def __init__(
        self,
        step_handler: StepfleetStepHandler,
        *,
        shared_filesystem: bool = False,
        **kwargs: Any,
    ) -> None:
        self._handler = step_handler
        self._warned_retries_disabled = False
        self._shared_filesystem = shared_filesystem
        super().__init__(step_handler, should_verify_step=False, **kwargs)

    @property
    def _sleep_seconds(self) -> float:
        """Read by the loop once a pass, where a stock executor sleeps."""
        try:
            self._handler.flush()
            self._handler.wait()
        except Interrupted:
            # The loop's next pass sees the interrupt that ended the wait.
            pass
        except Superseded as err:
            leave_process(err)
            raise
        return 0.0

    @_sleep_seconds.setter
    def _sleep_seconds(self, value: float) -> None:
        """The base class sets it; the wait is ours."""

    @property
    def _check_step_health_interval_seconds(self) -> int:
        return 0 if self._handler.verdict_waits() else HEALTH_INTERVAL_SECONDS

    @_check_step_health_interval_seconds.setter
    def _check_step_health_interval_seconds(self, value: int) -> None:
        """The base class sets it; verdicts are due when they arrive."""

    def _pop_events(
        self, instance: DagsterInstance, run_id: str, seen_storage_ids: set[int]
    ) -> Sequence[DagsterEvent]:
        try:
            return self._handler.pop(instance, run_id, seen_storage_ids)
        except Superseded as err:
            leave_process(err)
            raise

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Generator[DagsterEvent, Any, None]:
        instance = plan_context.instance
        restore = storage.pool(instance)
        storage.wait_out_outages()
        gate = VerdictGate(instance, plan_context.run_id, execution_plan.known_state)
        try:
            self._handler.begin(plan_context, gate)
            yield from self._speak(plan_context, execution_plan)
            self._fail_for_resources()
        except Superseded as err:
            raise leave_run(plan_context, err) from err
        finally:
            gate.close()
            restore()

    def _speak(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Generator[DagsterEvent, Any, None]:
        """Runs Dagster's loop, and ends the run in the ledger however it ends."""
        handler = self._handler
        reason: str | None = "the run worker's executor was left before its steps had ended"
        leaving = False
        budget_seconds = GOODBYE_BUDGET_SECONDS
        try:
            self._check_io(plan_context, execution_plan)
            yield from self._loop(plan_context, execution_plan)
            handler.await_processes()
            reason = None
        except Superseded:
            leaving = True
            raise
        except (DagsterExecutionInterruptedError, KeyboardInterrupt, GeneratorExit):
            reason = "the run was interrupted"
            leaving = _will_resume(plan_context.instance, plan_context.run_id)
            raise
        except Exception as err:
            if isinstance(err, ServerUnreachable):
                leaving = handler.place.replaced
                handler.place.conclude(err)
                budget_seconds = 0.0  # the outage has had its budget: one last try
            reason = f"the run worker's executor failed: {type(err).__name__}"
            raise
        finally:
            handler.end(reason=reason, leaving=leaving, budget_seconds=budget_seconds)

    def _fail_for_resources(self) -> None:
        """Fails a run in which a step could not make its resources, as multiprocess does: also when
        a retry of the step has worked. There the step's process raises, and the run worker raises
        at its end what processes have raised."""
        errors = self._handler.resource_errors
        if errors:
            texts = "\n".join(error.to_string() for error in errors)
            raise DagsterSubprocessError(
                f"Steps could not make their resources:\n{texts}", subprocess_error_infos=errors
            )

    def _loop(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        if not plan_context.resume_from_failure:
            return super().execute(plan_context, execution_plan)
        loop = seams.loop_with(resume.replaying(self._handler.inherit))
        return loop(self, plan_context, execution_plan)

    def _check_io(self, plan_context: PlanOrchestrationContext, plan: ExecutionPlan) -> None:
        """Refuses a run whose values would be looked for on the wrong host. Not one that is
        resumed: it has steps under way, which a refusal would end."""
        client = self._handler.client
        if client is None or self._shared_filesystem or plan_context.resume_from_failure:
            return
        # The loop's first pass sees an interrupt, before it launches anything.
        with contextlib.suppress(Interrupted):
            iocheck.refuse_unshared(plan_context, plan, client, self._handler.defaults)

    def log_failure_or_retry_event_after_error(
        self,
        step_context: IStepContext,
        err_info: SerializableErrorInfo,
        known_state: KnownExecutionState,
    ) -> DagsterEvent:
        """Writes the event that ends a step whose process did not: failure or retry."""
        handler = self._handler
        handler.nudged = True
        key = step_context.step.key
        with handler.writing_end(key):
            return self._log_end(step_context, err_info, known_state)

    def _log_end(
        self,
        step_context: IStepContext,
        err_info: SerializableErrorInfo,
        known_state: KnownExecutionState,
    ) -> DagsterEvent:
        ended = self._handler.verdict(step_context.step.key)
        if ended is not None and ended.state in _STATES_WITHOUT_RETRY:
            return _failure(step_context, err_info)
        if ended is not None and ended.state == "lost":
            retry = self._lost_step_retry(step_context, err_info, known_state)
            if retry is not None:
                return retry
        stock: Any = getattr(Executor, seams.crash_helper_name())
        return stock(self, step_context, err_info, known_state)

    # The names the loop has called it by in other versions.
    get_failure_or_retry_event_after_crash = log_failure_or_retry_event_after_error
    get_failure_or_retry_event_after_error = log_failure_or_retry_event_after_error

    def _lost_step_retry(
        self,
        step_context: IStepContext,
        err_info: SerializableErrorInfo,
        known_state: KnownExecutionState,
    ) -> DagsterEvent | None:
        """Returns a retry that `lost_step_retries` grants, None where Dagster decides alone."""
        key = step_context.step.key
        allowed = self._handler.open[key].placement.lost_step_retries
        client = self._handler.client
        if allowed <= 0 or client is None:
            return None
        if step_context.retry_mode.disabled:
            if not self._warned_retries_disabled:
                self._warned_retries_disabled = True
                DagsterEvent.engine_event(
                    step_context,
                    "lost_step_retries is ignored: retries are disabled in the executor's config.",
                    EngineEventData(),
                )
            return None
        policy = step_context.op_retry_policy
        by_policy = policy.max_retries if policy else 0
        attempt = known_state.get_retry_state().get_attempt_count(key)
        if attempt < by_policy:
            return None  # the op's own policy retries, with its own delay
        granted = _granted(client.completions.lost_attempts(key), by_policy, attempt)
        if granted >= allowed:
            return None
        DagsterEvent.engine_event(
            step_context,
            f"Attempt {attempt} of step {key} was lost with its worker; "
            f"lost_step_retries grants new attempt {granted + 1} of {allowed}.",
            EngineEventData(),
        )
        return DagsterEvent.step_retry_event(step_context, StepRetryData(error=err_info))


def _granted(lost: set[int], by_policy: int, attempt: int) -> int:
    """How many attempts up to this one `lost_step_retries` has granted.

    The policy retries a lost attempt while fewer than `by_policy` retries, of whatever kind, came
    before it. So each later one that the ledger has lost, and that another has followed, had a
    grant: a run worker that resumes the run counts the same.
    """
    return sum(1 for earlier in lost if by_policy <= earlier < attempt)


def _failure(step_context: IStepContext, err_info: SerializableErrorInfo) -> DagsterEvent:
    return DagsterEvent.step_failure_event(
        step_context=step_context,
        step_failure_data=StepFailureData(error=err_info, user_failure_data=None),
    )


CONFIG_SCHEMA: dict[str, Any] = {
    "retries": get_retries_config(),
    "max_concurrent": Field(
        Noneable(IntSource),
        default_value=None,
        description="The most steps of one run that may be in flight. Default: no limit; the "
        "queue's slots are the limit then.",
    ),
    "tag_concurrency_limits": get_tag_concurrency_limits_config(),
    "step_dependency_config": get_step_dependency_config_field(),
    "lost_step_retries": Field(
        IntSource,
        default_value=0,
        description="How many new attempts a step gets when an attempt had begun and was lost with "
        "its worker, beyond the op's RetryPolicy. Effects outside happen again: use the "
        f"idempotency key. The tag {tags.LOST_STEP_RETRIES_TAG} goes before it.",
    ),
    "step_timeout_seconds": Field(
        Noneable(IntSource),
        default_value=None,
        description="How long an attempt of a step may run, from when its code begins, before it "
        "is ended as failed; the op's RetryPolicy then applies. Default: as long as it takes. The "
        f"tag {tags.TIMEOUT_TAG} goes before it.",
    ),
    "queue": Field(
        StringSource,
        default_value=tags.DEFAULT_QUEUE,
        description=f"The queue for steps without the tag {tags.QUEUE_TAG}.",
    ),
    "priority": Field(
        IntSource,
        default_value=0,
        description="The priority of steps where neither op nor run has a tag for it; higher is "
        f"first. The tag {tags.DAGSTER_PRIORITY_TAG} of an op is added.",
    ),
    "shared_filesystem": Field(
        BoolSource,
        default_value=False,
        description="The directory of Dagster's filesystem IO manager is one shared mount on all "
        "hosts. Without it, a run that would look for a value on another host's disk is refused.",
    ),
    "server_url": Field(
        StringSource,
        is_required=False,
        description=f"The stepfleet server. Default: STEPFLEET_URL, or {DEFAULT_URL}.",
    ),
    "outage_budget_seconds": Field(
        IntSource,
        default_value=300,
        description="How long a run waits for a server that cannot be reached before it fails.",
    ),
}


@executor(
    name="stepfleet",
    config_schema=CONFIG_SCHEMA,
    requirements=multiple_process_executor_requirements(),
)
def stepfleet_executor(init_context: InitExecutorContext) -> Executor:
    """Runs each step on stepfleet's workers.

    Works with any run launcher. The token comes from STEPFLEET_TOKEN, or from the file that
    STEPFLEET_TOKEN_FILE names, in the run worker's environment.
    """
    config = cast("dict[str, Any]", init_context.executor_config)
    retries = RetryMode.from_config(config["retries"]) or RetryMode.ENABLED
    handler = StepfleetStepHandler(
        server_url=config.get("server_url"),
        outage_budget_seconds=float(config["outage_budget_seconds"]),
        defaults=tags.Defaults(
            queue=config["queue"],
            priority=config["priority"],
            lost_step_retries=config["lost_step_retries"],
            timeout_seconds=config.get("step_timeout_seconds") or 0,
        ),
    )
    return StepfleetExecutor(
        handler,
        shared_filesystem=config["shared_filesystem"],
        retries=retries,
        max_concurrent=config.get("max_concurrent"),
        tag_concurrency_limits=config.get("tag_concurrency_limits"),
        step_dependency_config=StepDependencyConfig.from_config(
            config.get("step_dependency_config")
        ),
    )


__all__ = [
    "CONFIG_SCHEMA",
    "StepfleetExecutor",
    "StepfleetStepHandler",
    "stepfleet_executor",
]
