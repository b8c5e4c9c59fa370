"""Code location of mode in_process."""

from dagster import Definitions, in_process_executor

from benchlib.shapes import jobs

defs = Definitions(jobs=jobs(in_process_executor))
