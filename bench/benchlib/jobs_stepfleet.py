"""Code location of mode stepfleet, with the plugin's defaults."""

from dagster import Definitions
from dagster_stepfleet import stepfleet_executor

from benchlib.shapes import jobs

defs = Definitions(jobs=jobs(stepfleet_executor))
