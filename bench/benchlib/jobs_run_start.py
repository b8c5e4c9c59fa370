"""Code location of run_start.py: a run that does nothing, so that its start is what is measured."""

from dagster import Definitions, in_process_executor, job, op


@op
def noop() -> None:
    pass


@job(executor_def=in_process_executor)
def one() -> None:
    noop()


defs = Definitions(jobs=[one])
