"""Captures a step's stdout and stderr without helper processes, and loses nothing to a crash.

Dagster's local manager starts two processes for each stream, to copy the file to the terminal as
well. Here the descriptors are the files: nothing is copied, and what a killed step has printed is
there. Paths, log key, completion marker and storage are Dagster's, so its UI shows them as ever,
and dagster.yaml stays as it is.

A cloud storage (S3, GCS, Azure) captures into a local file and uploads it at the end. That stays
so. What it uploads meanwhile, and after a crash, is not done here but by the worker's uploader:
no thread of ours runs beside user code.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster._core.storage.cloud_storage_compute_log_manager import CloudStorageComputeLogManager
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import (
    IO_TYPE_EXTENSION,
    LocalComputeLogManager,
)
from dagster._serdes import serialize_value

from dagster_stepfleet import spool

seams.verify(seams.LOG_CHECKS)

_log = logging.getLogger("dagster.stepfleet")


def install(instance: Any) -> bool:
    """Redirects the instance's manager if it is one of Dagster's. Returns whether it is."""
    manager: Any = instance.compute_log_manager
    local = type(manager) is LocalComputeLogManager
    cloud = isinstance(manager, CloudStorageComputeLogManager)
    if "capture_logs" not in vars(manager):  # else it has been done before
        if local:
            setattr(manager, "capture_logs", _Local(manager).capture_logs)  # noqa: B010
        elif cloud:
            _install_cloud(manager)
    return local or cloud


def _install_cloud(manager: Any) -> None:
    local: Any = manager.local_manager
    if type(local) is LocalComputeLogManager:
        setattr(local, "capture_logs", _Local(local, notes=False).capture_logs)  # noqa: B010
    described = manager.inst_data
    if described is None or not spool.directory():
        return  # nobody could finish it for us: as stock
    manager.capture_logs = _Cloud(manager, serialize_value(described)).capture_logs
    manager._poll_for_local_upload = _left_to_the_uploader


def _left_to_the_uploader(log_key: Sequence[str]) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


def warm(instance: Any) -> None:
    """Loads what each step would load anew. For the template, which forks.

    The manager itself is made by each step: it looks for credentials, on ECS in a server whose
    connection stays open, and a template that holds one may not fork.
    """
    importlib.import_module(instance.get_ref().compute_logs_data.module_name)
    boto3: Any = sys.modules.get("boto3")
    if boto3 is None or boto3.DEFAULT_SESSION is not None:
        return
    sessions: Any = importlib.import_module("botocore.session")
    used, fresh = sessions.Session(), sessions.Session()
    used.set_credentials("not", "looked for")
    boto3.Session(botocore_session=used, region_name="us-east-1").resource("s3")
    # The models that it has read, which are most of the cost of a client, are for the default one.
    fresh.register_component("data_loader", used.get_component("data_loader"))
    boto3.setup_default_session(botocore_session=fresh)


class _Local:
    """A local manager whose captures are redirections."""

    def __init__(self, manager: LocalComputeLogManager, notes: bool = True) -> None:
        self._manager = manager
        self._notes = notes

    @contextlib.contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        marker: str = self._manager.complete_artifact_path(log_key)
        with self._kept(log_key, marker):
            out, err = (
                self._manager.get_captured_local_path(log_key, IO_TYPE_EXTENSION[stream])
                for stream in (ComputeIOType.STDOUT, ComputeIOType.STDERR)
            )
            with redirected(1, out), redirected(2, err):
                yield CapturedLogContext(log_key)
            with open(marker, "a"):
                pass

    def _kept(self, log_key: Sequence[str], marker: str) -> AbstractContextManager[None]:
        if not self._notes:
            return contextlib.nullcontext()
        return _kept(spool.note(log_key, marker=marker))


class _Cloud:
    """A cloud manager whose captures are noted until they are uploaded."""

    def __init__(self, manager: Any, described: str) -> None:
        self._stock = manager.capture_logs
        self._described = described

    @contextlib.contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        with (
            _kept(spool.note(log_key, manager=self._described)),
            self._stock(log_key) as context,
        ):
            yield context


@contextlib.contextmanager
def _kept(note: spool.Note) -> Generator[None, None, None]:
    """Keeps a note where it can. A step does not fail for want of one."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(spool.kept(note))
        except OSError as err:
            _log.warning(
                "no note of this step's logs in %s (%s): if the step is killed, its last lines "
                "are not uploaded",
                spool.directory(),
                err,
            )
        yield


@contextlib.contextmanager
def redirected(fd: int, path: str) -> Generator[None, None, None]:
    """Lets the descriptor be the file, opened to append, and puts it back."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    saved = os.dup(fd)
    flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    file = _identity(target)
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
        _restore(fd, saved, file)


def _restore(fd: int, saved: int, file: tuple[int, int]) -> None:
    """Puts the descriptor back, unless the step has closed it and its number is another's now: a
    database connection, for example."""
    try:
        ours = _identity(fd) == file
    except OSError:
        ours = True  # closed, and free
    if ours:
        with contextlib.suppress(OSError):  # the step has closed what was saved as well
            os.dup2(saved, fd)
    with contextlib.suppress(OSError):
        os.close(saved)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.flush()
