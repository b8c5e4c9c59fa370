"""Code location of mode multiprocess_spawn: Dagster's multiprocess executor as it is without
further settings, a fresh interpreter per step."""

from dagster import Definitions, multiprocess_executor

from benchlib.settings import SLOTS
from benchlib.shapes import jobs

EXECUTOR_CONFIG = {"max_concurrent": SLOTS, "start_method": {"spawn": {}}}

defs = Definitions(jobs=jobs(multiprocess_executor.configured(EXECUTOR_CONFIG)))
