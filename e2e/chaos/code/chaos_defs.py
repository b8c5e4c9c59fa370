"""The load of a chaos run: jobs of short steps with effects, and a witness of what was submitted.

Two logs are written outside the system under test, a line at a time, forced to the disk: each step
says in the effect log that it begins and ends (stepfleet_examples.effects), and each executor says
in the client history that it opened a run, and what it asked for and heard of each submit. How long
a step takes follows from its key.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from dagster import (
    Definitions,
    JobDefinition,
    OpDefinition,
    OpExecutionContext,
    RetryPolicy,
    RetryRequested,
    job,
    op,
)
from dagster_stepfleet import stepfleet_executor
from dagster_stepfleet.client import Client, ServerRefused
from stepfleet_examples.effects import effect, step_key

HISTORY = os.environ.get("STEPFLEET_CHAOS_HISTORY", "")
WORKERS = os.environ.get("STEPFLEET_CHAOS_WORKERS", "")
# What a step takes, in seconds: most are short, a few are there to be hit.
SHORT, LONG, LONG_SHARE = 0.5, 4.0, 0.12
# The steps of an act: long enough to be met, and to be seen where they should not be any more.
SLOW, TIMEOUT = 10.0, "3"


def chance(*parts: object) -> float:
    """A number from 0 to 1 that follows from the parts."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def append(path: str, fields: Mapping[str, Any]) -> None:
    line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, line)
        os.fsync(fd)
    finally:
        os.close(fd)


def note(kind: str, f: str, call: int, run: str, key: tuple[str, int], **answer: Any) -> None:
    """Appends a line of the client history, of one task; internal/audit reads it."""
    fields = {
        "at": datetime.now(timezone.utc).isoformat(),
        "process": f"executor-{os.getpid()}",
        "type": kind,
        "f": f,
        "op": call,
        "run_id": run,
        "step_key": key[0],
        "attempt": key[1],
    }
    append(HISTORY, {**fields, **answer})


class Asked:
    """What a client of the server asks for, until it hears an answer."""

    def __init__(self, f: str, run: str, keys: Sequence[tuple[str, int]]) -> None:
        self.f, self.run = f, run
        self.ops = [(uuid.uuid4().int >> 66, key) for key in keys]

    def __enter__(self) -> "Asked":
        for call, key in self.ops:
            note("invoke", self.f, call, self.run, key)
        return self

    def answered(self, answers: Sequence[Mapping[str, Any]]) -> None:
        for (call, key), told in zip(self.ops, answers, strict=True):
            if told.get("error"):
                note("fail", self.f, call, self.run, key, error=str(told["error"])[:300])
                continue
            names = ("task_id", "known", "state", "epoch")
            fields = {name: told[name] for name in names if name in told}
            note("ok", self.f, call, self.run, key, **fields)

    def __exit__(self, _: object, err: BaseException | None, __: object) -> None:
        # Only a refusal says that nothing was done.
        kind = "fail" if isinstance(err, ServerRefused) else "info"
        for call, key in self.ops if err is not None else ():
            note(kind, self.f, call, self.run, key, error=repr(err)[:300])


def witness() -> None:
    """Puts the history around the client's own methods, once."""
    own_start, own_submit, own_cancel, own_close = (
        Client.start,
        Client.submit,
        Client.cancel,
        Client.close_run,
    )

    def start(self: Client) -> None:
        if self._stream is None:
            append(WORKERS, {"run": self.run_id, "pid": os.getpid()})
        own_start(self)

    def submit(self: Client, identity: str, payloads: Any, tasks: Any, **options: Any) -> Any:
        keys = [(str(task["step_key"]), int(task["attempt"])) for task in tasks]
        with Asked("submit", self.run_id, keys) as asked:
            receipts = own_submit(self, identity, payloads, tasks, **options)
            asked.answered(receipts)
        return receipts

    def cancel(self: Client, tasks: Any, reason: str, **options: Any) -> None:
        keys = [("", 0)] if tasks is None else list(tasks)
        with Asked("cancel", self.run_id, keys) as asked:
            own_cancel(self, tasks, reason, **options)
            asked.answered([{}] * len(keys))

    def close_run(self: Client, reason: str, **options: Any) -> None:
        with Asked("close", self.run_id, [("", 0)]) as asked:
            own_close(self, reason, **options)
            asked.answered([{"epoch": self.epoch()}])

    for name, method in {
        "start": start,
        "submit": submit,
        "cancel": cancel,
        "close_run": close_run,
    }.items():
        setattr(Client, name, method)


if HISTORY and not hasattr(Client, "witnessed"):
    witness()
    Client.witnessed = True  # type: ignore[attr-defined]


def work(context: OpExecutionContext) -> int:
    key = step_key(context)
    with effect(context):
        draw = chance(context.run_id, key, context.retry_number)
        seconds = LONG if draw < LONG_SHARE else SHORT * chance(key, draw)
        time.sleep(seconds)
    return 1


def worker_op(name: str, retries: int) -> OpDefinition:
    policy = RetryPolicy(max_retries=retries) if retries else None

    @op(name=name, retry_policy=policy)
    def run(context: OpExecutionContext) -> int:
        return work(context)

    return run


@op(retry_policy=RetryPolicy(max_retries=4))
def join(context: OpExecutionContext, parts: list[int]) -> int:
    work(context)
    return sum(parts)


@op(retry_policy=RetryPolicy(max_retries=4))
def follow(context: OpExecutionContext, before: int) -> int:
    return before + work(context)


@op(retry_policy=RetryPolicy(max_retries=4))
def flaky(context: OpExecutionContext) -> int:
    """A third of them fails once."""
    if context.retry_number == 0 and chance(context.run_id, step_key(context)) < 1 / 3:
        with effect(context):
            raise RetryRequested(max_retries=4)
    return work(context)


@op
def plain_join(context: OpExecutionContext, parts: list[int]) -> int:
    work(context)
    return sum(parts)


@op
def lasting(context: OpExecutionContext) -> int:
    """Ends by the clock: one that has stood still for longer is at its end when it wakes."""
    end = time.monotonic() + SLOW
    with effect(context):
        time.sleep(max(0.0, end - time.monotonic()))
    return 1


@op(retry_policy=RetryPolicy(max_retries=4), tags={"stepfleet/timeout": TIMEOUT})
def hasty_op(context: OpExecutionContext) -> int:
    """Its first attempt runs over its timeout."""
    with effect(context):
        if context.retry_number == 0:
            time.sleep(10 * int(TIMEOUT))
    return 1


def fan(name: str, width: int, each: OpDefinition, last: OpDefinition) -> JobDefinition:
    @job(name=name, executor_def=stepfleet_executor)
    def graph() -> None:
        last([each.alias(f"{each.name}_{i}")() for i in range(width)])

    return graph


retried = worker_op("retried", 4)
plain = worker_op("plain", 0)
first = worker_op("first", 4)


@job(executor_def=stepfleet_executor.configured({"lost_step_retries": 4}, name="patient"))
def chain() -> None:
    value = first()
    for i in range(5):
        value = follow.alias(f"follow_{i}")(value)


defs = Definitions(
    jobs=[
        fan("wide", 20, retried, join),
        chain,
        fan("shaky", 10, flaky, join),
        # Without retries: a step that is lost fails the run.
        fan("bare", 8, plain, plain_join),
        fan("slow", 9, lasting, plain_join),
        fan("hasty", 4, hasty_op, join),
    ],
)
