"""What an example op does: wait for a time that only its run and its step decide."""

import random
import time

from dagster import OpExecutionContext

from stepfleet_examples.effects import effect, step_key
from stepfleet_examples.settings import time_scale

FAST_SECONDS = (20.0, 10.0)  # mean, plus or minus
SLOW_SECONDS = (300.0, 120.0)
SHORT_SECONDS = (1.0, 0.5)
RECOVER_SECONDS = (6.0, 3.0)


def duration_seconds(run_id: str, key: str, mean: float, spread: float) -> float:
    """A uniform draw from mean plus or minus spread, the same for every attempt of a step."""
    return random.Random(f"{run_id}/{key}").uniform(mean - spread, mean + spread)


def work(context: OpExecutionContext, seconds: tuple[float, float]) -> float:
    """Work for the given (mean, spread), scaled; returns how long it was."""
    duration = duration_seconds(context.run_id, step_key(context), *seconds) * time_scale()
    with effect(context):
        context.log.info(f"working for {duration:.1f} s")
        time.sleep(duration)
    return duration
