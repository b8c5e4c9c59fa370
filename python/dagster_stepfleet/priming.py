"""Runs a step of our own in the template, so that its children start with warm code.

The first step of a process imports modules, compiles statements and fills caches. The template
does it once, with an op of ours on a throw-away SQLite instance: never with user code, and
without a socket that a fork would share.
"""

# No postponed annotations here: Dagster reads those of ops.
import contextlib
import os
import tempfile
from collections.abc import Generator

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster import Config, DagsterInstance, In, OpExecutionContext, Out, job, op, reconstructable
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.retries import RetryMode
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import deserialize_value, serialize_value

from dagster_stepfleet import logs


class _PrimeConfig(Config):
    text: str = "prime"


@op(out=Out(int))
def stepfleet_prime_first(context: OpExecutionContext, config: _PrimeConfig) -> int:
    context.log.debug(config.text)
    return 1


@op(ins={"number": In(int)}, out=Out(int))
def stepfleet_prime_second(number: int) -> int:
    return number + 1


@job(name="stepfleet_prime")
def stepfleet_prime() -> None:
    stepfleet_prime_second(stepfleet_prime_first())


def prime() -> None:
    """Runs the two steps as a child would. Raises what goes wrong."""
    with (
        tempfile.TemporaryDirectory(prefix="stepfleet-prime-") as home,
        _quiet(),
        DagsterInstance.local_temp(home) as instance,
    ):
        logs.install(instance)
        recon = reconstructable(stepfleet_prime)
        origin = recon.get_python_origin()
        plan = create_execution_plan(recon)
        run = instance.create_run_for_job(
            stepfleet_prime, execution_plan=plan, job_code_origin=origin
        )
        known = KnownExecutionState()
        for key in ("stepfleet_prime_first", "stepfleet_prime_second"):
            args = ExecuteStepArgs(
                job_origin=origin,
                run_id=run.run_id,
                step_keys_to_execute=[key],
                instance_ref=instance.get_ref(),
                retry_mode=RetryMode.DEFERRED,
                known_state=known,
            )
            args = deserialize_value(serialize_value(args), ExecuteStepArgs)
            found = instance.get_run_by_id(run.run_id)
            assert found is not None
            for event in seams.step_body()(args, instance, found):
                if event.is_successful_output:
                    handle = event.step_output_data.step_output_handle
                    known = KnownExecutionState(ready_outputs={handle})


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keeps the primer's log lines out of the worker's."""
    logs.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        logs.flush()
        os.dup2(saved, 2)
        os.close(saved)
