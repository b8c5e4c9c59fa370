"""Jobs of the end-to-end tests. What an op does is in its config, so that a test decides it.

An op notes its begin in the effect log, then waits for its release file (a signal that the test
gives) or sleeps, then notes its end.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from dagster import (
    Config,
    ConfigurableResource,
    Definitions,
    DynamicOut,
    DynamicOutput,
    ExpectationResult,
    HookContext,
    In,
    InitResourceContext,
    JobDefinition,
    Nothing,
    OpDefinition,
    OpExecutionContext,
    Out,
    Output,
    RetryPolicy,
    RetryRequested,
    job,
    op,
    success_hook,
)
from dagster_stepfleet import stepfleet_executor
from dagster_stepfleet.storage import storages
from stepfleet_examples.effects import effect, step_key

POLL_SECONDS = 0.02


class Behaviour(Config):
    """What an op does, in this order."""

    ignore_sigterm: bool = False
    exit_status: int = -1  # os._exit with it
    crash: bool = False  # read address 0
    fail_attempts: int = 0  # raise in this many attempts
    retry_seconds: float = 0.0  # ... a request for a retry after so long
    events: int = 0  # report so many expectations
    seconds: float = 0.0  # sleep
    release: str = ""  # wait for this file
    thread_seconds: float = 0.0  # leave a thread that sleeps
    hook_release: str = ""  # the success hook of job one_hooked waits for this file


def behave(context: OpExecutionContext, config: Behaviour) -> None:
    key = step_key(context)
    if config.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with effect(context):
        print(f"stdout of {key}, attempt {context.retry_number}", flush=True)
        print(f"stderr of {key}, attempt {context.retry_number}", file=sys.stderr, flush=True)
        if config.exit_status >= 0:
            os._exit(config.exit_status)
        if config.crash:
            ctypes.string_at(0)
        if context.retry_number < config.fail_attempts:
            if config.retry_seconds:
                raise RetryRequested(seconds_to_wait=config.retry_seconds)
            raise RuntimeError(f"attempt {context.retry_number} fails on purpose")
        for number in range(config.events):
            context.log_event(ExpectationResult(success=True, label=str(number)))
        if config.seconds:
            time.sleep(config.seconds)
        await_file(config.release)
        if config.thread_seconds:
            threading.Thread(target=time.sleep, args=(config.thread_seconds,)).start()


def await_file(path: str) -> None:
    while path and not os.path.exists(path):
        time.sleep(POLL_SECONDS)


@op
def begin(context: OpExecutionContext, config: Behaviour) -> int:
    behave(context, config)
    return 0


@op
def step(context: OpExecutionContext, config: Behaviour, number: int) -> int:
    behave(context, config)
    return number + 1


@op
def collect(context: OpExecutionContext, config: Behaviour, numbers: list[int]) -> int:
    behave(context, config)
    print(f"sum {sum(numbers)}", flush=True)
    return sum(numbers)


@op
def work(context: OpExecutionContext, config: Behaviour) -> None:
    behave(context, config)


@op(tags={"e2e/limited": "yes"})
def limited(context: OpExecutionContext, config: Behaviour) -> None:
    behave(context, config)


@op(retry_policy=RetryPolicy(max_retries=1))
def retried(context: OpExecutionContext, config: Behaviour) -> None:
    behave(context, config)


@op(ins={"before": In(Nothing)})
def after(context: OpExecutionContext, config: Behaviour) -> None:
    behave(context, config)


class Pieces(Config):
    count: int = 5


@op(out=DynamicOut(int))
def split(context: OpExecutionContext, config: Pieces) -> list[DynamicOutput[int]]:
    with effect(context):
        return [DynamicOutput(i, mapping_key=str(i)) for i in range(config.count)]


@op
def connect(context: OpExecutionContext, number: int) -> int:
    """Returns the PostgreSQL process that serves Dagster's event log in this step."""
    with effect(context), storages(context.instance)[0]._connect() as connection:
        driver = connection.connection.dbapi_connection
        assert driver.info.host.startswith("/"), f"connected to {driver.info.host}, not to a relay"
        return int(driver.info.backend_pid)


@op
def count_connections(context: OpExecutionContext, found: list[int]) -> None:
    """Fails unless connections were handed on from step to step."""
    with effect(context):
        used = len(set(found))
        assert used <= len(found) / 2, f"{len(found)} steps had {used} connections"


