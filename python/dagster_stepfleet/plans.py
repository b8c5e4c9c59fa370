"""Keeps a job's execution plan for the steps to come.

Every step process makes the plan of the whole job and takes its own step out of it, so that a run
of n steps makes n plans of n steps. The template makes the plan of each job once, and its children
take their step out of that one. It holds for runs without run config, from which a plan takes
values of inputs. Every other run, steps after dynamic outputs, and a job that is a selection of
another get their plan from Dagster as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster import JobDefinition
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.system_config.objects import ResolvedRunConfig

seams.verify(seams.PLAN_CHECKS)

# By the identity of the job's definition, which is kept alive beside its plan.
_kept: dict[int, tuple[JobDefinition, ResolvedRunConfig, ExecutionPlan]] = {}


def learn(job: ReconstructableJob) -> None:
    """Makes and keeps the job's plan. Raises what Dagster does, as for a job that needs config."""
    definition = job.get_definition()
    config = ResolvedRunConfig.build(definition, {})
    _kept[id(definition)] = (definition, config, ExecutionPlan.build(definition, config))


def install() -> None:
    """Has steps of this process take their plan from here."""
    seams.replace_plan_maker(make)


def make(
    job: ReconstructableJob,
    run_config: Mapping[str, object] | None = None,
    step_keys_to_execute: Sequence[str] | None = None,
    known_state: KnownExecutionState | None = None,
    **rest: Any,
) -> ExecutionPlan:
    """As Dagster's create_execution_plan."""
    known_state = known_state or KnownExecutionState()
    kept = None
    # The steps that dynamic outputs have made belong to the plan, and to one run.
    if not run_config and not known_state.dynamic_mappings and not any(rest.values()):
        kept = _kept.get(id(job.get_definition()))
    if kept is not None and step_keys_to_execute:
        definition, config, plan = kept
        known = plan._replace(known_state=known_state)
        return known.build_subset_plan(step_keys_to_execute, definition, config)
    return create_execution_plan(job, run_config, step_keys_to_execute, known_state, **rest)
