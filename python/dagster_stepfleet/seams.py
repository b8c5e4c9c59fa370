"""Every private seam of Dagster that stepfleet uses, named in one place.

Dagster does not promise these. Each is checked by `inspect` when the module that needs it is
imported: an unsupported version fails there, with the name of the seam, and not in a run.

Three kinds. NAMES are imported from private modules; this module looks for all of them when it is
imported, so a module that imports some imports this one first. SHAPES are the parameters and
attributes that we rely on without changing how Dagster uses them. The `check_` functions hold
what we put in Dagster's way, where a drift would be felt in a run.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from types import FunctionType
from typing import Any

SUPPORTED = "dagster >= 1.11.10, tested up to 1.13"

# Module -> what is imported from it. `dagster._cli` is slow to import, and only step processes need
# it: what we use of it is in functions below.
NAMES: dict[str, tuple[str, ...]] = {
    "dagster._core.code_pointer": ("CodePointer", "FileCodePointer"),
    "dagster._core.definitions.definitions_load_context": ("DefinitionsLoadContext",),
    "dagster._core.definitions.reconstruct": ("ReconstructableJob", "ReconstructableRepository"),
    "dagster._core.errors": ("DagsterExecutionInterruptedError", "DagsterSubprocessError"),
    "dagster._core.event_api": ("EventLogCursor",),
    "dagster._core.events": (
        "ASSET_CHECK_EVENTS",
        "ASSET_EVENTS",
        "DagsterEventType",
        "EngineEventData",
    ),
    "dagster._core.events.log": ("EventLogEntry",),
    "dagster._core.execution.api": ("create_execution_plan",),
    "dagster._core.execution.plan.active": ("ActiveExecution",),
    "dagster._core.execution.plan.objects": ("StepFailureData", "StepRetryData"),
    "dagster._core.execution.plan.plan": ("ExecutionPlan",),
    "dagster._core.execution.plan.state": ("KnownExecutionState",),
    "dagster._core.execution.retries": ("RetryMode", "get_retries_config"),
    "dagster._core.execution.step_dependency_config": (
        "StepDependencyConfig",
        "get_step_dependency_config_field",
    ),
    "dagster._core.execution.tags": ("get_tag_concurrency_limits_config",),
    "dagster._core.executor.base": ("Executor",),
    "dagster._core.executor.step_delegating.step_delegating_executor": ("StepDelegatingExecutor",),
    "dagster._core.executor.step_delegating.step_handler.base": (
        "CheckStepHealthResult",
        "StepHandler",
        "StepHandlerContext",
    ),
    "dagster._core.instance": ("InstanceRef",),
    "dagster._core.launcher": (
        "CheckRunHealthResult",
        "LaunchRunContext",
        "ResumeRunContext",
        "RunLauncher",
        "WorkerStatus",
    ),
    "dagster._core.storage.base_storage": ("DagsterStorage",),
    "dagster._core.storage.cloud_storage_compute_log_manager": ("CloudStorageComputeLogManager",),
    "dagster._core.storage.compute_log_manager": (
        "CapturedLogContext",
        "ComputeIOType",
        "ComputeLogManager",
    ),
    "dagster._core.storage.event_log": ("SqlEventLogStorage", "SqlEventLogStorageTable"),
    "dagster._core.storage.event_log.base": ("EventLogStorage",),
    "dagster._core.storage.local_compute_log_manager": (
        "IO_TYPE_EXTENSION",
        "LocalComputeLogManager",
    ),
    "dagster._core.storage.sql": ("create_engine",),
    "dagster._core.system_config.objects": ("ResolvedRunConfig",),
    "dagster._core.workspace.autodiscovery": (
        "loadable_targets_from_python_file",
        "loadable_targets_from_python_module",
    ),
    "dagster._grpc.types": ("ExecuteRunArgs", "ExecuteStepArgs", "ResumeRunArgs"),
    "dagster._serdes": (
        "ConfigurableClass",
        "ConfigurableClassData",
        "deserialize_value",
        "serialize_value",
    ),
    "dagster._utils": ("interrupts",),
    "dagster._utils.error": ("serializable_error_info_from_exc_info",),
    "dagster._utils.interrupts": ("capture_interrupts", "check_captured_interrupt"),
}

# Dagster's way to write a failure or a retry for a step whose process is gone has had three names.
CRASH_HELPERS = (
    "log_failure_or_retry_event_after_error",
    "get_failure_or_retry_event_after_crash",
    "get_failure_or_retry_event_after_error",
)


# What Dagster's daemon writes to a run's log before it launches another run worker for it; also how
# it counts them. Importing it would load the daemon.
RESUME_MESSAGE = "Launching a new run worker to resume run"

# Dagster's programs that launch runs, as scripts and as packages of `python -m`, and the variable
# that stands for a webserver's --read-only.
DAEMONS = ("dagster-daemon", "_daemon")
WEBSERVERS = ("dagster-webserver", "dagster_webserver", "dagit")
READ_ONLY_VARIABLE = "DAGSTER_WEBSERVER_READ_ONLY"


class SeamError(ImportError):
    """A private part of Dagster is not what this version of stepfleet was written for."""

    def __init__(self, seam: str, found: str) -> None:
        super().__init__(
            f"dagster_stepfleet cannot work with the installed dagster {dagster_version()}: "
            f"{seam} has changed ({found}). Supported: {SUPPORTED}. "
            "Install a supported dagster, or a newer dagster-stepfleet."
        )
        self.seam = seam


def dagster_version() -> str:
    try:
        return metadata.version("dagster")
    except metadata.PackageNotFoundError:
        return "(unknown version)"


def _find(path: str) -> Any:
    """Returns what `module:Owner.name` names."""
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as err:
        raise SeamError(f"{module}.{name}", f"it is not there: {err}") from err
    return found


def check_names() -> None:
    for module, names in NAMES.items():
        for name in names:
            _find(f"{module}:{name}")


check_names()

# Only now: whatever is missing has been said.
from dagster._core.executor.base import Executor  # noqa: E402
from dagster._core.executor.step_delegating.step_delegating_executor import (  # noqa: E402
    StepDelegatingExecutor,
)
from dagster._core.executor.step_delegating.step_handler.base import StepHandler  # noqa: E402


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def expect_parameters(seam: str, function: Any, expected: list[str]) -> None:
    if function is None:
        raise SeamError(seam, "it is gone")
    found = parameters(function)
    if found[: len(expected)] != expected:
        raise SeamError(seam, f"parameters are {found}, expected {expected}")


def expect_attributes(seam: str, owner: Any, names: list[str]) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise SeamError(seam, f"it has no {', '.join(missing)}")


@dataclass(frozen=True)
class Shape:
    """What a class or function must have: parameters among its own, attributes."""

    path: str
    takes: tuple[str, ...] = ()
    has: tuple[str, ...] = ()

    def check(self) -> None:
        found = _find(self.path)
        seam = self.path.replace(":", ".")
        if self.takes:
            missing = [name for name in self.takes if name not in parameters(found)]
            if missing:
                raise SeamError(seam, f"it takes no {', '.join(missing)}")
        expect_attributes(seam, found, list(self.has))


SHAPES = (
    Shape("dagster:DagsterEvent.engine_event", ("plan_context", "message", "event_specific_data")),
    Shape("dagster:DagsterEvent.step_failure_event", ("step_context", "step_failure_data")),
    Shape("dagster:DagsterEvent.step_retry_event", ("step_context", "step_retry_data")),
    Shape(
        "dagster:DagsterEvent",
        has=(
            "engine_event_data",
            "event_specific_data",
            "event_type",
            "event_type_value",
            "is_successful_output",
            "step_key",
            "step_output_data",
            "step_retry_data",
        ),
    ),
    Shape(
        "dagster:DagsterInstance.get_records_for_run",
        ("run_id", "cursor", "of_type", "limit", "ascending"),
    ),
    Shape("dagster:DagsterInstance.run_will_resume", ("run_id",)),
    Shape(
        "dagster:DagsterInstance",
        has=("compute_log_manager", "event_log_storage", "run_storage", "schedule_storage"),
    ),
    Shape("dagster:OpExecutionContext", has=("get", "get_step_execution_context", "retry_number")),
    Shape("dagster:DagsterRun", has=("job_code_origin", "job_snapshot_id", "remote_job_origin")),
    Shape(
        "dagster._core.events:DagsterEventType",
        has=(
            "RESOURCE_INIT_FAILURE",
            "STEP_FAILURE",
            "STEP_OUTPUT",
            "STEP_SKIPPED",
            "STEP_SUCCESS",
            "STEP_UP_FOR_RETRY",
        ),
    ),
    Shape(
        "dagster._core.storage.event_log.base:EventLogStorage",
        has=("free_concurrency_slot_for_step", "supports_global_concurrency_limits"),
    ),
    Shape("dagster._core.event_api:EventLogCursor", has=("from_storage_id", "to_string")),
    Shape(
        "dagster._core.execution.context.system:IStepContext",
        has=("op_retry_policy", "retry_mode", "step"),
    ),
    Shape(
        "dagster._core.execution.context.system:PlanOrchestrationContext",
        has=("dagster_run", "instance", "reconstructable_job", "run_id"),
    ),
    Shape("dagster._core.execution.plan.objects:StepFailureData", ("error", "user_failure_data")),
    Shape("dagster._core.execution.plan.objects:StepRetryData", ("error", "seconds_to_wait")),
    Shape(
        "dagster._core.execution.plan.state:KnownExecutionState",
        ("previous_retry_attempts", "ready_outputs"),
        ("get_retry_state",),
    ),
    Shape("dagster._core.execution.retries:RetryState.get_attempt_count", ("key",)),
    Shape(
        "dagster._core.execution.retries:RetryMode",
        has=("DEFERRED", "DISABLED", "ENABLED", "disabled", "from_config"),
    ),
    Shape(
        "dagster._core.execution.step_dependency_config:StepDependencyConfig.from_config",
        ("config_value",),
    ),
    Shape(
        "dagster._core.executor.step_delegating.step_handler.base:StepHandlerContext",
        has=("dagster_run", "execute_step_args", "get_step_context", "step_tags"),
    ),
    Shape(
        "dagster._core.executor.step_delegating.step_handler.base:CheckStepHealthResult",
        has=("healthy", "unhealthy"),
    ),
    Shape("dagster._core.code_pointer:CodePointer.from_module", ("module_name", "definition")),
    Shape("dagster._core.code_pointer:CodePointer.from_python_file", ("python_file", "definition")),
    Shape(
        "dagster._core.workspace.autodiscovery:LoadableTarget", ("attribute", "target_definition")
    ),
    Shape(
        "dagster._core.storage.local_compute_log_manager:LocalComputeLogManager",
        has=("capture_logs", "complete_artifact_path", "get_captured_local_path"),
    ),
)


def check_shapes() -> None:
    for shape in SHAPES:
        shape.check()


def crash_helper_name() -> str:
    for name in CRASH_HELPERS:
        if hasattr(Executor, name):
            return name
    raise SeamError("Executor's crash-retry helper", f"none of {', '.join(CRASH_HELPERS)} exists")


def resource_init_failure_ends_step() -> bool:
    """Before 1.12 the loop took RESOURCE_INIT_FAILURE as the end of a step. Since then it writes a
    failure or a retry of its own after it, and that ends the step."""
    return "elif dagster_event.is_resource_init_failure" not in inspect.getsource(
        StepDelegatingExecutor.execute
    )


def loop_with(active_execution: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    """Returns the executor's loop with another bookkeeping in ActiveExecution's place."""
    stock = StepDelegatingExecutor.execute
    return FunctionType(
        stock.__code__,
        {**stock.__globals__, "ActiveExecution": active_execution},
        stock.__name__,
        stock.__defaults__,
        stock.__closure__,
    )


def pool_of(step: Any) -> str | None:
    """Returns the concurrency pool of a step."""
    from dagster._core.execution.plan import active

    return getattr(active, "_pool_key_for_step")(step)  # noqa: B009


def free_slot(context: Any, step_key: str) -> None:
    """Gives back the step's slot in its pool, or its place in the line for one."""
    instance, run_id = context._instance, context._run_id
    instance.event_log_storage.free_concurrency_slot_for_step(run_id, step_key)
    context._claims.discard(step_key)
    context._pending_claims.discard(step_key)