class Flaky(ConfigurableResource):
    """Cannot be set up the first times; the file has a byte for each try."""

    tries: str
    failures: int
    release: str = ""  # wait for this file first

    def setup_for_execution(self, context: InitResourceContext) -> None:
        with open(self.tries, "ab") as file:
            file.write(b".")
        await_file(self.release)
        if os.path.getsize(self.tries) <= self.failures:
            raise RuntimeError("the resource fails on purpose")


@op
def guarded(context: OpExecutionContext, config: Behaviour, flaky: Flaky) -> None:
    behave(context, config)


@op(retry_policy=RetryPolicy(max_retries=1))
def guarded_retried(context: OpExecutionContext, config: Behaviour, flaky: Flaky) -> None:
    behave(context, config)


@op(out={"left": Out(int, is_required=False), "right": Out(int, is_required=False)})
def choose(context: OpExecutionContext) -> Iterator[Output[int]]:
    with effect(context):
        yield Output(0, "left")


@success_hook
def deadly(context: HookContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@job(hooks={deadly})
def killed_in_a_hook() -> None:
    """work ends well, and its process dies afterwards."""
    work()


@job
def branches() -> None:
    """choose gives left and not right."""
    left, right = choose()
    step.alias("left")(left)
    step.alias("right")(right)


@job
def mapped() -> None:
    """split decides how many steps come next, and collect waits for all of them."""
    collect(split().map(step).collect())


@job
def connections() -> None:
    """What connections to PostgreSQL the steps of split have."""
    count_connections(split().map(connect).collect())


@job(resource_defs={"flaky": Flaky.configure_at_launch()})
def one_guarded() -> None:
    guarded()


@job(resource_defs={"flaky": Flaky.configure_at_launch()})
def one_guarded_retried() -> None:
    guarded_retried()


@job
def chain() -> None:
    """begin, step_1, step_2, step_3 in a line."""
    number = begin()
    for i in range(1, 4):
        number = step.alias(f"step_{i}")(number)


@job
def fan() -> None:
    """begin, then step_0 to step_11 at once, then collect."""
    number = begin()
    collect([step.alias(f"step_{i}")(number) for i in range(12)])


@job
def dynamic() -> None:
    """split decides how many steps come next."""
    split().map(step)


@job
def eight_then_after() -> None:
    """work_0 to work_7 at once, then after."""
    after([work.alias(f"work_{i}")() for i in range(8)])


@job
def limited_beside_others() -> None:
    """limited_0 to limited_2 at once, if they may; and work_0, then after."""
    for i in range(3):
        limited.alias(f"limited_{i}")()
    after([work.alias("work_0")()])


@success_hook
def waits(context: HookContext) -> None:
    """Keeps the step's process after its STEP_SUCCESS is in Dagster's log."""
    await_file(context.op_config["hook_release"])


@job(hooks={waits})
def one_hooked() -> None:
    work.alias("work_0")()


def parallel(name: str, definition: OpDefinition, count: int) -> JobDefinition:
    """A job of independent ops NAME_0, NAME_1, ..."""

    @job(name=name)
    def made() -> None:
        for i in range(count):
            definition.alias(f"{definition.name}_{i}")()

    return made


def tagged(name: str, op_name: str, *tags: dict[str, str]) -> JobDefinition:
    """A job of independent ops OP_NAME_0, OP_NAME_1, ..., each with tags of its own."""

    def made(number: int, own: dict[str, str]) -> OpDefinition:
        @op(name=f"{op_name}_{number}", tags=own)
        def work_as_tagged(context: OpExecutionContext, config: Behaviour) -> None:
            behave(context, config)

        return work_as_tagged

    definitions = [made(number, own) for number, own in enumerate(tags)]

    @job(name=name)
    def of_tagged() -> None:
        for definition in definitions:
            definition()

    return of_tagged


defs = Definitions(
    jobs=[
        chain,
        fan,
        dynamic,
        eight_then_after,
        limited_beside_others,
        branches,
        mapped,
        connections,
        killed_in_a_hook,
        one_guarded,
        one_guarded_retried,
        one_hooked,
        parallel("one", work, 1),
        parallel("two", work, 2),
        parallel("one_retried", retried, 1),
        parallel("three", work, 3),
        parallel("six", work, 6),
        parallel("six_retried", retried, 6),
        parallel("twenty", work, 20),
        tagged("one_timed", "timed", {"stepfleet/timeout": "1"}),
        tagged(
            "three_urgent",
            "urgent",
            {"stepfleet/queue": "small", "stepfleet/priority": "5"},
            {"dagster-celery/queue": "small", "dagster-celery/priority": "5"},
            {"dagster-celery/queue": "small", "dagster/priority": "5"},
        ),
    ],
    executor=stepfleet_executor,
)
