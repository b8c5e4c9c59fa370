"""What makes an outside effect of a step safe to repeat: a key, and a fence.

An attempt that began and then died may have done half of its work, and the next attempt does it
again. Two numbers keep the outside world right, and both go to it with the effect:

- `key()` is the same for every attempt of a step of a run. Whoever keeps the keys it has seen does
  each effect once.
- `fence()` is larger for every later attempt of that step. Whoever keeps the largest it has seen
  refuses what an attempt says that was given up, but is not dead yet.

Both work under every executor. Under Dagster's own there is no claim to count, so there the fence
counts Dagster's attempts only.
"""

from __future__ import annotations

import os
from typing import NamedTuple

# The run worker's own step key: its environment names no step.
_RUN_STEP_KEY = "@run"

# Claims are counted anew for each attempt, so the attempt is the upper half. The whole stays within
# a bigint.
_CLAIM_BITS = 32


class NoStepError(RuntimeError):
    """There is no step here whose key or fence could be told."""


class _Step(NamedTuple):
    key: str
    attempt: int
    claim: int


def key() -> str:
    """Returns the idempotency key of the running step: `<run id>/<step key>`.

    Raises NoStepError outside of a step.
    """
    return _step().key


def fence() -> int:
    """Returns the fence of the running step, at least 0 and below 2**63.

    Compare it only with fences of the same key. Raises NoStepError outside of a step.
    """
    step = _step()
    return (step.attempt << _CLAIM_BITS) + step.claim


def _step() -> _Step:
    given, running = _from_environment(), _from_dagster()
    if given is None and running is None:
        raise NoStepError(
            "No step runs here, so there is no idempotency key and no fence. Call it in the body "
            "of an op or an asset; in a thread that the body starts it works on stepfleet only."
        )
    # A step that runs in the process of another one, or of a run worker, inherits an environment
    # that is not its own.
    if given is None or (running is not None and running.key != given.key):
        assert running is not None
        return running
    return given


def _from_environment() -> _Step | None:
    """What stepfleet's worker gave this process."""
    given = os.environ.get("STEPFLEET_IDEMPOTENCY_KEY", "")
    if not given or os.environ.get("STEPFLEET_STEP_KEY") == _RUN_STEP_KEY:
        return None
    return _Step(given, int(os.environ["STEPFLEET_ATTEMPT"]), int(os.environ["STEPFLEET_FENCE"]))


def _from_dagster() -> _Step | None:
    """What Dagster runs in this thread."""
    from dagster import DagsterInvariantViolationError, OpExecutionContext

    try:
        context = OpExecutionContext.get()
    except DagsterInvariantViolationError:
        return None
    step_key = context.get_step_execution_context().step.key
    return _Step(f"{context.run_id}/{step_key}", context.retry_number, 0)
