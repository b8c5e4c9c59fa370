"""Retries, and every place where a step can fail."""

from collections.abc import Iterator

from dagster import (
    Backoff,
    Config,
    DagsterType,
    Definitions,
    DynamicOut,
    DynamicOutput,
    Failure,
    HookContext,
    In,
    InitResourceContext,
    InputContext,
    IOManager,
    Jitter,
    MetadataValue,
    OpExecutionContext,
    Out,
    OutputContext,
    RetryPolicy,
    RetryRequested,
    StringSource,
    TypeCheck,
    failure_hook,
    fs_io_manager,
    graph,
    io_manager,
    op,
    resource,
    success_hook,
)
from pydantic import field_validator

from parity_jobs.case import Case, graph_case, jobs_of
from parity_jobs.say import first_time, say

RESOURCES_PER_RUN = (
    "in_process makes resources once for the run, so that the run fails before its first step; "
    "every executor with a process for each step makes them in the step"
)


def flaky(context: OpExecutionContext, failures: int) -> int:
    say(f"attempt {context.retry_number}")
    if context.retry_number < failures:
        raise RuntimeError(f"attempt {context.retry_number} fails on purpose")
    return context.retry_number


@op(retry_policy=RetryPolicy(max_retries=3, delay=0.2, backoff=Backoff.LINEAR))
def linear(context: OpExecutionContext) -> int:
    return flaky(context, 2)


@op(retry_policy=RetryPolicy(max_retries=3, delay=0.1, backoff=Backoff.EXPONENTIAL))
def exponential(context: OpExecutionContext) -> int:
    return flaky(context, 3)


@op(retry_policy=RetryPolicy(max_retries=1))
def at_once(context: OpExecutionContext) -> int:
    return flaky(context, 1)


@op
def total(numbers: list[int]) -> int:
    say(f"total {sum(numbers)}")
    return sum(numbers)


@graph
def retry_policy():
    total([linear(), exponential(), at_once()])


JITTER_SECONDS = 0.4


@op(retry_policy=RetryPolicy(max_retries=2, delay=JITTER_SECONDS, jitter=Jitter.FULL))
def jittered(context: OpExecutionContext) -> int:
    return flaky(context, 2)


@graph
def retry_jitter():
    jittered()


@op
def asks(context: OpExecutionContext) -> int:
    say(f"attempt {context.retry_number}")
    if context.retry_number == 0:
        raise RetryRequested(max_retries=2)
    if context.retry_number == 1:
        raise RetryRequested(max_retries=2, seconds_to_wait=0.3) from ValueError("the cause")
    return 1


@graph
def retry_requested():
    total([asks()])


@op(retry_policy=RetryPolicy(max_retries=2))
def hopeless(context: OpExecutionContext) -> int:
    return flaky(context, 9)


@op
def asks_too_often(context: OpExecutionContext) -> int:
    say(f"attempt {context.retry_number}")
    raise RetryRequested(max_retries=1)


@op
def untouched() -> int:
    say("independent of what fails")
    return 1


@graph
def retry_exhausted():
    total([hopeless(), untouched()])
    asks_too_often()


@graph
def retry_disabled():
    total([at_once(), untouched()])


@graph
def retry_deferred():
    total([at_once()])


@op(retry_policy=RetryPolicy(max_retries=5))
def gives_up(context: OpExecutionContext) -> int:
    say(f"attempt {context.retry_number}")
    raise Failure(
        "no use in trying again",
        metadata={"rows": 12, "page": MetadataValue.url("https://example.org/")},
        allow_retries=False,
    )


@graph
def failure_with_metadata():
    total([gives_up()])


@op(out=DynamicOut(int))
def three() -> Iterator[DynamicOutput[int]]:
    for i in range(3):
        yield DynamicOutput(i, mapping_key=f"k{i}")


@op(retry_policy=RetryPolicy(max_retries=2, delay=0.1))
def flaky_piece(context: OpExecutionContext, number: int) -> int:
    flaky(context, number)
    return number * 10


@graph
def retry_mapped():
    total(three().map(flaky_piece).collect())


@op(out=DynamicOut(int), retry_policy=RetryPolicy(max_retries=1))
def emits_twice(context: OpExecutionContext) -> Iterator[DynamicOutput[int]]:
    """The first attempt dies after two of its outputs; the second emits other ones."""
    for i in range(4):
        if context.retry_number == 0 and i == 2:
            raise RuntimeError("after two outputs")
        yield DynamicOutput(i, mapping_key=f"{'ab'[context.retry_number]}{i}")


