"""The effect log: what user code did, written by user code, outside Dagster and stepfleet.

A system cannot be its own witness. Each op appends one JSON line when its body begins and one
when it ends, to the file that STEPFLEET_EFFECT_LOG names; verdict.py then says whether an attempt
ran twice or not at all. Without the variable nothing is written.

A line is one write(2) to a file opened with O_APPEND, so lines of many processes never mix and a
kill -9 leaves either a whole line or none. It outlives processes; with STEPFLEET_EFFECT_FSYNC=1
each line is forced to the disk, and it outlives the host.
"""

import json
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from dagster import AssetCheckExecutionContext, AssetExecutionContext, OpExecutionContext

Event = Literal["begin", "end", "error"]
Context = OpExecutionContext | AssetExecutionContext | AssetCheckExecutionContext


def op_context(context: Context) -> OpExecutionContext:
    """The op's own context, also of an asset or a check."""
    return context if isinstance(context, OpExecutionContext) else context.op_execution_context


def step_key(context: Context) -> str:
    """The step's key as the executor knows it: with graph path and dynamic mapping key."""
    return op_context(context).get_step_execution_context().step.key


def attempt(context: Context) -> int:
    """The attempt that stepfleet gave this process, else Dagster's own retry count."""
    given = os.environ.get("STEPFLEET_ATTEMPT", "")
    return int(given) if given else op_context(context).retry_number


@contextmanager
def effect(context: Context) -> Iterator[None]:
    """Wrap an op's body: "begin" before it, "end" when it ended well, "error" when it raised.

    A process that is killed writes neither of the last two.
    """
    path = os.environ.get("STEPFLEET_EFFECT_LOG", "")
    if not path:
        yield
        return
    _append(path, _line(context, "begin"))
    try:
        yield
    except BaseException:
        _append(path, _line(context, "error"))
        raise
    _append(path, _line(context, "end"))


def _line(context: Context, event: Event) -> bytes:
    record = {
        "event": event,
        "run_id": op_context(context).run_id,
        "step_key": step_key(context),
        "attempt": attempt(context),
        "fence": os.environ.get("STEPFLEET_FENCE", ""),
        "pid": os.getpid(),
        "born": _born(),
        "worker": os.environ.get("STEPFLEET_WORKER", ""),
        "at": time.time(),
        "op": op_context(context).op_def.name,
    }
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _born() -> int:
    """When this process began, in clock ticks since its host did; 0 where /proc does not say. With
    the number of the process it tells it from all others.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0


def _append(path: str, line: bytes) -> None:
    if len(line) >= select.PIPE_BUF:
        raise ValueError(f"effect log line of {len(line)} bytes: want less than {select.PIPE_BUF}")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        written = os.write(fd, line)
        if os.environ.get("STEPFLEET_EFFECT_FSYNC") == "1":
            os.fsync(fd)
    finally:
        os.close(fd)
    if written != len(line):
        raise OSError(f"effect log {path}: wrote {written} of {len(line)} bytes")
