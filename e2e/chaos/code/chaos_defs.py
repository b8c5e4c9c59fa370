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
from collections.abc import Mapping, Sequence
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
# What a step takes, in seconds: most are short, a few are there to be hit.
SHORT, LONG, LONG_SHARE = 0.5, 4.0, 0.12


def chance(*parts: object) -> float:
    """A number from 0 to 1 that follows from the parts."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def note(**fields: Any) -> None:
    if not HISTORY:
        return
    line = json.dumps({"t": time.time_ns(), "pid": os.getpid(), **fields}, separators=(",", ":"))
    fd = os.open(HISTORY, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, line.encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)


class Witness:
    """Notes what a client of the server asks for and hears, around its own methods."""

    start = Client.start
    submit = Client.submit


def start(self: Client) -> None:
    if self._stream is None:
        note(f="open", type="invoke", run=self.run_id)
    Witness.start(self)


def submit(
    self: Client,
    identity: str,
    payloads: Mapping[str, str],
    tasks: Sequence[Mapping[str, Any]],
    **options: Any,
) -> list[dict[str, Any]]:
    keys = [[str(task["step_key"]), int(task["attempt"])] for task in tasks]
    call = time.monotonic_ns()
    note(f="submit", type="invoke", call=call, run=self.run_id, keys=keys)
    try:
        receipts = Witness.submit(self, identity, payloads, tasks, **options)
    except BaseException as err:
        # Only a refusal says that nothing was done.
        kind = "fail" if isinstance(err, ServerRefused) else "info"
        note(f="submit", type=kind, call=call, run=self.run_id, keys=keys, error=repr(err)[:300])
        raise
    told = [
        {
            "id": int(r.get("task_id") or 0),
            "state": str(r.get("state") or ""),
            "error": str(r.get("error") or "")[:200],
        }
        for r in receipts
    ]
    note(f="submit", type="ok", call=call, run=self.run_id, keys=keys, receipts=told)
    return receipts


if HISTORY and Client.submit is not submit:
    Client.start = start  # type: ignore[method-assign]
    Client.submit = submit  # type: ignore[method-assign,assignment]


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
    ],
)
