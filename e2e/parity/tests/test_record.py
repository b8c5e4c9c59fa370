"""What is taken from Dagster's storage, on runs that Dagster has made in this process."""

import json
from collections.abc import Iterator

import pytest
from dagster import (
    AssetMaterialization,
    DagsterInstance,
    Failure,
    JobDefinition,
    OpExecutionContext,
    Output,
    RetryPolicy,
    job,
    op,
)

from paritylib.normal import Normaliser
from paritylib.record import Record, records, shortened


@op(retry_policy=RetryPolicy(max_retries=1, delay=0.1))
def twice(context: OpExecutionContext) -> Iterator[object]:
    print(f"out> attempt {context.retry_number}")
    if context.retry_number == 0:
        raise Failure("at first", metadata={"n": 1})
    yield AssetMaterialization("table", partition="p", metadata={"rows": 3})
    yield Output(1)


@op
def last(number: int) -> None:
    print("out> last")


@job
def example() -> None:
    last(twice())


@op
def chained() -> None:
    try:
        print(1 / 0)
    except ZeroDivisionError:
        raise LookupError("outer")  # noqa: B904 (a context and no cause)


@job
def failing() -> None:
    chained()


def made_of(definition: JobDefinition) -> Record:
    with DagsterInstance.ephemeral() as instance:
        result = definition.execute_in_process(
            instance=instance, tags={"team": "x"}, raise_on_error=False
        )
        (found,) = records(instance, [result.run_id], Normaliser([result.run_id]))
    return found


@pytest.fixture(scope="module")
def found() -> Record:
    return made_of(example)


@pytest.fixture(scope="module")
def failed() -> Record:
    return made_of(failing)


def test_status_states_and_attempts(found: Record) -> None:
    assert found.status == "SUCCESS"
    assert found.states == {"twice": "SUCCESS", "last": "SUCCESS"}
    assert found.attempts == {"twice": 2, "last": 1}
    assert found.tags["team"] == "x"
    assert found.order == ["twice", "twice", "last"]
    ((asked, waited),) = found.waits
    assert asked == 0.1 <= (waited or 0.0)


def test_events_by_step(found: Record) -> None:
    kinds = sorted(text.split(" ", 1)[0] for text in found.events["twice"].elements())
    assert kinds == [
        "ASSET_MATERIALIZATION",
        "HANDLED_OUTPUT",
        "STEP_OUTPUT",
        "STEP_RESTARTED",
        "STEP_START",
        "STEP_SUCCESS",
        "STEP_UP_FOR_RETRY",
    ]
    (told,) = [t for t in found.events["twice"] if t.startswith("ASSET_MATERIALIZATION")]
    assert '"partition": "p"' in told
    assert '"rows"' in told


def test_how_the_run_ended_is_taken(failed: Record) -> None:
    (told,) = [t for t in failed.run_events if t.startswith("PIPELINE_FAILURE")]
    detail = json.loads(told.split(" ", 1)[1])
    assert detail["message"].endswith("failed. Steps failed: ['chained'].")
    assert (detail["reason"], detail["first"]) == ("STEP_FAILURE", "chained")
    assert detail["error"]["cause"]["class"] == "LookupError"


def test_an_error_is_taken_with_what_it_came_from_and_over_and_where(failed: Record) -> None:
    (told,) = [t for t in failed.events["chained"] if t.startswith("STEP_FAILURE")]
    error = json.loads(told.split(" ", 1)[1])["error"]["cause"]
    assert (error["class"], error["message"]) == ("LookupError", "LookupError: outer")
    assert error["cause"] is None
    assert error["context"]["class"] == "ZeroDivisionError"
    assert 'raise LookupError("outer")' in error["stack"][-1]


def failing_in_order(first: str, second: str) -> JobDefinition:
    @op
    def fails(context: OpExecutionContext) -> None:
        raise RuntimeError(f"{context.op.name} fails")

    @job(name="two_fail")
    def definition() -> None:
        fails.alias(first).tag({"dagster/priority": "1"})()
        fails.alias(second)()

    return definition


def test_which_of_several_steps_failed_first_is_no_difference() -> None:
    one, other = (made_of(failing_in_order(*steps)) for steps in (("a", "b"), ("b", "a")))
    assert (one.order, other.order) == (["a", "b"], ["b", "a"])
    ends = [
        [text for text in found.run_events if text.startswith("PIPELINE_FAILURE")]
        for found in (one, other)
    ]
    assert ends[0] == ends[1]
    assert "Steps failed: ['a', 'b']." in ends[0][0]


def test_which_steps_failed_is_one() -> None:
    one, other = (made_of(failing_in_order(*steps)) for steps in (("a", "b"), ("a", "c")))
    assert one.run_events != other.run_events


def test_a_long_log_says_how_often_a_line_follows_itself() -> None:
    assert shortened("a\nb\nb\nb\n\n\na\n") == "a\nb x 3\n x 2\na\n"
    assert shortened("a\nb") == "a\nb"
