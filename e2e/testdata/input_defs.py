"""A user's project, with what a user can get wrong. Every op but two waits for the release file of
its config, if there is one."""

import os
import time

from dagster import Config, Definitions, DynamicOut, DynamicOutput, OpExecutionContext, job, op
from dagster_stepfleet import stepfleet_executor
from stepfleet_examples.effects import effect

POLL_SECONDS = 0.02
PIECES = 40
# Each key of a dynamic output that is known makes the arguments of later steps longer.
KEY_LENGTH = 200


class Wait(Config):
    release: str = ""


def wait(context: OpExecutionContext, config: Wait) -> None:
    with effect(context):
        while config.release and not os.path.exists(config.release):
            time.sleep(POLL_SECONDS)


@op
def work(context: OpExecutionContext, config: Wait) -> None:
    wait(context, config)


@op(tags={"stepfleet/queue": "gpu"})
def on_gpu(context: OpExecutionContext, config: Wait) -> None:
    wait(context, config)


@op(out=DynamicOut(int))
def split(context: OpExecutionContext) -> list[DynamicOutput[int]]:
    with effect(context):
        return [DynamicOutput(i, mapping_key=f"{i:0{KEY_LENGTH}d}") for i in range(PIECES)]


@op
def piece(context: OpExecutionContext, number: int) -> int:
    with effect(context):
        return number


@job
def one() -> None:
    work()


@job
def four() -> None:
    for i in range(4):
        work.alias(f"work_{i}")()


@job
def unknown_queue() -> None:
    on_gpu()
    work.alias("beside")()


@job
def growing() -> None:
    split().map(piece)


defs = Definitions(jobs=[one, four, unknown_queue, growing], executor=stepfleet_executor)
