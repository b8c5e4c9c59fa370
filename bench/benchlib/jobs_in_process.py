"""Code location of mode in_process."""

from typing import Any

from dagster import Definitions, in_process_executor

from benchlib.shapes import jobs

EXECUTOR_CONFIG: dict[str, Any] = {}

defs = Definitions(jobs=jobs(in_process_executor))