def inner_storage(storage: Any, attribute: str) -> Any:
    """Returns the storage behind Dagster's wrapper for `storage:` in dagster.yaml.

    The wrapper (LegacyEventLogStorage, LegacyRunStorage) keeps one DagsterStorage in _storage and
    forwards every call to its `event_log_storage` or `run_storage`.
    """
    from dagster._core.storage.base_storage import DagsterStorage

    inner = getattr(storage, "_storage", None)
    return getattr(inner, attribute) if isinstance(inner, DagsterStorage) else storage


def step_body() -> Callable[..., Iterator[Any]]:
    """Dagster's own body of `dagster api execute_step`."""
    from dagster._cli import api

    return getattr(api, "_execute_step_command_body")  # noqa: B009


def instance_for_cli(instance_ref: Any) -> AbstractContextManager[Any]:
    """The instance as Dagster's own processes make it, from the reference in their arguments."""
    from dagster._cli.utils import get_instance_for_cli

    return get_instance_for_cli(instance_ref=instance_ref)


def join_threads() -> None:
    """Waits for the threads of this process that are no daemons, pools of them included.

    It is what Python does before a process exits, and multiprocessing before a child of it does. It
    says to concurrent.futures that nothing more will come, so that idle threads of a pool end.
    """
    getattr(threading, "_shutdown")()  # noqa: B009