@op
def piece(number: int) -> int:
    say(f"piece {number}")
    return number


@graph
def retry_emitter():
    total(emits_twice().map(piece).collect())


@resource
def broken(_: InitResourceContext) -> str:
    raise RuntimeError("the resource is broken")


@resource
def broken_at_first(context: InitResourceContext) -> str:
    assert context.run is not None
    if first_time(context.run.run_id, "resource"):
        raise RuntimeError("the resource is broken at first")
    return "mended"


@op(required_resource_keys={"thing"})
def needs_thing(context: OpExecutionContext) -> int:
    say(f"thing {context.resources.thing}")
    return 1


@op(required_resource_keys={"thing"}, retry_policy=RetryPolicy(max_retries=2, delay=0.2))
def needs_thing_patiently(context: OpExecutionContext) -> int:
    say(f"thing {context.resources.thing}, attempt {context.retry_number}")
    return 1


@graph
def resource_fails():
    total([needs_thing(), untouched()])


@graph
def resource_fails_then_works():
    total([needs_thing_patiently(), untouched()])


@graph
def resource_fails_for_good():
    total([needs_thing_patiently(), untouched()])


class Moody(IOManager):
    """Fails where the op's metadata says so."""

    def __init__(self) -> None:
        self.inner = fs_io_manager

    def handle_output(self, context: OutputContext, obj: object) -> None:
        metadata = context.definition_metadata or {}
        if metadata.get("fails") == "always":
            raise RuntimeError("the output cannot be stored")
        if metadata.get("fails") == "at first" and first_time(context.run_id, context.step_key):
            raise RuntimeError("the output cannot be stored at first")
        context.add_output_metadata({"kind": type(obj).__name__})

    def load_input(self, context: InputContext) -> int:
        metadata = context.definition_metadata or {}
        assert context.upstream_output is not None
        if metadata.get("fails") == "at first" and first_time(
            context.upstream_output.run_id, "load"
        ):
            raise RuntimeError("the input cannot be loaded at first")
        if metadata.get("fails") == "always":
            raise RuntimeError("the input cannot be loaded")
        context.add_input_metadata({"loaded": 7})
        return 7


@io_manager
def moody(_: InitResourceContext) -> Moody:
    return Moody()


@op(out=Out(int, metadata={"fails": "always"}))
def never_stored() -> int:
    say("computed, and lost")
    return 1


@op(out=Out(int, metadata={"fails": "at first"}), retry_policy=RetryPolicy(max_retries=1))
def stored_at_last(context: OpExecutionContext) -> int:
    say(f"attempt {context.retry_number}")
    return 1


@op(ins={"number": In(int, metadata={"fails": "at first"})}, retry_policy=RetryPolicy(1))
def loads_at_last(context: OpExecutionContext, number: int) -> int:
    say(f"loaded {number} in attempt {context.retry_number}")
    return number


@op(ins={"number": In(int, metadata={"fails": "always"})})
def never_loaded(number: int) -> int:
    return number


@graph
def io_manager_fails():
    total([never_stored(), untouched()])
    never_loaded(untouched.alias("source")())


@graph
def io_manager_fails_then_works():
    loads_at_last(stored_at_last())


@success_hook
def cheers(context: HookContext) -> None:
    say(f"success hook of {context.step_key}")


@success_hook
def falls_over(context: HookContext) -> None:
    raise RuntimeError("the hook fails")


@failure_hook
def mourns(context: HookContext) -> None:
    say(f"failure hook of {context.step_key}: {type(context.op_exception).__name__}")


@graph
def hooks():
    cheered = untouched.alias("cheered").with_hooks({cheers})()
    fallen = untouched.alias("fallen").with_hooks({falls_over})()
    not_mourned = untouched.alias("not_mourned").with_hooks({mourns})()
    total([cheered, fallen, not_mourned, hopeless.with_hooks({mourns})()])


ODD = DagsterType(
    name="Odd",
    type_check_fn=lambda _, value: TypeCheck(
        success=value % 2 == 1, description="parity of a number", metadata={"value": value}
    ),
)


@op(out=Out(ODD))
def claims_odd() -> int:
    return 2


@op(out=Out(int))
def two() -> int:
    return 2


@op(ins={"number": In(ODD)})
def wants_odd(number: int) -> int:
    return number


@op(out=Out(ODD))
def really_odd() -> int:
    return 3


@graph
def type_checks():
    claims_odd()
    wants_odd(two())
    wants_odd.alias("content")(really_odd())


@op(config_schema={"secret": StringSource})
def wants_config(context: OpExecutionContext) -> str:
    say(str(context.op_config))
    return context.op_config["secret"]


