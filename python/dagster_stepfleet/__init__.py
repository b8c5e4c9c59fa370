"""stepfleet for Dagster: the executor, and the Python side of its workers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster_stepfleet.executor import StepfleetExecutor as StepfleetExecutor
    from dagster_stepfleet.executor import stepfleet_executor as stepfleet_executor
    from dagster_stepfleet.launcher import StepfleetRunLauncher as StepfleetRunLauncher

__all__ = ["StepfleetExecutor", "StepfleetRunLauncher", "stepfleet_executor"]


def __getattr__(name: str) -> Any:
    # The host imports this package before it has arranged to die with its parent and before it
    # has dropped its secrets, so nothing of Dagster is imported until it is asked for.
    if name == "StepfleetRunLauncher":
        from dagster_stepfleet import launcher

        return launcher.StepfleetRunLauncher
    if name in __all__:
        from dagster_stepfleet import executor

        return getattr(executor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
