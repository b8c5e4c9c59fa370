"""Code location of mode multiprocess_forkserver: a process per step, forked from one that has
imported this module. It is the fastest setting of Dagster's own multiprocess executor."""

from dagster import Definitions, multiprocess_executor

from benchlib.settings import SLOTS
from benchlib.shapes import jobs

# What a step's process needs: the code, and the storage that Dagster imports when it is configured.
PRELOAD = [__name__, "dagster_postgres", "sqlalchemy.dialects.postgresql.psycopg2"]

EXECUTOR_CONFIG = {
    "max_concurrent": SLOTS,
    "start_method": {"forkserver": {"preload_modules": PRELOAD}},
}

defs = Definitions(jobs=jobs(multiprocess_executor.configured(EXECUTOR_CONFIG)))
