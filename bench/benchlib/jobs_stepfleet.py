"""Code location of mode stepfleet, with the plugin's defaults."""

from typing import Any

from dagster import Definitions
from dagster_stepfleet import stepfleet_executor

from benchlib.phases import trace_executor
from benchlib.shapes import jobs

EXECUTOR_CONFIG: dict[str, Any] = {}

trace_executor()
defs = Definitions(jobs=jobs(stepfleet_executor))
