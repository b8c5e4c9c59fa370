"""The jobs. Nothing in here knows of stepfleet, but for one tag that other executors ignore."""

from typing import Any

from dagster import (
    Config,
    DynamicOut,
    DynamicOutput,
    In,
    JobDefinition,
    Nothing,
    OpDefinition,
    OpExecutionContext,
    RetryPolicy,
    graph,
    job,
    op,
)

from stepfleet_examples import settings
from stepfleet_examples.effects import effect
from stepfleet_examples.work import (
    FAST_SECONDS,
    RECOVER_SECONDS,
    SHORT_SECONDS,
    SLOW_SECONDS,
    work,
)

# --- the mission's three: fast, slow, mixed -------------------------------------------------


@op(tags={"dagster/priority": "5"})
def fast_op(context: OpExecutionContext) -> float:
    """20 s, plus or minus 10."""
    return work(context, FAST_SECONDS)


# A step of minutes that dies with its worker is started once more; one that raises is not.
@op(tags={"stepfleet/lost_step_retries": "1"})
def slow_op(context: OpExecutionContext) -> float:
    """5 minutes, plus or minus 2."""
    return work(context, SLOW_SECONDS)


def _times(definition: OpDefinition, number: int) -> list[Any]:
    """Call an op a number of times inside a graph, under the names op_0, op_1, ..."""
    return [definition.alias(f"{definition.name}_{i}")() for i in range(number)]


@job
def fast() -> None:
    """Several fast ops at a time."""
    _times(fast_op, settings.steps("FAST_OPS", 6))


@job
def slow() -> None:
    """Several slow ops at a time."""
    _times(slow_op, settings.steps("SLOW_OPS", 3))


@job
def mixed() -> None:
    """Fast and slow ops of one run; the fast ones go first where slots are short."""
    _times(fast_op, settings.steps("FAST_OPS", 6))
    _times(slow_op, settings.steps("SLOW_OPS", 3))


# --- shapes ---------------------------------------------------------------------------------


@op
def source(context: OpExecutionContext) -> int:
    """The number 0, after a moment."""
    work(context, SHORT_SECONDS)
    return 0


@op
def add_one(context: OpExecutionContext, number: int) -> int:
    work(context, SHORT_SECONDS)
    return number + 1


@op
def total(context: OpExecutionContext, numbers: list[int]) -> int:
    work(context, SHORT_SECONDS)
    context.log.info(f"total of {len(numbers)} numbers: {sum(numbers)}")
    return sum(numbers)


@job
def chain() -> None:
    """N steps in a line: what a step costs besides its own work."""
    number = source()
    for i in range(1, settings.steps("CHAIN_STEPS", 10)):
        number = add_one.alias(f"add_one_{i}")(number)


@job
def fan_out() -> None:
    """One step, N parallel ones, one that waits for them all."""
    number = source()
    count = settings.steps("FAN_OUT_STEPS", 20)
    total([add_one.alias(f"add_one_{i}")(number) for i in range(count)])


@graph
def two_steps(number: int) -> int:
    """A nested graph: its steps have a path for a key."""
    last: int = add_one.alias("second")(add_one.alias("first")(number))
    return last


@job
def diamond() -> None:
    """Two branches that part and meet; the left one is a nested graph."""
    number = source()
    total([two_steps.alias("left")(number), add_one.alias("right")(number)])


class Pieces(Config):
    """How many pieces `dynamic` makes."""

    count: int = 5


@op(out=DynamicOut(int))
def split(context: OpExecutionContext, config: Pieces) -> list[DynamicOutput[int]]:
    """Decides only when it runs how many steps come next."""
    work(context, SHORT_SECONDS)
    return [DynamicOutput(i, mapping_key=f"piece_{i}") for i in range(config.count)]


@job
def dynamic() -> None:
    """Map over what a step found, then collect."""
    total(split().map(add_one).collect())


# --- failures -------------------------------------------------------------------------------


class FailedOnPurpose(Exception):
    """Raised by the ops that are here to fail."""


@op(retry_policy=RetryPolicy(max_retries=2))
def flaky(context: OpExecutionContext) -> int:
    """Fails on its first attempt, ends well on its second."""
    with effect(context):
        if context.retry_number == 0:
            raise FailedOnPurpose("the first attempt always fails")
        return context.retry_number


@job
def retry() -> None:
    """Dagster's RetryPolicy makes a second attempt, and the run ends well."""
    add_one(flaky())


@op
def fails(context: OpExecutionContext) -> int:
    with effect(context):
        raise FailedOnPurpose("this op always fails")


@job
def failing() -> None:
    """One op fails, what is downstream of it is skipped, what is beside it is not."""
    number = source()
    add_one.alias("beside")(number)
    add_one.alias("skipped")(fails())


@op(retry_policy=RetryPolicy(max_retries=2))
def recoverable(context: OpExecutionContext) -> int:
    """Some seconds of work; an attempt that dies with its worker is made anew."""
    work(context, RECOVER_SECONDS)
    return 1


@op(ins={"after": In(Nothing)}, retry_policy=RetryPolicy(max_retries=2))
def report(context: OpExecutionContext) -> None:
    work(context, SHORT_SECONDS)


@job
def recover() -> None:
    """Kill a worker in the middle of it: the run ends well all the same."""
    report(after=_times(recoverable, settings.steps("RECOVER_STEPS", 6)))


ALL: list[JobDefinition] = [
    fast,
    slow,
    mixed,
    chain,
    fan_out,
    diamond,
    dynamic,
    retry,
    failing,
    recover,
]
SCHEDULED: list[JobDefinition] = [fast, slow, mixed]
