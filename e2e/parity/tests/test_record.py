"""What is taken from Dagster's storage, on runs that Dagster has made in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import (
    AssetMaterialization,
    DagsterInstance,
    Failure,
    OpExecutionContext,
    Output,
    RetryPolicy,
    job,
    op,
)

from paritylib.normal import Normaliser
from paritylib.record import Record, record


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


@pytest.fixture(scope="module")
def found() -> Iterator[Record]:
    with DagsterInstance.ephemeral() as instance:
        result = example.execute_in_process(instance=instance, tags={"team": "x"})
        yield record(instance, result.run_id, Normaliser([result.run_id]))


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


def test_where_dagster_keeps_its_files_is_no_difference() -> None:
    normal = Normaliser([], Path("/tmp/one")).text("Writing /tmp/one/storage/a")
    assert normal == "Writing HOME/storage/a"


def test_no_id_or_time_is_left() -> None:
    run_id = "4bbc1e2c-be49-4408-997c-50dc3bcb2cb5"
    normal = Normaliser([run_id]).text(
        f"2026-11-25 01:52:07 +0000 - dagster - job_on_stepfleet - {run_id} - 1018 - in 40ms"
    )
    assert normal == "TIME - dagster - job_on_VARIANT - RUN - PID - in DURATION"
