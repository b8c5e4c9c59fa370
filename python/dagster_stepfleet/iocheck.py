"""Refuses a run whose values would lie on the disk of one host and be read on another.

Dagster's filesystem IO manager is the default, and right where all steps run on one host. With
workers on several, a step that loads an input fails only when it happens to run elsewhere than the
step that stored it. So a run is refused before its first step is submitted when a step would load a
value through that manager, and the queues of the steps concerned are served on other hosts than
the run worker's. A run that loads nothing through it is none of this module's business.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dagster_stepfleet import seams, seams_io, tags
from dagster_stepfleet.client import StepfleetError

if TYPE_CHECKING:
    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan

    from dagster_stepfleet.client import Client

seams.verify(seams_io.IO_CHECKS)

# How many workers a refusal names.
_SHOWN_WORKERS = 5


class UnsharedFilesystem(StepfleetError):
    """A step would look for a value on the disk of another host."""


def refuse_unshared(
    plan_context: PlanOrchestrationContext,
    plan: ExecutionPlan,
    client: Client,
    defaults: tags.Defaults,
) -> None:
    """Asks the server who serves the queues, and only where a filesystem IO manager is used."""
    job = plan_context.reconstructable_job.get_definition()
    loads = [
        load for load in seams_io.loads(plan, job) if seams_io.is_filesystem(job, load.manager_key)
    ]
    if not loads:
        return
    run = plan_context.dagster_run
    queues = {
        tags.place(step_tags, run.tags, defaults).queue
        for load in loads
        for step_tags in (load.step_tags, load.stored_by_tags)
        if step_tags is not None
    }
    elsewhere = _sessions_elsewhere(client.sessions(), queues, socket.gethostname())
    if not elsewhere:
        return
    # Only now, since it costs more: a base directory may be a bucket.
    local = [
        (load, base)
        for load in loads
        if _is_local(base := seams_io.base_directory(job, run.run_config, load.manager_key))
    ]
    if local:
        raise UnsharedFilesystem(_refusal(*local[0], elsewhere))


def _sessions_elsewhere(
    sessions: Iterable[Mapping[str, Any]], queues: set[str], here: str
) -> list[Mapping[str, Any]]:
    return [
        session
        for session in sessions
        if session.get("state") in ("alive", "suspect")
        and not session.get("draining")
        and not queues.isdisjoint(session.get("slots") or {})
        and session.get("host") not in ("", None, here)
    ]


def _is_local(base: str | None) -> bool:
    return base is None or "://" not in base or base.startswith("file://")


def _refusal(load: seams_io.Load, base: str | None, elsewhere: Sequence[Mapping[str, Any]]) -> str:
    workers = [f"{s['worker']} on {s['host']}" for s in elsewhere[:_SHOWN_WORKERS]]
    if len(elsewhere) > _SHOWN_WORKERS:
        workers.append(f"{len(elsewhere) - _SHOWN_WORKERS} more")
    where = base or os.environ.get("DAGSTER_HOME") or "Dagster's local artifact storage"
    return (
        f"Step {load.step_key} loads its input {load.input_name} through the IO manager "
        f"{load.manager_key!r}, which keeps values on the disk of one host ({where}), but its "
        f"steps run on other hosts than this run worker's ({socket.gethostname()}): "
        f"{', '.join(workers)}. Use an IO manager that all hosts reach, such as dagster_aws's "
        "S3PickleIOManager. Where that directory is one shared mount on all of them, set "
        "shared_filesystem: true in the executor's config."
    )
