"""What every mode has in common."""

SLOTS = 2  # steps at a time, in each mode that runs several
MODES = ("in_process", "multiprocess_forkserver", "stepfleet")
JOBS = ("chain50", "fanout100")

RUN_TIMEOUT_SECONDS = 600.0
READY_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0


def module_of(mode: str) -> str:
    """The code location of a mode."""
    return f"benchlib.jobs_{mode}"
