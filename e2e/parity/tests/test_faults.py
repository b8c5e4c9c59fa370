"""The faults must really be there, or the cases that need them show nothing."""

import os
import threading
import uuid

import psycopg2
import pytest

from paritylib.faults import held_inserts

URL = os.environ.get("STEPFLEET_TEST_POSTGRES_URL", "")


@pytest.fixture
def dsn() -> str:
    """A database of its own, with the columns of Dagster's table that matter."""
    if not URL:
        assert not os.environ.get("CI"), "STEPFLEET_TEST_POSTGRES_URL is not set"
        pytest.skip("STEPFLEET_TEST_POSTGRES_URL is not set")
    name = f"parity_{uuid.uuid4().hex[:12]}"
    connection = psycopg2.connect(URL)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    made = psycopg2.extensions.make_dsn(URL, dbname=name)
    with psycopg2.connect(made) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE event_logs"
            " (id bigserial PRIMARY KEY, step_key text, dagster_event_type text)"
        )
    return made


def insert(dsn: str, step_key: str) -> None:
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO event_logs (step_key, dagster_event_type) VALUES (%s, 'STEP_SUCCESS')",
            (step_key,),
        )


def visible(dsn: str) -> list[tuple[int, str]]:
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id, step_key FROM event_logs ORDER BY id")
        return cursor.fetchall()


def held_writers(dsn: str) -> int:
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return cursor.fetchone()[0]  # type: ignore[index]


def test_a_held_event_becomes_visible_below_one_that_was_read(dsn: str) -> None:
    with held_inserts(dsn, "held") as release:
        writer = threading.Thread(target=insert, args=(dsn, "held"))
        writer.start()
        while not held_writers(dsn):
            assert writer.is_alive()
        insert(dsn, "free")
        assert visible(dsn) == [(2, "free")]
        release()
        writer.join(10)
        assert visible(dsn) == [(1, "held"), (2, "free")]
    insert(dsn, "held")  # nothing is held any more
    assert len(visible(dsn)) == 3
