"""What every mode has in common."""

SLOTS = 2  # steps at a time, in each mode that runs several
MODES = (
    "in_process",
    "multiprocess_forkserver",
    "multiprocess_spawn",
    "celery",
    "step_delegating",
    "stepfleet_polled",
    "stepfleet",
)
# A start of Python or a second of sleep for every step: minutes a run, and nothing that a second
# run would find warm. No bound compares them, so they get fewer repetitions.
SLOW_MODES = ("multiprocess_spawn", "step_delegating", "stepfleet_polled")
JOBS = ("chain50", "fanout100")

RUN_TIMEOUT_SECONDS = 600.0
READY_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0

# Where the code location of mode celery finds its broker.
BROKER_VARIABLE = "STEPFLEET_BENCH_BROKER"


def module_of(mode: str) -> str:
    """The code location of a mode."""
    return f"benchlib.jobs_{mode}"
