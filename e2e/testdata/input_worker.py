"""A code location that loads everywhere but in a worker, whose image lacks a package."""

import sys

from dagster import Definitions, OpExecutionContext, job, op
from dagster_stepfleet import stepfleet_executor

if sys.argv[0].endswith("dagster_stepfleet/host.py"):
    raise ImportError("no module named 'only_on_my_laptop'")


@op
def work(context: OpExecutionContext) -> None:
    context.log.info("never reached")


@job
def needs_package() -> None:
    work()


defs = Definitions(jobs=[needs_package], executor=stepfleet_executor)
