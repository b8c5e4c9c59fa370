"""A code location that loads everywhere but in a worker, whose image lacks a package for a while."""

import sys
from pathlib import Path

from dagster import Definitions, OpExecutionContext, job, op
from dagster_stepfleet import stepfleet_executor

installed = Path(__file__).with_name("installed").exists()
if sys.argv[0].endswith("dagster_stepfleet/host.py") and not installed:
    raise ImportError("no module named 'only_on_my_laptop'")


@op
def work(context: OpExecutionContext) -> None:
    context.log.info("installed")


@job
def needs_package() -> None:
    work()


defs = Definitions(jobs=[needs_package], executor=stepfleet_executor)
