"""What every mode has in common."""

import importlib
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent.parent
ROOT = BENCH.parent

OURS = "stepfleet"
SLOTS = 2  # steps at a time, in each mode that runs several
MODES = (
    "in_process",
    "multiprocess_forkserver",
    "multiprocess_spawn",
    "celery",
    "step_delegating",
    "stepfleet_polled",
    OURS,
)
# A start of Python or a second of sleep for every step: minutes a run. No bound compares them, so
# they get fewer repetitions.
SLOW_MODES = ("multiprocess_spawn", "step_delegating", "stepfleet_polled")
# They begin with nothing that an earlier run could have warmed, or with a stack of their own that
# is as fresh each time: a repetition that is dropped would change nothing, and take minutes.
MODES_WITHOUT_WARM_UP = (*SLOW_MODES, "celery")
SINGLE, CHAIN, FAN_OUT = JOBS = ("single", "chain50", "fanout100")
REPETITIONS = 5

RUN_TIMEOUT_SECONDS = 600.0
READY_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0

# Where the code location of mode celery finds its broker.
BROKER_VARIABLE = "STEPFLEET_BENCH_BROKER"

# The instance of every benchmark, without its address: what differs from Dagster's defaults.
DAGSTER_SETTINGS = {"storage": "postgres", "telemetry": {"enabled": False}}
# The caller's variables of these names would be settings that no page tells of.
FOREIGN_VARIABLES = ("STEPFLEET_", "DAGSTER_", "AWS_")


def module_of(mode: str) -> str:
    """The code location of a mode."""
    return f"benchlib.jobs_{mode}"


def executor_config(mode: str) -> dict[str, Any]:
    """What a mode's executor is given beside its defaults."""
    config: dict[str, Any] = importlib.import_module(module_of(mode)).EXECUTOR_CONFIG
    return config


def dagster_yaml(postgres_url: str) -> str:
    """The instance's file, in every benchmark."""
    return (
        f"storage:\n  postgres:\n    postgres_url: {postgres_url}\ntelemetry:\n  enabled: false\n"
    )
