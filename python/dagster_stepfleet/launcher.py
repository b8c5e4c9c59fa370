"""The run launcher: makes the run worker a task too, with a queue and slots of its own.

A run worker's task has the key (run id, "@run", resume attempt), so that a launch that is repeated,
by a daemon that retries or by two daemons at once, starts one run worker. A worker that serves the
queue forks it from a warm process. Everything Dagster asks about it is answered from the ledger,
through the server; while the server is away a run worker counts as running, because it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster import DagsterInstance, DagsterRun, Field, IntSource, StringSource
from dagster._core.events import EngineEventData
from dagster._core.launcher import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import ConfigurableClass, serialize_value

from dagster_stepfleet import storage, tags, unlaunched
from dagster_stepfleet.client import (
    DEFAULT_URL,
    PROTOCOL_VERSION,
    TERMINAL_STATES,
    Client,
    Ended,
    ServerRefused,
    ServerUnreachable,
    StepfleetError,
    never,
    read_token,
)
from dagster_stepfleet.identity import RUN_STEP_KEY, run_identity

if TYPE_CHECKING:
    from dagster._config.config_schema import UserConfigSchema
    from dagster._serdes.config_class import ConfigurableClassData
    from typing_extensions import Self

seams.verify(seams.LAUNCHER_CHECKS)

_log = logging.getLogger("dagster.stepfleet")

DEFAULT_RUN_QUEUE = "runs"
RUN_QUEUE_TAG = "stepfleet/run_queue"
# Dagster fails a run that has not begun 180 s after its launch. A launch that gives up before can
# still say why.
LAUNCH_BUDGET_SECONDS = 120
# People wait for the answer of a cancel, and Dagster cancels the run by itself when it fails.
_TERMINATE_BUDGET_SECONDS = 15.0
# Dagster asks again in its next round.
_RESUME_BUDGET_SECONDS = 10.0
# Run monitoring asks for one run after the other: a server that hangs must not stop it, so after
# one call without an answer the next runs are not asked for.
_HEALTH_TIMEOUT_SECONDS = 3.0
_AWAY_SECONDS = 5.0

_Task = Mapping[str, Any]


class StepfleetRunLauncher(RunLauncher[DagsterInstance], ConfigurableClass):
    """Starts each run in a warm process of a stepfleet worker.

    The token comes from STEPFLEET_TOKEN, or from the file that STEPFLEET_TOKEN_FILE names, in the
    environment of Dagster's daemon and webserver.
    """

    def __init__(
        self,
        inst_data: ConfigurableClassData | None = None,
        *,
        server_url: str | None = None,
        queue: str = DEFAULT_RUN_QUEUE,
        launch_budget_seconds: float = LAUNCH_BUDGET_SECONDS,
    ) -> None:
        self._inst_data = inst_data
        self._server_url = server_url or os.environ.get("STEPFLEET_URL") or DEFAULT_URL
        self._queue = queue
        self._launch_budget_seconds = launch_budget_seconds
        self._away_until = 0.0
        self._lookout: unlaunched.Lookout | None = None
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        return CONFIG_SCHEMA

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        return cls(
            inst_data,
            server_url=config_value.get("server_url"),
            queue=config_value["queue"],
            launch_budget_seconds=float(config_value["launch_budget_seconds"]),
        )

    def register_instance(self, instance: DagsterInstance) -> None:
        super().register_instance(instance)
        try:
            storage.outlast_launches(instance)
        except Exception as err:
            _log.warning("stepfleet leaves Dagster's storage as it is: %s", err)
        if unlaunched.launches_runs(instance):
            budget = self._launch_budget_seconds
            self._lookout = unlaunched.Lookout(instance, self._launch, budget)
            self._lookout.start()

    def dispose(self) -> None:
        if self._lookout is not None:
            self._lookout.stop()
        super().dispose()

    # Launch and resume.

    def launch_run(self, context: LaunchRunContext) -> None:
        self._launch(context.dagster_run, self._launch_budget_seconds)

    def _launch(
        self, run: DagsterRun, budget_seconds: float, interrupted: Callable[[], bool] = never
    ) -> None:
        args = ExecuteRunArgs(
            job_origin=_origin(run),
            run_id=run.run_id,
            instance_ref=self._instance.get_ref(),
            set_exit_code_on_failure=True,
        )
        receipt = self._submit(run, 0, serialize_value(args), budget_seconds, interrupted)
        if receipt is None or not receipt.get("known"):
            return
        if receipt.get("state") in TERMINAL_STATES and not self._is_over(run.run_id):
            raise StepfleetError(
                f"The run worker of run {run.run_id} was launched before and has ended as "
                f"{receipt.get('state')}; a run is launched once. Re-execute it as a new run."
            )
        _log.info("run %s was launched before, as task %s", run.run_id, receipt.get("task_id"))

    @property
    def supports_resume_run(self) -> bool:
        return True

    def resume_run(self, context: ResumeRunContext) -> None:
        """Submits a new run worker. An outage is no reason to fail the run: Dagster's monitoring
        finds the old run worker ended in its next round, and resumes again."""
        run = context.dagster_run
        args = ResumeRunArgs(
            job_origin=_origin(run),
            run_id=run.run_id,
            instance_ref=self._instance.get_ref(),
            set_exit_code_on_failure=True,
        )
        attempt = context.resume_attempt_number or 1
        try:
            self._submit(run, attempt, serialize_value(args), _RESUME_BUDGET_SECONDS)
        except ServerUnreachable as err:
            self._report(run, f"Resume attempt {attempt} was not submitted: {err}")

    def _submit(
        self,
        run: DagsterRun,
        attempt: int,
        payload: str,
        budget_seconds: float,
        interrupted: Callable[[], bool] = never,
    ) -> _Task | None:
        """Submits the run worker and returns its receipt; None when the run is over."""
        digest = hashlib.sha256(payload.encode()).hexdigest()
        task = self._task(run, attempt, digest)
        identity = run_identity(_origin(run), run.job_snapshot_id)
        why_dead = ""
        try:
            with self._client(run.run_id, budget_seconds, interrupted=interrupted) as client:
                (receipt,) = client.submit(identity, {digest: payload}, [task], as_executor=False)
                if receipt.get("state") == "dead":
                    why_dead = _why_dead(client, attempt, receipt)
        except ServerRefused as err:
            if err.code == "run_closed" and self._is_over(run.run_id):
                return None
            raise
        error = receipt.get("error")
        if error:
            raise StepfleetError(
                f"The stepfleet server at {self._server_url} takes no run worker for queue "
                f"{task['queue']}: {error.get('message')} [{error.get('code')}]. The queue is set "
                f"in the run launcher's config and by the run's tag {RUN_QUEUE_TAG}."
            )
        if why_dead:
            self._report(
                run,
                f"Run worker of resume {attempt} was refused and will not start: {why_dead}. The "
                "run's workers die with it, most often for want of memory: give those that serve "
                f"queue {task['queue']} more, and re-execute the run as a new one.",
            )
        elif not receipt.get("known"):
            self._report(
                run,
                f"Run worker submitted to queue {task['queue']} as task {receipt.get('task_id')}.",
            )
        return receipt

    def _task(self, run: DagsterRun, attempt: int, payload: str) -> dict[str, Any]:
        placement = tags.place({}, run.tags, tags.Defaults())
        for warning in placement.warnings:
            _log.warning("run %s: %s", run.run_id, warning)
        return {
            "v": PROTOCOL_VERSION,
            "kind": "run",
            "run_id": run.run_id,
            "step_key": RUN_STEP_KEY,
            "attempt": attempt,
            "op": "",
            "job": run.job_name,
            "idempotency_key": f"{run.run_id}/{RUN_STEP_KEY}",
            "queue": run.tags.get(RUN_QUEUE_TAG, self._queue).strip(),
            "priority": placement.priority,
            "code_location": run.remote_job_origin.location_name if run.remote_job_origin else "",
            "payload": payload,
            "retry_budget": {
                "policy_retries": 0,
                "lost_step_retries": tags.cut_retries(self._resumes() - attempt),
            },
        }

    def _resumes(self) -> int:
        """How many new run workers run monitoring gives a run."""
        instance = self._instance
        if not instance.run_monitoring_enabled:
            return 0
        return instance.run_monitoring_max_resume_run_attempts

    # Termination.

    def terminate(self, run_id: str) -> bool:
        """Cancels the run worker. When there is none that could end the run, ends it here. One that
        is cancelled and cannot end it either is the server's business: nobody waits here for it."""
        instance = self._instance
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        instance.report_run_canceling(run)
        try:
            with self._client(run_id, _TERMINATE_BUDGET_SECONDS) as client:
                if self._cancel(client):
                    return True
                client.close_run("the run was canceled and has no run worker")
        except StepfleetError as err:
            self._report(run, f"The run worker could not be told to stop: {err}")
            raise
        if not self._is_finished(run_id):
            instance.report_run_canceled(run, "The run was canceled before its run worker began.")
        return True

    def _cancel(self, client: Client) -> bool:
        """Cancels the run's run workers. Returns whether one runs and will end the run."""
        waiting = [task for task in _run_workers(client) if task["state"] not in TERMINAL_STATES]
        if not waiting:
            return False
        keys = [(RUN_STEP_KEY, int(task["attempt"])) for task in waiting]
        client.cancel(keys, "the run was canceled in Dagster")
        return any(task["state"] not in TERMINAL_STATES for task in _run_workers(client))

    # Health.

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        if time.monotonic() < self._away_until:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "the stepfleet server is away")
        try:
            with self._client(run.run_id, 0.0, _HEALTH_TIMEOUT_SECONDS) as client:
                tasks = _run_workers(client)
        except StepfleetError as err:
            # Run workers live without the server, so that it does not answer says nothing of them.
            _log.warning("the run worker of run %s counts as running: %s", run.run_id, err)
            self._away_until = time.monotonic() + _AWAY_SECONDS
            return CheckRunHealthResult(WorkerStatus.RUNNING, str(err))
        if not tasks:
            return CheckRunHealthResult(
                WorkerStatus.NOT_FOUND, "the ledger has no run worker of this run"
            )
        # Two daemons may resume a run at once, and then any of the run workers may have won it.
        last = next((task for task in tasks if task["state"] not in TERMINAL_STATES), tasks[-1])
        worker_id = str(last["task_id"])
        if last["state"] not in TERMINAL_STATES:
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=worker_id)
        if last["state"] == "succeeded":
            return CheckRunHealthResult(WorkerStatus.SUCCESS, run_worker_id=worker_id)
        message = Ended.of(last).describe()
        return CheckRunHealthResult(WorkerStatus.FAILED, message, run_worker_id=worker_id)

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """Tells the story of the run's run workers, for the message of a run that did not begin."""
        try:
            with self._client(run.run_id, 0.0, _HEALTH_TIMEOUT_SECONDS) as client:
                tasks = _run_workers(client)
        except StepfleetError as err:
            return str(err)
        if not tasks:
            return "The stepfleet ledger has no run worker of this run."
        return "\n".join(_story(task) for task in tasks)

    # Helpers.

    def _client(
        self,
        run_id: str,
        budget_seconds: float,
        call_timeout_seconds: float | None = None,
        interrupted: Callable[[], bool] = never,
    ) -> Client:
        return Client(
            self._server_url,
            run_id,
            token=read_token(),
            outage_budget_seconds=budget_seconds,
            call_timeout_seconds=call_timeout_seconds,
            interrupted=interrupted,
        )

    def _report(self, run: DagsterRun, message: str) -> None:
        """Writes it to the run's log. That it cannot be written is no reason to fail the run."""
        try:
            self._instance.report_engine_event(message, run, EngineEventData(), cls=self.__class__)
        except Exception as err:
            _log.warning("run %s: %s It is not in the run's log: %s", run.run_id, message, err)

    def _is_finished(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        return run is None or run.is_finished

    def _is_over(self, run_id: str) -> bool:
        """Whether nobody waits for the run any more."""
        run = self._instance.get_run_by_id(run_id)
        return run is None or run.is_finished or run.status.value == "CANCELING"


def _origin(run: DagsterRun) -> Any:
    if run.job_code_origin is None:
        raise StepfleetError(
            f"Run {run.run_id} does not say where its code is (job_code_origin), so no run worker "
            "can load it. Launch it from a code location."
        )
    return run.job_code_origin


def _run_workers(client: Client) -> list[dict[str, Any]]:
    """Returns the tasks of the run's run workers, the latest last."""
    # A server of before the filter answers with all, and a step is no run worker.
    tasks = [task for task in client.tasks("run") if task.get("kind") == "run"]
    return sorted(tasks, key=lambda task: int(task["attempt"]))


def _why_dead(client: Client, attempt: int, receipt: _Task) -> str:
    """Says why the ledger takes no more run workers of the run, as far as the server can tell."""
    found: list[_Task] = []
    try:
        found = [task for task in _run_workers(client) if task["attempt"] == attempt]
    except StepfleetError as err:
        _log.warning("run %s: why its run worker is dead: %s", client.run_id, err)
    if found:
        return Ended.of(found[0]).describe()
    return f"stepfleet task {receipt.get('task_id')} is dead"


def _story(task: _Task) -> str:
    name = "Run worker" if task["attempt"] == 0 else f"Run worker of resume {task['attempt']}"
    start = f"{name}, stepfleet task {task['task_id']} in queue {task['queue']}"
    if task["state"] == "queued":
        return (
            f"{start}, waits since {task['submitted_at']} for a free slot. Workers have slots of "
            f"this queue when they are started with --queue {task['queue']}:N."
        )
    if task["state"] in TERMINAL_STATES:
        return f"{name}: {Ended.of(task).describe()}"
    since = task.get("started_at") or task.get("claimed_at")
    return f"{start}, is {task['state']} on worker {task.get('worker')} since {since}"


CONFIG_SCHEMA: dict[str, Any] = {
    "server_url": Field(
        StringSource,
        is_required=False,
        description=f"The stepfleet server. Default: STEPFLEET_URL, or {DEFAULT_URL}.",
    ),
    "queue": Field(
        StringSource,
        default_value=DEFAULT_RUN_QUEUE,
        description="The queue for run workers: runs, or a name that begins with runs-. Workers "
        f"serve it with --queue runs:N. The run's tag {RUN_QUEUE_TAG} goes before it.",
    ),
    "launch_budget_seconds": Field(
        IntSource,
        default_value=LAUNCH_BUDGET_SECONDS,
        description="How long a launch waits for a server that cannot be reached before the run "
        "fails. Keep it below run monitoring's start_timeout_seconds.",
    ),
}


__all__ = ["CONFIG_SCHEMA", "StepfleetRunLauncher"]
