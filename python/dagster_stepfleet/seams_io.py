"""The private seams of Dagster by which a run's IO managers are known, for iocheck.py.

A part of seams.py, which says how they are checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dagster_stepfleet.seams import expect_attributes, expect_parameters


@dataclass(frozen=True)
class Load:
    """An input that a step of a plan loads through an IO manager."""

    step_key: str
    input_name: str
    manager_key: str
    step_tags: Mapping[str, str]
    # Of the step of the same plan that stores the value, if there is one.
    stored_by_tags: Mapping[str, str] | None


def loads(plan: Any, job: Any) -> Iterator[Load]:
    """The values that the steps of an ExecutionPlan load. It goes as Dagster's own
    get_required_resource_keys_for_step does."""
    for handle in plan.step_handles_to_execute:
        step = plan.get_step(handle)
        node = job.get_node(step.node_handle).definition
        for step_input in step.step_inputs:
            definition = node.input_def_named(step_input.name)
            if definition.dagster_type.is_nothing:
                continue
            for key, stored_by in _managers(plan, job, step, step_input, definition):
                yield Load(
                    step_key=step.key,
                    input_name=step_input.name,
                    manager_key=key,
                    step_tags=step.tags,
                    stored_by_tags=stored_by.tags if stored_by is not None else None,
                )


def _managers(
    plan: Any, job: Any, step: Any, step_input: Any, definition: Any
) -> Iterator[tuple[str, Any]]:
    """The keys of what loads an input, each with the step that stores the value or None."""
    for key in step_input.source.required_resource_keys(job, step.node_handle, step_input.name):
        yield key, None
    if hasattr(step_input, "get_step_output_handle_dependencies"):
        handles = step_input.get_step_output_handle_dependencies()
    else:
        handles = step_input.get_step_output_handle_deps_with_placeholders()
    for handle in handles:
        stored_by = plan.step_dict_by_key.get(handle.step_key)
        if stored_by is not None:
            key = definition.input_manager_key or plan.get_manager_key(handle, job)
            yield key, stored_by


def is_filesystem(job: Any, manager_key: str) -> bool:
    """Whether the resource is Dagster's own filesystem IO manager, in one of its four forms."""
    from dagster import FilesystemIOManager, fs_io_manager
    from dagster._core.definitions import job_definition

    definition: Any = job.resource_defs.get(manager_key)
    made_by = getattr(definition, "configurable_resource_cls", None)
    if isinstance(made_by, type):
        return issubclass(made_by, FilesystemIOManager)
    function = getattr(definition, "resource_fn", None)
    if function is fs_io_manager.resource_fn:
        return True
    defaults = (
        job_definition.default_job_io_manager,
        job_definition.default_job_io_manager_with_fs_io_manager_schema,
    )
    # The default can be another one altogether, by the environment of the processes.
    replaced = os.environ.get("DAGSTER_DEFAULT_IO_MANAGER_MODULE")
    return not replaced and any(function is default.resource_fn for default in defaults)


def base_directory(job: Any, run_config: Mapping[str, Any], manager_key: str) -> str | None:
    """The base_dir that a filesystem IO manager is configured with, None for its default."""
    from dagster._core.system_config.objects import ResolvedRunConfig

    config = ResolvedRunConfig.build(job, run_config).resources[manager_key].config
    base = config.get("base_dir") if isinstance(config, Mapping) else None
    return str(base) if base else None


def check_plan() -> None:
    from dagster._core.execution.plan.inputs import StepInput, UnresolvedMappedStepInput
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.plan.step import ExecutionStep

    expect_attributes(
        "ExecutionPlan",
        ExecutionPlan,
        ["step_handles_to_execute", "get_step", "step_dict_by_key", "get_manager_key"],
    )
    expect_parameters(
        "ExecutionPlan.get_manager_key",
        ExecutionPlan.get_manager_key,
        ["self", "step_output_handle", "job_def"],
    )
    expect_attributes("ExecutionStep", ExecutionStep, ["tags", "step_inputs", "node_handle"])
    expect_attributes("StepInput", StepInput, ["get_step_output_handle_dependencies"])
    expect_attributes(
        "UnresolvedMappedStepInput",
        UnresolvedMappedStepInput,
        ["get_step_output_handle_deps_with_placeholders"],
    )


def check_default_io_managers() -> None:
    from dagster._config.pythonic_config.io_manager import (
        ConfigurableIOManagerFactoryResourceDefinition,
    )
    from dagster._core.definitions import job_definition

    expect_attributes(
        "dagster._core.definitions.job_definition",
        job_definition,
        ["default_job_io_manager", "default_job_io_manager_with_fs_io_manager_schema"],
    )
    expect_attributes(
        "ConfigurableIOManagerFactoryResourceDefinition",
        ConfigurableIOManagerFactoryResourceDefinition,
        ["configurable_resource_cls"],
    )


def check_run_config() -> None:
    from dagster._core.system_config.objects import ResolvedRunConfig

    expect_parameters("ResolvedRunConfig.build", ResolvedRunConfig.build, ["job_def"])


IO_CHECKS: tuple[Callable[[], None], ...] = (
    check_plan,
    check_default_io_managers,
    check_run_config,
)
