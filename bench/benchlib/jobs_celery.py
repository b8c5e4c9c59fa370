"""Code location of mode celery: dagster-celery's executor, Redis as broker and result backend."""

from dagster import Definitions
from dagster_celery import celery_executor

from benchlib.settings import BROKER_VARIABLE
from benchlib.shapes import jobs

EXECUTOR_CONFIG = {"broker": {"env": BROKER_VARIABLE}, "backend": {"env": BROKER_VARIABLE}}

defs = Definitions(jobs=jobs(celery_executor.configured(EXECUTOR_CONFIG)))
