"""What ops print, so that compute logs have something to compare."""

import os
import sys
import tempfile
from pathlib import Path

# The suite compares, of stderr, the lines that begin so: Dagster's own console lines are events.
ERR = "err> "


def say(text: str) -> None:
    """A line to each stream."""
    print(f"out> {text}", flush=True)
    print(f"{ERR}{text}", file=sys.stderr, flush=True)


def first_time(run_id: str, name: str) -> bool:
    """Whether this is the first call with the name in the run, in whatever process."""
    directory = Path(os.environ.get("PARITY_MARKS", tempfile.gettempdir()))
    try:
        (directory / f"{run_id}-{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