def run_body(*, resume: bool) -> Callable[..., int]:
    """Dagster's own body of `dagster api execute_run`, or of `resume_run`."""
    from dagster._cli import api

    return getattr(api, "_resume_run_command_body" if resume else "_execute_run_command_body")


def reset_load_context() -> None:
    """Forgets that definitions were loaded in this process, so that a step starts afresh."""
    from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext

    setattr(DefinitionsLoadContext, "_instance", None)  # noqa: B010


def check_constructor() -> None:
    wanted = {
        "step_handler",
        "retries",
        "sleep_seconds",
        "check_step_health_interval_seconds",
        "max_concurrent",
        "tag_concurrency_limits",
        "should_verify_step",
        "step_dependency_config",
    }
    missing = wanted - set(parameters(StepDelegatingExecutor.__init__))
    if missing:
        raise SeamError("StepDelegatingExecutor.__init__", f"it takes no {sorted(missing)}")


def check_pop_events() -> None:
    expect_parameters(
        "StepDelegatingExecutor._pop_events",
        getattr(StepDelegatingExecutor, "_pop_events", None),
        ["self", "instance", "run_id", "seen_storage_ids"],
    )


def check_loop() -> None:
    source = inspect.getsource(StepDelegatingExecutor.execute)
    for name, expression in (
        ("_sleep_seconds", "time.sleep(self._sleep_seconds)"),
        ("_check_step_health_interval_seconds", ">= self._check_step_health_interval_seconds"),
    ):
        if source.count(f"self.{name}") != 1 or expression not in source:
            raise SeamError(
                f"StepDelegatingExecutor.{name}",
                f"the loop reads it {source.count(f'self.{name}')} times, expected once, "
                f"as {expression!r}",
            )
    if f"self.{crash_helper_name()}(" not in source:
        raise SeamError(
            f"Executor.{crash_helper_name()}", "the loop does not end a lost step with it any more"
        )


