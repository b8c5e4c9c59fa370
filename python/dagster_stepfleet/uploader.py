"""Uploads the logs of steps that still run, and of steps that were killed.

A worker starts `python -m dagster_stepfleet.host uploader` when its spool has notes for it, and at
most one for a spool. It goes by the notes (spool.py) and by Dagster's own log manager, which each
note describes, so every storage that Dagster can upload to is served. Once there has been nothing
to do for a while it exits; memory is dear on a worker.
"""

from __future__ import annotations

import contextlib
import glob
import os
import select
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster._core.storage.compute_log_manager import ComputeIOType, ComputeLogManager
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION
from dagster._serdes import ConfigurableClassData, deserialize_value

from dagster_stepfleet import spool
from dagster_stepfleet.frames import FrameSocket

# Between uploads of a step that prints, where dagster.yaml has no upload_interval.
DEFAULT_INTERVAL_SECONDS = 10.0
# Dagster uploads a log whole each time. A long one may take this share of the time.
_UPLOAD_SHARE = 0.1
# Between looks at the spool when nobody says that there is news.
_LOOK_SECONDS = 2.0
# Without anything to do for this long the process ends.
_IDLE_SECONDS = 60.0
_RETRY_FIRST_SECONDS = 1.0
_RETRY_MAX_SECONDS = 30.0

_STREAMS = (ComputeIOType.STDOUT, ComputeIOType.STDERR)


@dataclass
class _Work:
    """What is known of one note between looks."""

    due: float = 0.0
    uploaded: dict[ComputeIOType, int] = field(default_factory=dict[ComputeIOType, int])
    failures: int = 0


class Uploader:
    """Does what the notes of one spool ask for. `serve` loops; `look` is one round."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._managers: dict[str, Any] = {}
        self._work: dict[str, _Work] = {}

    def serve(self, frames: FrameSocket) -> None:
        """Works until the worker says stop or is gone, or there is nothing more to do."""
        idle_since = time.monotonic()
        while True:
            if self.look():
                idle_since = time.monotonic()
            if time.monotonic() - idle_since > _IDLE_SECONDS:
                return
            if not select.select([frames.sock], [], [], self._pause())[0]:
                continue
            if not frames.fill():
                return  # without a worker it does nothing: the next one starts another
            while (frame := frames.take()) is not None:
                if frame["op"] == "stop":
                    self.look(last=True)
                    return

    def look(self, last: bool = False) -> bool:
        """Does what is due, `last` of what is due at all. Returns whether there are notes."""
        found = glob.glob(os.path.join(glob.escape(self._directory), "*.json"))
        found += glob.glob(os.path.join(glob.escape(self._directory), "*.dead"))
        notes = {path: spool.read(path) for path in sorted(found)}
        mine = {path: note for path, note in notes.items() if note is not None and note.manager}
        self._work = {path: self._work.get(path) or _Work() for path in mine}
        for path, note in mine.items():
            work = self._work[path]
            dead = path.endswith(".dead")
            if work.due <= time.monotonic() or (last and dead):
                self._do(path, note, work, dead)
        return bool(mine)

    def _pause(self) -> float:
        now = time.monotonic()
        dues = [work.due - now for work in self._work.values()]
        return max(0.0, min([_LOOK_SECONDS, *dues]))

    def _do(self, path: str, note: spool.Note, work: _Work, dead: bool) -> None:
        began = time.monotonic()
        try:
            manager = self._manager(note)
            interval = float(manager.upload_interval or DEFAULT_INTERVAL_SECONDS)
            age = time.time() - os.stat(path).st_mtime
            if dead:
                finish(manager, note.log_key)
                os.unlink(path)
            elif age < interval:  # it may end before its log is worth an upload
                work.due = began + interval - age
                return
            else:
                upload_new(manager, note.log_key, work.uploaded)
        except Exception as err:  # the storage is away, or refuses us: both may end
            if not os.path.exists(path):
                return  # the step has ended, and has seen to it
            pause = min(_RETRY_FIRST_SECONDS * 2**work.failures, _RETRY_MAX_SECONDS)
            work.failures += 1
            work.due = time.monotonic() + pause
            if work.failures == 1:
                _say(f"the logs {'/'.join(note.log_key)} cannot be uploaded, trying again: {err!r}")
            return
        if work.failures:
            _say(f"the logs {'/'.join(note.log_key)} are uploaded, after {work.failures} failures")
        now = time.monotonic()
        work.failures = 0
        work.due = now + max(interval, (now - began) / _UPLOAD_SHARE)

    def _manager(self, note: spool.Note) -> Any:
        manager = self._managers.get(note.manager)
        if manager is None:
            described = deserialize_value(note.manager, ConfigurableClassData)
            base: Any = ComputeLogManager
            manager = described.rehydrate(as_type=base)
            self._managers = {note.manager: manager}  # a deployment has one
        return manager


def upload_new(manager: Any, log_key: Any, uploaded: dict[ComputeIOType, int]) -> None:
    """Uploads what a living step has printed, where it has printed more since the last time."""
    limit = seams.upload_limit()
    for stream in _STREAMS:
        path = manager.local_manager.get_captured_local_path(log_key, IO_TYPE_EXTENSION[stream])
        # The step may end meanwhile, upload its files itself and take them away.
        with contextlib.suppress(FileNotFoundError):
            size = os.stat(path).st_size
            size = min(size, limit or size)  # beyond the limit nothing is ever uploaded
            if size > uploaded.get(stream, 0):
                seams.upload_part(manager, log_key, stream, path, size == limit)
                uploaded[stream] = size


def finish(manager: Any, log_key: Any) -> None:
    """Does for a step that is gone what Dagster does at the end of a capture."""
    for stream in _STREAMS:
        path = manager.local_manager.get_captured_local_path(log_key, IO_TYPE_EXTENSION[stream])
        if os.path.exists(path):  # or the step had uploaded it, and was killed just then
            manager.upload_to_cloud_storage(log_key, stream)
    manager.local_manager.delete_logs(log_key=log_key)


def _say(text: str) -> None:
    print(f"stepfleet: {text}", file=sys.stderr, flush=True)
