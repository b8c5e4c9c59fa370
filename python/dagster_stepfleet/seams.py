"""Every private seam of Dagster that stepfleet uses, named in one place.

Dagster does not promise these. Each is checked by `inspect` when the module that needs it is
imported: an unsupported version fails there, with the name of the seam, and not in a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import metadata
from types import FunctionType
from typing import Any

from dagster._core.executor.base import Executor
from dagster._core.executor.step_delegating.step_delegating_executor import (
    StepDelegatingExecutor,
)
from dagster._core.executor.step_delegating.step_handler.base import StepHandler

SUPPORTED = "dagster >= 1.11.10, tested up to 1.13"

# Dagster's way to write a failure or a retry for a step whose process is gone has had three names.
CRASH_HELPERS = (
    "log_failure_or_retry_event_after_error",
    "get_failure_or_retry_event_after_crash",
    "get_failure_or_retry_event_after_error",
)


# What Dagster's daemon writes to a run's log before it launches another run worker for it; also how
# it counts them. Importing it would load the daemon.
RESUME_MESSAGE = "Launching a new run worker to resume run"


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


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _expect_parameters(seam: str, function: Any, expected: list[str]) -> None:
    if function is None:
        raise SeamError(seam, "it is gone")
    found = parameters(function)
    if found[: len(expected)] != expected:
        raise SeamError(seam, f"parameters are {found}, expected {expected}")


def _expect_attributes(seam: str, owner: Any, names: list[str]) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise SeamError(seam, f"it has no {', '.join(missing)}")


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
    _expect_parameters(
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


def check_step_handler() -> None:
    expected = {"name", "launch_step", "check_step_health", "terminate_step"}
    found = set(StepHandler.__abstractmethods__)
    if found != expected:
        raise SeamError("StepHandler", f"abstract members are {sorted(found)}")


def check_crash_helper() -> None:
    name = crash_helper_name()
    _expect_parameters(
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

    _expect_attributes(
        "dagster._utils.interrupts", interrupts, ["check_captured_interrupt", "capture_interrupts"]
    )


def check_step_body() -> None:
    from dagster._cli import api

    _expect_parameters(
        "dagster._cli.api._execute_step_command_body",
        getattr(api, "_execute_step_command_body", None),
        ["args", "instance", "dagster_run"],
    )


def check_load_context() -> None:
    from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext

    _expect_attributes("DefinitionsLoadContext", DefinitionsLoadContext, ["_instance", "is_set"])


def check_event_storage() -> None:
    from dagster._core.storage.event_log.base import EventLogStorage

    for name, expected in (("store_event", ["self", "event"]), ("store_event_batch", ["self"])):
        _expect_parameters(
            f"EventLogStorage.{name}", getattr(EventLogStorage, name, None), expected
        )


def check_file_pointer() -> None:
    from dagster._core.code_pointer import FileCodePointer

    _expect_parameters(
        "FileCodePointer.load_target", getattr(FileCodePointer, "load_target", None), ["self"]
    )


def check_event_ids() -> None:
    from dagster._core.storage.event_log import SqlEventLogStorage, SqlEventLogStorageTable

    _expect_parameters(
        "SqlEventLogStorage.run_connection",
        getattr(SqlEventLogStorage, "run_connection", None),
        ["self", "run_id"],
    )
    _expect_attributes(
        "SqlEventLogStorageTable",
        SqlEventLogStorageTable.c,
        ["id", "run_id", "step_key", "dagster_event_type"],
    )


def check_postgres() -> None:
    """Called only where the instance uses dagster-postgres."""
    from dagster_postgres.event_log.event_log import PostgresEventLogStorage

    seam = "PostgresEventLogStorage"
    _expect_attributes(seam, PostgresEventLogStorage, ["prepare_insert_event", "_connect"])
    writer = inspect.getsource(PostgresEventLogStorage.store_event)
    if "prepare_insert_event(event)" not in writer or "NOTIFY" not in writer:
        raise SeamError(f"{seam}.store_event", "it does not insert and notify any more")
    source = inspect.getsource(PostgresEventLogStorage.__init__)
    if "self._engine = " not in source or "self.postgres_url = " not in source:
        raise SeamError(seam, "its constructor sets no _engine or no postgres_url")


def check_replay() -> None:
    from dagster._core.execution.plan import active

    loop = StepDelegatingExecutor.execute
    if "ActiveExecution" not in loop.__code__.co_names or loop.__closure__ is not None:
        raise SeamError("StepDelegatingExecutor.execute", "it makes no ActiveExecution of its own")
    kind = active.ActiveExecution
    seam = "ActiveExecution"
    _expect_parameters(
        f"{seam}.rebuild_from_events",
        getattr(kind, "rebuild_from_events", None),
        ["self", "dagster_events"],
    )
    _expect_attributes(
        seam, kind, ["_prep_for_dynamic_outputs", "_skip_for_dynamic_outputs", "_update"]
    )
    _expect_attributes("dagster._core.execution.plan.active", active, ["_pool_key_for_step"])
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
    check_constructor,
    check_pop_events,
    check_loop,
    check_step_handler,
    check_crash_helper,
    check_step_args,
    check_interrupts,
    check_event_ids,
)

RESUME_CHECKS: tuple[Callable[[], None], ...] = (check_replay, check_slots)

CHILD_CHECKS: tuple[Callable[[], None], ...] = (
    check_step_args,
    check_step_body,
    check_event_storage,
    check_interrupts,
    check_file_pointer,
    check_load_context,
)


def verify(checks: tuple[Callable[[], None], ...]) -> None:
    """Runs the checks. Raises SeamError, an ImportError, at the first that fails."""
    for check in checks:
        try:
            check()
        except SeamError:
            raise
        except (ImportError, AttributeError, TypeError, OSError) as err:
            raise SeamError(check.__name__.removeprefix("check_"), repr(err)) from err