def check_step_handler() -> None:
    expected = {"name", "launch_step", "check_step_health", "terminate_step"}
    found = set(StepHandler.__abstractmethods__)
    if found != expected:
        raise SeamError("StepHandler", f"abstract members are {sorted(found)}")


def check_crash_helper() -> None:
    name = crash_helper_name()
    expect_parameters(
        f"Executor.{name}",
        getattr(Executor, name),
        ["self", "step_context", "err_info", "known_state"],
    )


def check_step_args() -> None:
    from dagster._grpc.types import ExecuteStepArgs

    wanted = {
        "job_origin",
        "run_id",
        "step_keys_to_execute",
        "instance_ref",
        "retry_mode",
        "known_state",
        "should_verify_step",
        "print_serialized_events",
    }
    missing = wanted - set(parameters(ExecuteStepArgs.__new__))
    if missing:
        raise SeamError("ExecuteStepArgs", f"it takes no {sorted(missing)}")


def check_interrupts() -> None:
    from dagster._utils import interrupts

    expect_attributes(
        "dagster._utils.interrupts", interrupts, ["check_captured_interrupt", "capture_interrupts"]
    )


def check_step_body() -> None:
    from dagster._cli import api

    expect_parameters(
        "dagster._cli.api._execute_step_command_body",
        getattr(api, "_execute_step_command_body", None),
        ["args", "instance", "dagster_run"],
    )


