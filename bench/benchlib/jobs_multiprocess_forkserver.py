"""Code location of mode multiprocess_forkserver: a process per step, forked from one that has
imported this module. It is the fastest setting of Dagster's own multiprocess executor."""

from dagster import Definitions, multiprocess_executor

from benchlib.settings import SLOTS
from benchlib.shapes import jobs

EXECUTOR_CONFIG = {
    "max_concurrent": SLOTS,
    "start_method": {"forkserver": {"preload_modules": [__name__]}},
}

defs = Definitions(jobs=jobs(multiprocess_executor.configured(EXECUTOR_CONFIG)))
