"""The arguments that Dagster gives a step's process."""

from __future__ import annotations

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import serialize_value

from dagster_stepfleet.client import StepfleetError

seams.verify((seams.check_step_args,))


def step_key_of(args: ExecuteStepArgs) -> str:
    keys = args.step_keys_to_execute or []
    if len(keys) != 1:
        raise StepfleetError(f"Dagster asked for {len(keys)} steps in one process, not for one")
    return keys[0]


def attempt_of(args: ExecuteStepArgs, step_key: str) -> int:
    state = args.known_state
    return state.get_retry_state().get_attempt_count(step_key) if state else 0


def shared_payload(args: ExecuteStepArgs) -> str:
    """Serialises the arguments without the step key, which each child puts in for itself."""
    return serialize_value(
        ExecuteStepArgs(
            job_origin=args.job_origin,
            run_id=args.run_id,
            step_keys_to_execute=None,
            instance_ref=args.instance_ref,
            retry_mode=args.retry_mode,
            known_state=args.known_state,
            should_verify_step=False,
            print_serialized_events=False,
        )
    )