def check_threads() -> None:
    """Python's own, in all its versions."""
    found = getattr(threading, "_shutdown", None)
    if found is None or parameters(found):
        raise SeamError("Python's threading._shutdown", "it is not there, or takes an argument")


def check_cli_instance() -> None:
    from dagster._cli import utils

    expect_parameters(
        "dagster._cli.utils.get_instance_for_cli",
        getattr(utils, "get_instance_for_cli", None),
        ["instance_ref"],
    )


def check_run_bodies() -> None:
    from dagster._cli import api

    for name in ("_execute_run_command_body", "_resume_run_command_body"):
        expect_parameters(
            f"dagster._cli.api.{name}",
            getattr(api, name, None),
            ["run_id", "instance", "write_stream_fn", "set_exit_code_on_failure"],
        )


def check_run_args() -> None:
    from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs

    for args in (ExecuteRunArgs, ResumeRunArgs):
        wanted = {"job_origin", "run_id", "instance_ref", "set_exit_code_on_failure"}
        missing = wanted - set(parameters(args.__new__))
        if missing:
            raise SeamError(args.__name__, f"it takes no {sorted(missing)}")


def check_run_launcher() -> None:
    from dagster._core.launcher import RunLauncher, WorkerStatus
    from dagster._core.launcher.base import CheckRunHealthResult, ResumeRunContext

    found = set(RunLauncher.__abstractmethods__)
    if found != {"launch_run", "terminate"}:
        raise SeamError("RunLauncher", f"abstract members are {sorted(found)}")
    expect_attributes(
        "RunLauncher",
        RunLauncher,
        [
            "supports_check_run_worker_health",
            "check_run_worker_health",
            "get_run_worker_debug_info",
            "supports_resume_run",
            "resume_run",
        ],
    )
    expect_attributes("WorkerStatus", WorkerStatus, ["RUNNING", "NOT_FOUND", "FAILED", "SUCCESS"])
    expect_attributes("CheckRunHealthResult", CheckRunHealthResult, ["status", "msg"])
    expect_attributes("ResumeRunContext", ResumeRunContext, ["resume_attempt_number"])


def check_load_context() -> None:
    from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext

    expect_attributes("DefinitionsLoadContext", DefinitionsLoadContext, ["_instance", "is_set"])


def replace_plan_maker(make: Callable[..., Any]) -> None:
    """Has the body of `dagster api execute_step` call `make` for create_execution_plan."""
    from dagster._cli import api

    setattr(api, "create_execution_plan", make)  # noqa: B010


def check_plans() -> None:
    from dagster._cli import api
    from dagster._core.execution.plan.plan import ExecutionPlan

    made = ["job", "run_config", "step_keys_to_execute", "known_state"]
    seam = "dagster._cli.api.create_execution_plan"
    expect_parameters(seam, getattr(api, "create_execution_plan", None), made)
    expect_parameters(
        "ExecutionPlan.build_subset_plan",
        getattr(ExecutionPlan, "build_subset_plan", None),
        ["self", "step_keys_to_execute", "job_def", "resolved_run_config"],
    )


