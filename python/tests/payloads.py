"""Makes the payload of a step without an executor."""

from __future__ import annotations

from pathlib import Path

from dagster import DagsterInstance
from dagster._core.code_pointer import CodePointer, FileCodePointer, ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.retries import RetryMode
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import serialize_value

PYTHON = str(Path(__file__).parent.parent)
MODULE = ModuleCodePointer("tests.defs", "defs", PYTHON)


def file_pointer(path: Path) -> FileCodePointer:
    return FileCodePointer(str(path), "defs", str(path.parent))


def recon(job: str, pointer: CodePointer = MODULE) -> ReconstructableJob:
    return ReconstructableRepository(pointer).get_reconstructable_job(job)


def create_run(
    instance: DagsterInstance,
    job: str,
    config: dict | None = None,
    tags: dict | None = None,
    pointer: CodePointer = MODULE,
):
    run_config = {"execution": {"config": config}} if config else {}
    loaded = recon(job, pointer).repository.get_definition()
    return instance.create_run_for_job(
        recon(job, pointer).get_definition(),
        execution_plan=create_execution_plan(
            recon(job, pointer),
            run_config=run_config,
            # What a code server has learnt when it loaded the location comes with the run.
            repository_load_data=loaded.repository_load_data,
        ),
        run_config=run_config,
        tags=tags,
        job_code_origin=recon(job, pointer).get_python_origin(),
    )


def step(instance: DagsterInstance, run, step_key: str) -> tuple[dict, str]:
    """Returns the task and the payload of a step of the run."""
    args = ExecuteStepArgs(
        job_origin=run.job_code_origin,
        run_id=run.run_id,
        step_keys_to_execute=None,
        instance_ref=instance.get_ref(),
        retry_mode=RetryMode.DEFERRED,
        known_state=KnownExecutionState(),
    )
    task = {"run_id": run.run_id, "step_key": step_key, "attempt": 0}
    return task, serialize_value(args)
