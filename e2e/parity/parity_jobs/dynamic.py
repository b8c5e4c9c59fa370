"""Dynamic outputs, optional outputs, and the shapes that a graph can have."""

from collections.abc import Iterator

from dagster import (
    Config,
    Definitions,
    DynamicOut,
    DynamicOutput,
    In,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    graph,
    op,
)

from parity_jobs.case import Case, graph_case, jobs_of
from parity_jobs.say import first_time, say


class Keys(Config):
    count: int = 4
    prefix: str = "k"
    # Of the whole key; 0 leaves it as it is.
    length: int = 0


@op(out=DynamicOut(int))
def split(config: Keys) -> Iterator[DynamicOutput[int]]:
    for i in range(config.count):
        key = f"{config.prefix}{i}"
        yield DynamicOutput(i, mapping_key=key.ljust(config.length, "x"))


@op
def add_one(number: int) -> int:
    say(f"add_one {number}")
    return number + 1


@op
def double(number: int) -> int:
    return number * 2


@op
def plain_number() -> int:
    return 100


@op
def both(number: int, other: int) -> int:
    return number + other


@op
def gather(numbers: list[int]) -> int:
    say(f"gathered {len(numbers)}: {sum(numbers)}")
    return sum(numbers)


@op
def show(number: int) -> None:
    say(f"show {number}")


@graph
def inner(number: int) -> int:
    return double(add_one(number))


@graph
def dynamic_nested():
    """A graph mapped over keys, a chain of maps, two collects, and an input from outside."""
    other = plain_number()
    pieces = split()
    first = pieces.map(inner)
    second = first.map(lambda n: both(n, other))
    show(gather(second.collect()))
    show.alias("show_first")(gather.alias("gather_first")(first.collect()))


@graph
def dynamic_empty():
    show(gather(split().map(add_one).collect()))


@graph
def dynamic_500():
    gather(split().map(double).collect())


@graph
def dynamic_long_keys():
    gather(split().map(double).collect())


@op(
    out={
        "left": Out(int, is_required=False),
        "right": Out(int, is_required=False),
        "never": Out(int, is_required=False),
    }
)
def chooses() -> Iterator[Output[int]]:
    yield Output(1, "left")


@op
def joins(left: int, right: int) -> int:
    return left + right


@op
def joins_any(numbers: list[int]) -> int:
    say(f"joins {numbers}")
    return len(numbers)


@graph
def branching():
    left, right, never = chooses()
    a = add_one.alias("after_left")(left)
    b = add_one.alias("after_right")(right)
    c = double.alias("far_right")(b)
    joins(a, c)
    joins_any([a, b, c])
    show(never)


@op(out=Out(int, is_required=False))
def yields_nothing() -> Iterator[Output[int]]:
    say("no output")
    yield from ()


@graph
def optional_output():
    show(add_one(yields_nothing()))


@op
def first() -> None:
    say("first")


@op(ins={"start": In(Nothing)}, out=Out(Nothing))
def second() -> None:
    say("second")


@op(ins={"a": In(Nothing), "b": In(Nothing)})
def third() -> None:
    say("third")


@graph
def nothing_dependencies():
    begun = first()
    third(a=second(start=begun), b=second.alias("also_second")(start=begun))


@graph
def fan_in_200():
    gather([plain_number.alias(f"n{i:03}")() for i in range(200)])


@graph
def middle(number: int) -> int:
    return inner.alias("innermost")(add_one(number))


@graph
def graphs_in_graphs():
    show(middle(middle.alias("again")(plain_number())))


@graph
def op_selection():
    show(double(add_one(plain_number())))
    show.alias("elsewhere")(plain_number.alias("another")())


@op
def fails_in_first_run(context: OpExecutionContext, number: int) -> int:
    root = context.run.root_run_id or context.run_id
    if first_time(root, "run"):
        raise RuntimeError("the first run fails here")
    say(f"number {number}")
    return number


@graph
def from_failure():
    number = plain_number()
    show(gather([fails_in_first_run(add_one(number)), double(number)]))
    gather.alias("gather_keys")(split().map(double).collect())


@graph
def step_keys():
    show(double(add_one(plain_number())))
    gather(split().map(add_one.alias("piece")).collect())


CASES: tuple[Case, ...] = (
    graph_case(dynamic_nested, counts={"STEP_SUCCESS": 18}),
    graph_case(
        dynamic_empty,
        config={"ops": {"split": {"config": {"count": 0}}}},
        counts={"STEP_SUCCESS": 3},
        quick=True,
    ),
    graph_case(
        dynamic_500,
        config={"ops": {"split": {"config": {"count": 500}}}},
        counts={"STEP_SUCCESS": 502},
        references=("in_process",),
        why="multiprocess takes minutes for 500 processes; the smaller cases have it",
        # In process, each event is a connection of its own to PostgreSQL.
        timeout_seconds=600,
    ),
    graph_case(
        dynamic_long_keys,
        config={"ops": {"split": {"config": {"count": 3, "length": 200}}}},
        counts={"STEP_SUCCESS": 5},
    ),
    graph_case(branching, counts={"STEP_SKIPPED": 4, "STEP_SUCCESS": 3}, quick=True),
    graph_case(optional_output, counts={"STEP_SKIPPED": 2}),
    graph_case(nothing_dependencies, counts={"STEP_SUCCESS": 4}),
    graph_case(fan_in_200, counts={"STEP_SUCCESS": 201}, timeout_seconds=300),
    graph_case(graphs_in_graphs, counts={"STEP_SUCCESS": 8}),
    graph_case(
        op_selection,
        options={"ops": ["*double"]},
        counts={"STEP_SUCCESS": 3},
    ),
    graph_case(
        from_failure,
        drive="reexecute_from_failure",
        counts={"STEP_FAILURE": 1, "STEP_SUCCESS": 12},
        launched=True,
        quick=True,
    ),
    graph_case(
        step_keys,
        drive="reexecute_steps",
        options={"step_keys": ["double", "show", "piece[k1]", "gather"]},
        counts={"STEP_SUCCESS": 14},
    ),
)


def definitions() -> Definitions:
    return jobs_of(CASES)