def check_event_storage() -> None:
    from dagster._core.storage.event_log.base import EventLogStorage

    for name, expected in (("store_event", ["self", "event"]), ("store_event_batch", ["self"])):
        expect_parameters(f"EventLogStorage.{name}", getattr(EventLogStorage, name, None), expected)


def check_file_pointer() -> None:
    from dagster._core.code_pointer import FileCodePointer

    expect_parameters(
        "FileCodePointer.load_target", getattr(FileCodePointer, "load_target", None), ["self"]
    )


def check_event_ids() -> None:
    from dagster._core.storage.event_log import SqlEventLogStorage, SqlEventLogStorageTable

    expect_parameters(
        "SqlEventLogStorage.run_connection",
        getattr(SqlEventLogStorage, "run_connection", None),
        ["self", "run_id"],
    )
    expect_attributes(
        "SqlEventLogStorageTable",
        SqlEventLogStorageTable.c,
        [
            *("id", "run_id", "event", "dagster_event_type", "timestamp"),
            *("step_key", "asset_key", "partition"),
        ],
    )


def check_postgres() -> None:
    """Called only where the instance uses dagster-postgres."""
    from dagster_postgres.event_log.event_log import PostgresEventLogStorage

    seam = "PostgresEventLogStorage"
    expect_attributes(
        seam,
        PostgresEventLogStorage,
        [
            *("prepare_insert_event", "_connect", "_event_to_row"),
            *("store_asset_event", "store_asset_event_tags", "store_asset_check_event"),
        ],
    )
    insert = inspect.getsource(PostgresEventLogStorage.prepare_insert_event)
    if ".values(**self._event_to_row(event))" not in insert:
        raise SeamError(f"{seam}.prepare_insert_event", "it inserts other than the event's row")
    writer = inspect.getsource(PostgresEventLogStorage.store_event)
    if "prepare_insert_event(event)" not in writer or "NOTIFY" not in writer:
        raise SeamError(f"{seam}.store_event", "it does not insert and notify any more")
    for name in ("store_asset_event_tags", "store_asset_event", "store_asset_check_event"):
        if f"{name}(" not in writer:
            raise SeamError(f"{seam}.store_event", f"it calls no {name}")
    source = inspect.getsource(PostgresEventLogStorage.__init__)
    if "self._engine = " not in source or "self.postgres_url = " not in source:
        raise SeamError(seam, "its constructor sets no _engine or no postgres_url")


def upload_limit() -> int:
    """The size beyond which Dagster cuts a log that it uploads; 0 for none."""
    from dagster._core.storage import cloud_storage_compute_log_manager as cloud

    default = getattr(cloud, "DEFAULT_TRUNCATE_COMPUTE_LOGS_UPLOAD_BYTES", "0")
    return int(os.environ.get("DAGSTER_TRUNCATE_COMPUTE_LOGS_UPLOAD_BYTES", default))


def upload_part(manager: Any, log_key: Any, stream: Any, path: str, cut: bool) -> None:
    """Uploads the file as the log of a step that still runs. Raises FileNotFoundError when there
    is none: Dagster's own way to here, upload_to_cloud_storage, would make an empty one, which the
    webserver of the same machine would show for ever."""
    upload = getattr(manager, "_upload_file_obj", None)
    if upload is None:  # a storage that is none of Dagster's
        manager.upload_to_cloud_storage(log_key, stream, partial=True)
        return
    with contextlib.ExitStack() as stack:
        if cut:
            path = stack.enter_context(manager._truncate_file(path, max_bytes=upload_limit()))
        data = stack.enter_context(open(path, "rb"))
        upload(data, log_key, stream, partial=True)


