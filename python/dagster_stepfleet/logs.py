"""Captures a step's stdout and stderr without helper processes.

Dagster's local manager starts two processes for each stream, to copy the file to the terminal as
well. Here the descriptors are the files: nothing is copied, and what a killed step has printed is
there. Paths, log key and completion marker are Dagster's, so its UI shows them as ever. Managers
other than the local one are left as they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Generator, Sequence
from typing import Any, cast

_log = logging.getLogger("dagster.stepfleet")


def install(instance: Any) -> bool:
    """Redirects the instance's local manager. Returns whether it has one."""
    try:
        from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
        from dagster._core.storage.local_compute_log_manager import (
            IO_TYPE_EXTENSION,
            LocalComputeLogManager,
        )
    except ImportError as err:
        _log.warning("stepfleet leaves Dagster's log capture as it is: %s", err)
        return False
    manager: Any = instance.compute_log_manager
    if type(manager) is not LocalComputeLogManager:
        return False

    @contextlib.contextmanager
    def capture_logs(log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        out = manager.get_captured_local_path(log_key, IO_TYPE_EXTENSION[ComputeIOType.STDOUT])
        err = manager.get_captured_local_path(log_key, IO_TYPE_EXTENSION[ComputeIOType.STDERR])
        with redirected(1, out), redirected(2, err):
            yield CapturedLogContext(log_key)
        # As Dagster does: the marker is left only when the capture has ended well.
        with open(manager.complete_artifact_path(log_key), "a"):
            pass

    cast("Any", manager).capture_logs = capture_logs
    return True


@contextlib.contextmanager
def redirected(fd: int, path: str) -> Generator[None, None, None]:
    """Lets the descriptor be the file, opened to append, and puts it back."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    saved = os.dup(fd)
    flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(target, fd)
    os.close(target)
    # A step that is killed must not take its last lines with it.
    stream = sys.stdout if fd == 1 else sys.stderr
    with contextlib.suppress(AttributeError, ValueError, OSError):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        yield
    finally:
        flush()
        os.dup2(saved, fd)
        os.close(saved)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.flush()
