"""What ops print, so that compute logs have something to compare."""

import fcntl
import os
import sys
import tempfile
from pathlib import Path

# The suite compares, of stderr, the lines that begin so: Dagster's own console lines are events.
ERR = "err> "
# What the environment's PARITY_SECRET is.
SECRET = "a secret of the user"


def say(text: str) -> None:
    """A line to each stream."""
    print(f"out> {text}", flush=True)
    print(f"{ERR}{text}", file=sys.stderr, flush=True)


def count(name: str) -> int:
    """How many calls with the name there have been, in whatever processes, with this one."""
    with (marks() / f"count-{name}").open("a+b") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        mark.write(b"x")
        return mark.tell()


def counted(name: str) -> int:
    """How many calls of count with the name there have been."""
    path = marks() / f"count-{name}"
    return path.stat().st_size if path.exists() else 0


def marks() -> Path:
    """Where processes of the suite leave notes for each other."""
    return Path(os.environ.get("PARITY_MARKS", tempfile.gettempdir()))


def first_time(run_id: str, name: str) -> bool:
    """Whether this is the first call with the name in the run, in whatever process."""
    try:
        (marks() / f"{run_id}-{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
