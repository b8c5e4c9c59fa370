"""Jobs of the end-to-end tests. What an op does is in its config, so that a test decides it.

An op notes its begin in the effect log, then waits for its release file (a signal that the test
gives) or sleeps, then notes its end.
"""

import ctypes
import os
import signal
import sys
import time

from dagster import (
    Config,
    Definitions,
    DynamicOut,
    DynamicOutput,
    In,
    JobDefinition,
    Nothing,
    OpDefinition,
    OpExecutionContext,
    RetryPolicy,
    job,
    op,
)
from dagster_stepfleet import stepfleet_executor
from stepfleet_examples.effects import effect, step_key

POLL_SECONDS = 0.02


class Behaviour(Config):
    """What an op does, in this order."""

    ignore_sigterm: bool = False
    exit_status: int = -1  # os._exit with it
    crash: bool = False  # read address 0
    fail_attempts: int = 0  # raise in this many attempts
    seconds: float = 0.0  # sleep
    release: str = ""  # wait for this file


def behave(context: OpExecutionContext, config: Behaviour) -> None:
    key = step_key(context)
    if config.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with effect(context):
        print(f"stdout of {key}, attempt {context.retry_number}", flush=True)
        print(f"stderr of {key}, attempt {context.retry_number}", file=sys.stderr, flush=True)
        if config.exit_status >= 0:
            os._exit(config.exit_status)
        if config.crash:
            ctypes.string_at(0)
        if context.retry_number < config.fail_attempts:
            raise RuntimeError(f"attempt {context.retry_number} fails on purpose")
        if config.seconds:
            time.sleep(config.seconds)
        while config.release and not os.path.exists(config.release):
            time.sleep(POLL_SECONDS)


@op
def begin(context: OpExecutionContext, config: Behaviour) -> int:
    behave(context, config)
    return 0


@op
def step(context: OpExecutionContext, config: Behaviour, number: int) -> int:
    behave(context, config)
    return number + 1


@op
def collect(context: OpExecutionContext, config: Behaviour, numbers: list[int]) -> int:
    behave(context, config)
    print(f"sum {sum(numbers)}", flush=True)
    return sum(numbers)


@op
def work(context: OpExecutionContext, config: Behaviour) -> None:
    behave(context, config)


@op(retry_policy=RetryPolicy(max_retries=1))
def retried(context: OpExecutionContext, config: Behaviour) -> None:
    behave(context, config)


@op(ins={"before": In(Nothing)})
def after(context: OpExecutionContext, config: Behaviour) -> None:
    behave(context, config)


class Pieces(Config):
    count: int = 5


@op(out=DynamicOut(int))
def split(context: OpExecutionContext, config: Pieces) -> list[DynamicOutput[int]]:
    with effect(context):
        return [DynamicOutput(i, mapping_key=str(i)) for i in range(config.count)]


@job
def chain() -> None:
    """begin, step_1, step_2, step_3 in a line."""
    number = begin()
    for i in range(1, 4):
        number = step.alias(f"step_{i}")(number)


@job
def fan() -> None:
    """begin, then step_0 to step_11 at once, then collect."""
    number = begin()
    collect([step.alias(f"step_{i}")(number) for i in range(12)])


@job
def dynamic() -> None:
    """split decides how many steps come next."""
    split().map(step)


@job
def eight_then_after() -> None:
    """work_0 to work_7 at once, then after."""
    after([work.alias(f"work_{i}")() for i in range(8)])


def parallel(name: str, definition: OpDefinition, count: int) -> JobDefinition:
    """A job of independent ops NAME_0, NAME_1, ..."""

    @job(name=name)
    def made() -> None:
        for i in range(count):
            definition.alias(f"{definition.name}_{i}")()

    return made


defs = Definitions(
    jobs=[
        chain,
        fan,
        dynamic,
        eight_then_after,
        parallel("one", work, 1),
        parallel("one_retried", retried, 1),
        parallel("six", work, 6),
        parallel("six_retried", retried, 6),
        parallel("twenty", work, 20),
    ],
    executor=stepfleet_executor,
)
