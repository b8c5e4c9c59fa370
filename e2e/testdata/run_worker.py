"""Creates a run whose run worker the test starts itself: prints the arguments of
`dagster api execute_run` and `dagster api resume_run`. Usage: run_worker.py FILE JOB CONFIG."""

import json
import os
import sys

from dagster import DagsterInstance
from dagster._core.code_pointer import CodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import create_execution_plan
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import serialize_value

file, job, config = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pointer = CodePointer.from_python_file(file, "defs", os.getcwd())
recon = ReconstructableRepository(pointer).get_reconstructable_job(job)
with DagsterInstance.get() as instance:
    run = instance.create_run_for_job(
        recon.get_definition(),
        execution_plan=create_execution_plan(recon, run_config=config),
        run_config=config,
        job_code_origin=recon.get_python_origin(),
    )
    arguments = {
        kind: serialize_value(args(run.job_code_origin, run.run_id, instance.get_ref()))
        for kind, args in (("execute", ExecuteRunArgs), ("resume", ResumeRunArgs))
    }
json.dump({"run_id": run.run_id, **arguments}, sys.stdout)