class Picky(Config):
    number: int

    @field_validator("number")
    @classmethod
    def is_odd(cls, number: int) -> int:
        if number % 2 == 0:
            raise ValueError("only odd numbers")
        return number


@op
def is_picky(config: Picky) -> int:
    say("never printed")
    return config.number


@graph
def config_fails():
    """The schema takes the value; the op's own validation does not."""
    total([is_picky(), untouched()])


@graph
def config_is_refused():
    wants_config()


CASES: tuple[Case, ...] = (
    graph_case(retry_policy, counts={"STEP_UP_FOR_RETRY": 6, "STEP_RESTARTED": 6}),
    graph_case(
        retry_jitter,
        counts={"STEP_UP_FOR_RETRY": 2, "STEP_SUCCESS": 1},
        masks=frozenset({"retry_delay"}),
        delays=(0.0, JITTER_SECONDS),
    ),
    graph_case(retry_requested, counts={"STEP_UP_FOR_RETRY": 2, "STEP_SUCCESS": 2}, quick=True),
    graph_case(
        retry_exhausted,
        status="FAILURE",
        counts={"STEP_UP_FOR_RETRY": 3, "STEP_FAILURE": 2, "STEP_SUCCESS": 1},
        launched=True,
        quick=True,
    ),
    graph_case(
        retry_disabled,
        status="FAILURE",
        config={"execution": {"config": {"retries": {"disabled": {}}}}},
        counts={"STEP_UP_FOR_RETRY": 0, "STEP_FAILURE": 1},
    ),
    graph_case(
        retry_deferred,
        status="REFUSED",
        config={"execution": {"config": {"retries": {"deferred": {}}}}},
        references=("in_process",),
        why="the suite's defaults for multiprocess take any config, and are refused in other words",
    ),
    graph_case(failure_with_metadata, status="FAILURE", counts={"STEP_FAILURE": 1}),
    graph_case(retry_mapped, counts={"STEP_UP_FOR_RETRY": 3, "STEP_SUCCESS": 5}),
    graph_case(retry_emitter, counts={"STEP_UP_FOR_RETRY": 1, "STEP_SUCCESS": 6}),
    graph_case(
        resource_fails,
        job={"resource_defs": {"thing": broken}},
        status="FAILURE",
        counts={"RESOURCE_INIT_FAILURE": 1, "STEP_FAILURE": 1},
        references=("multiprocess",),
        why=RESOURCES_PER_RUN,
        masks=frozenset({"resources"}),
    ),
    graph_case(
        resource_fails_then_works,
        job={"resource_defs": {"thing": broken_at_first}},
        status="FAILURE",  # of the run; every step succeeds
        counts={"RESOURCE_INIT_FAILURE": 1, "STEP_UP_FOR_RETRY": 1, "STEP_SUCCESS": 3},
        references=("multiprocess",),
        why=RESOURCES_PER_RUN,
        masks=frozenset({"resources"}),
    ),
    graph_case(
        resource_fails_for_good,
        job={"resource_defs": {"thing": broken}},
        status="FAILURE",
        counts={"RESOURCE_INIT_FAILURE": 3, "STEP_UP_FOR_RETRY": 2, "STEP_FAILURE": 1},
        references=("multiprocess",),
        why=RESOURCES_PER_RUN,
        masks=frozenset({"resources"}),
    ),
    graph_case(
        io_manager_fails,
        job={"resource_defs": {"io_manager": moody}},
        status="FAILURE",
        counts={"STEP_FAILURE": 2},
    ),
    graph_case(
        io_manager_fails_then_works,
        job={"resource_defs": {"io_manager": moody}},
        counts={"STEP_UP_FOR_RETRY": 2},
    ),
    graph_case(
        hooks,
        status="FAILURE",
        counts={"HOOK_COMPLETED": 2, "HOOK_ERRORED": 1, "HOOK_SKIPPED": 3},
        launched=True,
        quick=True,
    ),
    graph_case(type_checks, status="FAILURE", counts={"STEP_FAILURE": 2}),
    graph_case(
        config_fails,
        status="FAILURE",
        config={"ops": {"is_picky": {"config": {"number": 2}}}},
        counts={"STEP_FAILURE": 1, "STEP_SUCCESS": 1},
    ),
    graph_case(
        config_is_refused,
        status="REFUSED",
        config={"ops": {"wants_config": {"config": {"secrett": "misspelt"}}}},
    ),
)


def definitions() -> Definitions:
    return jobs_of(CASES)