def check_log_managers() -> None:
    from dagster._core.storage import cloud_storage_compute_log_manager as cloud
    from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

    local = LocalComputeLogManager
    expect_parameters(
        "LocalComputeLogManager.capture_logs", local.capture_logs, ["self", "log_key"]
    )
    expect_attributes(
        "LocalComputeLogManager", local, ["get_captured_local_path", "complete_artifact_path"]
    )
    seam = "CloudStorageComputeLogManager"
    capture = getattr(cloud.CloudStorageComputeLogManager, "capture_logs", None)
    expect_parameters(f"{seam}.capture_logs", capture, ["self", "log_key"])
    source = inspect.getsource(cloud.CloudStorageComputeLogManager.capture_logs)
    for part in (
        "self._poll_for_local_upload(log_key)",
        "self.local_manager.capture_logs(log_key)",
    ):
        if part not in source:
            raise SeamError(f"{seam}.capture_logs", f"it does not call {part} any more")
    truncating = cloud.TruncatingCloudStorageComputeLogManager
    expect_attributes(truncating.__name__, truncating, ["_upload_file_obj", "_truncate_file"])


def check_replay() -> None:
    from dagster._core.execution.plan import active

    loop = StepDelegatingExecutor.execute
    if "ActiveExecution" not in loop.__code__.co_names or loop.__closure__ is not None:
        raise SeamError("StepDelegatingExecutor.execute", "it makes no ActiveExecution of its own")
    kind = active.ActiveExecution
    seam = "ActiveExecution"
    expect_parameters(
        f"{seam}.rebuild_from_events",
        getattr(kind, "rebuild_from_events", None),
        ["self", "dagster_events"],
    )
    expect_attributes(
        seam, kind, ["_prep_for_dynamic_outputs", "_skip_for_dynamic_outputs", "_update"]
    )
    expect_attributes("dagster._core.execution.plan.active", active, ["_pool_key_for_step"])
    source = inspect.getsource(kind.__init__)
    for name in (
        "_pending",
        "_executable",
        "_pending_skip",
        "_pending_retry",
        "_pending_abandon",
        "_waiting_to_retry",
        "_in_flight",
        "_instance_concurrency_context",
    ):
        if f"self.{name}" not in source:
            raise SeamError(f"{seam}.{name}", "its constructor does not set it")


def check_slots() -> None:
    from dagster._core.execution.plan.instance_concurrency_context import (
        InstanceConcurrencyContext,
    )

    source = inspect.getsource(InstanceConcurrencyContext.__init__)
    for name in ("_instance", "_run_id", "_claims", "_pending_claims"):
        if f"self.{name}" not in source:
            raise SeamError(f"InstanceConcurrencyContext.{name}", "its constructor sets none")


EXECUTOR_CHECKS: tuple[Callable[[], None], ...] = (
    check_shapes,
    check_constructor,
    check_pop_events,
    check_loop,
    check_step_handler,
    check_crash_helper,
    check_step_args,
    check_interrupts,
    check_event_ids,
)

LOG_CHECKS: tuple[Callable[[], None], ...] = (check_log_managers,)
RESUME_CHECKS: tuple[Callable[[], None], ...] = (check_replay, check_slots)

CHILD_CHECKS: tuple[Callable[[], None], ...] = (
    check_shapes,
    check_step_args,
    check_step_body,
    check_threads,
    check_cli_instance,
    check_event_storage,
    check_interrupts,
    check_file_pointer,
    check_load_context,
)

RUN_WORKER_CHECKS: tuple[Callable[[], None], ...] = (check_run_bodies, check_run_args)

LAUNCHER_CHECKS: tuple[Callable[[], None], ...] = (check_run_launcher, check_run_args)


PLAN_CHECKS: tuple[Callable[[], None], ...] = (check_plans,)


def verify(checks: tuple[Callable[[], None], ...]) -> None:
    """Runs the checks. Raises SeamError, an ImportError, at the first that fails."""
    for check in checks:
        try:
            check()
        except SeamError:
            raise
        except (ImportError, AttributeError, TypeError, OSError) as err:
            raise SeamError(check.__name__.removeprefix("check_"), repr(err)) from err
