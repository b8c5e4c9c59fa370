"""The step process's side of the two gates.

Before user code starts, and before each event that decides something is written, the process asks
its Go parent whether the task is still its own. Refused, or without a parent, it ends at once and
writes nothing more: an exception would be caught by Dagster, or by user code, and reported.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, NoReturn

from dagster_stepfleet import attempts
from dagster_stepfleet.frames import Frame, FrameError, FrameSocket

# The status of a process that was refused; the parent knows it.
REFUSED_STATUS = 3

# What moves a run on, or what others act upon. Dagster's type names, as in EventLogEntry.
GATED_EVENTS = frozenset(
    {
        "STEP_OUTPUT",
        "STEP_SUCCESS",
        "STEP_FAILURE",
        "STEP_UP_FOR_RETRY",
        "RESOURCE_INIT_FAILURE",
        "ASSET_MATERIALIZATION",
        "ASSET_OBSERVATION",
        "ASSET_CHECK_EVALUATION",
    }
)

# A run worker also speaks for its run. A step that its executor gives up is in the list above, and
# so are the steps of an executor that runs them in the run worker itself.
RUN_EVENTS = GATED_EVENTS | {
    "PIPELINE_START",
    "PIPELINE_SUCCESS",
    "PIPELINE_FAILURE",
    "PIPELINE_CANCELING",
    "PIPELINE_CANCELED",
}


class Parent:
    """The Go worker at the other end of the socket. Safe for use by several threads, and by the
    processes that the step forks."""

    def __init__(self, frames: FrameSocket) -> None:
        self._frames = frames
        # Held by a thread for a question and its answer. One that forks takes it, too.
        self._lock = threading.RLock()
        # From the first fork on, a file whose lock a process holds for a question and its answer.
        self._turns: int | None = None

    def receive(self) -> Frame | None:
        return self._frames.receive()

    def send(self, frame: Frame) -> None:
        with self._turn():
            self._question(frame)

    def ask(self, frame: Frame) -> None:
        """Returns when the parent has granted it; otherwise the process ends. A step of whose
        processes another one was refused is refused itself at its next question."""
        with self.asking(frame):
            pass

    @contextlib.contextmanager
    def asking(self, frame: Frame) -> Generator[None, None, None]:
        """Asks, and has the answer at the end of the block, which ends the process if it is no."""
        with self._turn():
            self._question(frame)
            try:
                yield
            finally:
                self._answer()

    def survive_forks(self) -> None:
        """Lets processes that this one forks from now on ask for themselves."""
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork,
            after_in_child=self._renew_lock,
        )

    def _before_fork(self) -> None:
        self._lock.acquire()
        if self._turns is None:
            self._turns = os.memfd_create("stepfleet-turns")

    def _after_fork(self) -> None:
        self._lock.release()

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def _turn(self) -> Generator[None, None, None]:
        with self._lock:
            turns = self._turns
            if turns is not None:
                fcntl.lockf(turns, fcntl.LOCK_EX)
            try:
                yield
            finally:
                if turns is not None:
                    fcntl.lockf(turns, fcntl.LOCK_UN)

    def _question(self, frame: Frame) -> None:
        try:
            self._frames.send(frame)
        except OSError:
            _leave()

    def _answer(self) -> None:
        try:
            answer = self._frames.receive()
        except (OSError, FrameError):
            _leave()
        if answer is None or answer.get("op") != "granted":
            _leave()


def _leave() -> NoReturn:
    os._exit(REFUSED_STATUS)


def guard(
    storage: Any,
    parent: Parent,
    gated_events: frozenset[str] = GATED_EVENTS,
    attempt: int | None = None,
) -> None:
    """Puts the event gate before the storage's writes, for this object's whole life. Of a step,
    what is gated gets the number of its attempt."""
    store_event: Callable[[Any], None] = storage.store_event
    store_event_batch: Callable[[Sequence[Any]], None] = storage.store_event_batch

    def marked(event: Any) -> Any:
        if attempt is None or _kind(event) not in gated_events:
            return event
        return attempts.mark(event, attempt)

    def gated(event: Any) -> None:
        kind = _kind(event)
        if kind in gated_events:
            parent.ask({"op": "gate", "event": kind})
        store_event(marked(event))

    def gated_batch(events: Sequence[Any]) -> None:
        for kind in {_kind(event) for event in events} & gated_events:
            parent.ask({"op": "gate", "event": kind})
        store_event_batch([marked(event) for event in events])

    storage.store_event = gated
    storage.store_event_batch = gated_batch


def _kind(event: Any) -> str:
    dagster_event = event.dagster_event
    return dagster_event.event_type_value if dagster_event is not None else ""
