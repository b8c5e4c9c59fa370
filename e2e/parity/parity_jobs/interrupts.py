"""Runs that are cancelled, at every stage of their steps. Their ops wait for ever."""

import signal
import time
from collections.abc import Iterator
from typing import Any

from dagster import (
    Definitions,
    DynamicOut,
    DynamicOutput,
    OpExecutionContext,
    RetryPolicy,
    graph,
    op,
)
from dagster._core.errors import DagsterExecutionInterruptedError

from parity_jobs.case import Case, graph_case, in_one_slot, jobs_of
from parity_jobs.say import say

ONE_AT_A_TIME = "in_process runs one step at a time, and so has other steps going at the cancel"


def wait_for_ever() -> None:
    while True:
        time.sleep(0.05)


@op
def waits() -> int:
    say("waits")
    wait_for_ever()
    return 1


@op
def cleans_up() -> int:
    say("waits")
    try:
        wait_for_ever()
    except DagsterExecutionInterruptedError:
        say("interrupted")
        raise
    finally:
        say("cleaned up")
    return 1


@op
def ignores_sigterm() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("ignores SIGTERM")
    wait_for_ever()
    return 1


@op
def done() -> int:
    say("done before the cancel")
    return 1


@op
def after(numbers: list[int]) -> int:
    return sum(numbers)


@op(retry_policy=RetryPolicy(max_retries=1, delay=600))
def fails_first() -> int:
    say("fails, and waits for its retry")
    raise RuntimeError("fails first")


@op(out=DynamicOut(int))
def split_in_twelve() -> Iterator[DynamicOutput[int]]:
    for i in range(12):
        yield DynamicOutput(i, mapping_key=f"k{i}")


@op
def waits_with(context: OpExecutionContext, number: int) -> int:
    say("waits")
    wait_for_ever()
    return number


@graph
def cancel_running():
    after([waits.alias("waits_0")(), waits.alias("waits_1")(), done()])


@graph
def cancel_cleans_up():
    after([cleans_up()])


@graph
def cancel_ignored():
    after([ignores_sigterm()])


@graph
def cancel_queued():
    after([waits.alias(f"waits_{i}")() for i in range(4)])


@op(pool="parity_leased")
def waits_pooled() -> int:
    say("never printed")
    return 1


@graph
def cancel_leased():
    # Dagster does not launch a run of which no step can have a slot: done needs none.
    after([*(waits_pooled.alias(f"waits_{i}")() for i in range(2)), done()])


@op(pool="parity_cancelled")
def waits_in_pool(context: OpExecutionContext) -> int:
    """Waits for ever in the first of the case's two runs."""
    if context.run.tags.get("run") != "second":
        wait_for_ever()
    return 1


@graph
def cancel_pooled():
    after([waits_in_pool.alias(f"waits_{i}")() for i in range(3)])


@graph
def cancel_in_retry_wait():
    after([fails_first(), done()])


@graph
def cancel_fan_out():
    after(split_in_twelve().map(waits_with).collect())


@graph
def cancel_at_once():
    after([waits(), done()])


def cancelled(graph_definition: Any, *, at: dict[str, int], **kwargs: Any) -> Case:
    """`at`: the events that the run must have before it is cancelled."""
    options = {"at": at, "quiet_seconds": 3.0, **kwargs.pop("options", {})}
    settings: dict[str, Any] = {
        "status": "CANCELED",
        "drive": "cancel",
        "references": ("multiprocess",),
        "why": ONE_AT_A_TIME,
        "masks": frozenset({"interrupt"}),
        **kwargs,
    }
    return graph_case(graph_definition, options=options, **settings)


CASES: tuple[Case, ...] = (
    cancelled(cancel_running, at={"STEP_START": 3, "STEP_SUCCESS": 1}, quick=True),
    cancelled(cancel_cleans_up, at={"STEP_START": 1}, launched=True),
    cancelled(cancel_ignored, at={"STEP_START": 1}, counts={"STEP_FAILURE": 1}),
    cancelled(cancel_queued, at={"STEP_START": 1}, config_of=in_one_slot()),
    cancelled(
        cancel_leased,
        at={"STEP_SUCCESS": 1},
        drive="cancel_leased",
        alone=True,
        counts={"STEP_START": 1},
        options={"pool": "parity_leased", "leased": 2},
    ),
    cancelled(
        cancel_pooled,
        at={"STEP_START": 2},
        status="SUCCESS",
        drive="cancel_pooled",
        counts={"STEP_FAILURE": 2, "STEP_SUCCESS": 4},
        options={"pool": "parity_cancelled", "slots": 2},
    ),
    cancelled(cancel_in_retry_wait, at={"STEP_UP_FOR_RETRY": 1, "STEP_SUCCESS": 1}),
    cancelled(cancel_fan_out, at={"STEP_START": 5}),
    cancelled(
        cancel_at_once,
        at={"STEP_START": 2, "STEP_SUCCESS": 1},
        options={"policy": "MARK_AS_CANCELED_IMMEDIATELY"},
    ),
)


def definitions() -> Definitions:
    return jobs_of(CASES)
