"""Effects in PostgreSQL, with attempts that die after their commit and attempts that come late."""

import os
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from dagster import (
    DagsterInstance,
    ExecuteInProcessResult,
    OpExecutionContext,
    RetryPolicy,
    job,
    op,
)

from stepfleet_examples import sink
from stepfleet_examples.definitions import defs

URL = os.environ.get("STEPFLEET_TEST_POSTGRES_URL", "")


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables of the test's own, in a schema of its own."""
    if not URL:
        if os.environ.get("CI"):
            pytest.fail("STEPFLEET_TEST_POSTGRES_URL is not set")
        pytest.skip("STEPFLEET_TEST_POSTGRES_URL is not set")
    schema = f"sink_{uuid.uuid4().hex}"
    ask(f"CREATE SCHEMA {schema}")
    separator = "&" if "?" in URL else "?"
    url = f"{URL}{separator}options=-csearch_path%3D{schema}"
    monkeypatch.setenv("STEPFLEET_EXAMPLE_SINK_URL", url)
    yield
    ask(f"DROP SCHEMA {schema} CASCADE")


def ask(statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(os.environ.get("STEPFLEET_EXAMPLE_SINK_URL") or URL)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def attempt(monkeypatch: pytest.MonkeyPatch, number: int, fence: int = 1) -> None:
    """From here on this process is that attempt of the step a of a run, on stepfleet."""
    monkeypatch.setenv("STEPFLEET_IDEMPOTENCY_KEY", "run/a")
    monkeypatch.setenv("STEPFLEET_STEP_KEY", "a")
    monkeypatch.setenv("STEPFLEET_ATTEMPT", str(number))
    monkeypatch.setenv("STEPFLEET_FENCE", str(fence))


def run(definition: Any) -> ExecuteInProcessResult:
    with DagsterInstance.ephemeral() as instance:
        return definition.execute_in_process(instance=instance, raise_on_error=False)


def test_the_job_writes_each_row_once() -> None:
    result = run(defs.resolve_job_def("to_postgres"))
    assert result.success
    assert ask("SELECT line, amount FROM booking ORDER BY line") == [(0, 5), (1, 7), (2, 11)]
    assert ask("SELECT idempotency_key, total FROM published") == [(f"{result.run_id}/publish", 23)]


def test_an_attempt_that_dies_after_its_commit_is_repeated_without_a_second_effect() -> None:
    added = []

    @op(retry_policy=RetryPolicy(max_retries=1))
    def dies_once(context: OpExecutionContext) -> None:
        added.append(sink.add_bookings([1, 2]))
        sink.announce()
        sink.replace_total(3)
        if context.retry_number == 0:
            raise RuntimeError("after the commit")

    @job
    def twice() -> None:
        dies_once()

    sink.create_tables()
    assert run(twice).success
    assert added == [2, 0]
    assert ask("SELECT count(*), sum(amount) FROM booking") == [(2, 3)]
    assert ask("SELECT total FROM published") == [(3,)]


def test_half_a_batch_is_rolled_back_with_what_it_would_have_made(monkeypatch) -> None:
    sink.create_tables()
    attempt(monkeypatch, 0)
    with pytest.raises(psycopg2.Error):
        sink.add_bookings([1, 2, 2**70])
    assert ask("SELECT count(*) FROM booking") == [(0,)]
    attempt(monkeypatch, 1)
    assert sink.add_bookings([1, 2, 3]) == 3


@pytest.mark.parametrize("late", [sink.announce, lambda: sink.replace_total(666)])
def test_an_attempt_that_wakes_after_the_next_has_begun_is_refused(monkeypatch, late) -> None:
    sink.create_tables()
    attempt(monkeypatch, 0, fence=9)
    sink.announce()
    attempt(monkeypatch, 1, fence=1)  # claims are counted anew: the fence alone would say nothing
    sink.announce()
    attempt(monkeypatch, 0, fence=9)
    with pytest.raises(sink.OvertakenError, match="run/a"):
        late()
    attempt(monkeypatch, 1, fence=1)
    sink.replace_total(42)
    assert ask("SELECT total FROM published") == [(42,)]


def test_an_attempt_may_repeat_a_write_whose_answer_was_lost(monkeypatch) -> None:
    sink.create_tables()
    attempt(monkeypatch, 0)
    for _ in range(2):
        sink.announce()
        sink.replace_total(1)
    assert ask("SELECT total FROM published") == [(1,)]


def test_without_a_database_the_error_says_what_to_set(monkeypatch) -> None:
    monkeypatch.delenv("STEPFLEET_EXAMPLE_SINK_URL")
    with pytest.raises(RuntimeError, match="STEPFLEET_EXAMPLE_SINK_URL is not set"):
        sink.create_tables()
    monkeypatch.setenv("STEPFLEET_EXAMPLE_SINK_URL", URL)  # for the end of the fixture
