"""Effects in PostgreSQL that happen once, though a step may be tried twice.

A step that dies between its commit and its end is started again by a retry, and does all again.
Two patterns keep the sink right, each in one transaction with the effect itself:

- `book` adds rows: the idempotency key is unique, and a row that is there is left alone.
- `publish` replaces a value: it keeps the largest fence it has seen, and refuses a smaller one.
  An attempt that was given up, but hangs and wakes later, can no longer change anything.

A step retried by re-execution belongs to another run and so has another key. Where that must not
repeat an effect either, take a key of the business (the order's number, the partition) instead.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dagster import OpExecutionContext, RetryPolicy, job, op
from dagster_stepfleet import idempotency

from stepfleet_examples.effects import effect

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

TABLES = """
CREATE TABLE IF NOT EXISTS booking (
    idempotency_key text   NOT NULL,
    line            int    NOT NULL, -- a step may add several rows: each needs a name of its own
    amount          bigint NOT NULL,
    PRIMARY KEY (idempotency_key, line)
);
CREATE TABLE IF NOT EXISTS published (
    idempotency_key text   PRIMARY KEY,
    fence           bigint NOT NULL,
    total           bigint            -- null until the first attempt has come to its end
);
"""
TABLES_LOCK = 20240607  # two first steps at a time would both create them

BOOK = """
INSERT INTO booking (idempotency_key, line, amount) VALUES (%s, %s, %s)
ON CONFLICT (idempotency_key, line) DO NOTHING
"""

# The comparison and the change are one statement: between a SELECT and an UPDATE a later attempt
# could pass.
ANNOUNCE = """
INSERT INTO published AS p (idempotency_key, fence) VALUES (%s, %s)
ON CONFLICT (idempotency_key) DO UPDATE SET fence = excluded.fence WHERE p.fence <= excluded.fence
"""
REPLACE = "UPDATE published SET total = %s WHERE idempotency_key = %s AND fence = %s"


class OvertakenError(Exception):
    """A later attempt of this step has begun: this one must not change the sink any more."""


@contextmanager
def transaction() -> Iterator["Cursor"]:
    """One transaction on the sink that STEPFLEET_EXAMPLE_SINK_URL names."""
    url = os.environ.get("STEPFLEET_EXAMPLE_SINK_URL", "")
    if not url:
        raise RuntimeError(
            "STEPFLEET_EXAMPLE_SINK_URL is not set: give `to_postgres` a database to write to, "
            "as postgresql://user:password@host:5432/database"
        )
    import psycopg2  # other examples do without it

    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:  # commits, or rolls back what raised
            yield cursor
    finally:
        connection.close()


def create_tables() -> None:
    with transaction() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (TABLES_LOCK,))
        cursor.execute(TABLES)


def add_bookings(amounts: list[int]) -> int:
    """Adds a row for each amount, once for all attempts of the step; returns how many were new."""
    key = idempotency.key()
    added = 0
    with transaction() as cursor:
        for line, amount in enumerate(amounts):
            cursor.execute(BOOK, (key, line, amount))
            added += cursor.rowcount
    return added


def announce() -> None:
    """Tells the sink that this attempt has begun. From its commit on, earlier ones are refused."""
    with transaction() as cursor:
        cursor.execute(ANNOUNCE, (idempotency.key(), idempotency.fence()))
        _expect_one(cursor)


def replace_total(total: int) -> None:
    """Puts the step's value in place, if this is still its latest attempt."""
    with transaction() as cursor:
        cursor.execute(REPLACE, (total, idempotency.key(), idempotency.fence()))
        _expect_one(cursor)


def _expect_one(cursor: "Cursor") -> None:
    if cursor.rowcount != 1:
        raise OvertakenError(f"a later attempt of {idempotency.key()} has taken over")


@op
def sink_ready(context: OpExecutionContext) -> list[int]:
    """Makes the tables, and some amounts."""
    with effect(context):
        create_tables()
        return [5, 7, 11]


@op(retry_policy=RetryPolicy(max_retries=2))
def book(context: OpExecutionContext, amounts: list[int]) -> int:
    """The unique key."""
    with effect(context):
        added = add_bookings(amounts)
        context.log.info(f"{added} new of {len(amounts)} bookings")
        return sum(amounts)


@op(retry_policy=RetryPolicy(max_retries=2))
def publish(context: OpExecutionContext, total: int) -> None:
    """The comparison of fences."""
    with effect(context):
        announce()
        replace_total(total)


@job
def to_postgres() -> None:
    """Writes to PostgreSQL so that a repeated attempt changes nothing twice."""
    publish(book(sink_ready()))
