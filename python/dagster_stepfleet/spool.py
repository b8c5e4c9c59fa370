"""Notes on disk of what a step has begun to capture, for whoever must finish it.

A step process that ends well finishes its own logs: it leaves the completion marker, or uploads.
One that is killed cannot. So it leaves a note before it prints anything, and takes it away at the
end. The worker finds the notes whose process is gone; a note of a cloud storage is handed to the
uploader, which reads those of living steps as well, to show their logs while they run.

A note is `PID-RANDOM.json`; its process holds a lock on it, which the kernel takes away however
the process ends. The worker renames it to `.dead` when the process is gone. The directory is the
worker's (STEPFLEET_SPOOL), for its user alone, and outlives it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass

VARIABLE = "STEPFLEET_SPOOL"
NOTE_VERSION = 1


@dataclass(frozen=True)
class Note:
    """One capture. Either `marker` is set, or `manager`."""

    pid: int  # for people
    log_key: Sequence[str]
    marker: str = ""  # of local storage: the file that says that the capture is complete
    manager: str = ""  # of cloud storage: Dagster's own description of it, serialised
    v: int = NOTE_VERSION


def directory() -> str:
    return os.environ.get(VARIABLE, "")


def note(log_key: Sequence[str], marker: str = "", manager: str = "") -> Note:
    return Note(os.getpid(), list(log_key), marker, manager)


@contextlib.contextmanager
def kept(note: Note) -> Generator[None, None, None]:
    """Keeps the note until the body has ended without an exception."""
    base = directory()
    if not base:
        yield
        return
    name = os.path.join(base, f"{note.pid}-{secrets.token_hex(4)}")
    fd = os.open(name + ".new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, json.dumps(asdict(note)).encode())
    os.rename(name + ".new", name + ".json")
    number = os.fstat(fd).st_ino
    # After an exception the lock goes with the process: whoever reads the note then finishes it.
    yield
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name + ".json")
    with contextlib.suppress(OSError):
        if os.fstat(fd).st_ino == number:  # the step may have closed it, and opened another
            os.close(fd)


def read(path: str) -> Note | None:
    """Returns the note, or None when it was taken away or is none of ours."""
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        found = Note(**fields)
    except (OSError, ValueError, TypeError):
        return None
    return found if found.v == NOTE_VERSION else None
