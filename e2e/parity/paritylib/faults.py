"""Faults that cases need: a writer held before its commit, and step processes that stand still."""

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager

import psycopg2

from paritylib.keeper import children
from paritylib.stack import Stack

# The advisory lock that a held writer waits for.
_LOCK = 734_001


@contextmanager
def held_inserts(dsn: str, step_key: str) -> Generator[Callable[[], None], None, None]:
    """Holds whoever inserts the step's success, its id already drawn, until release is called.

    A trigger of ours on Dagster's table waits for a lock that this session has.
    """
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    held = True

    def release() -> None:
        nonlocal held
        if held:
            held = False
            cursor.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))

    with connection.cursor() as cursor:
        try:
            cursor.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            cursor.execute(
                "CREATE FUNCTION parity_hold() RETURNS trigger LANGUAGE plpgsql AS"
                f" $$ BEGIN PERFORM pg_advisory_xact_lock_shared({_LOCK}); RETURN NULL; END $$"
            )
            cursor.execute(
                "CREATE TRIGGER parity_hold AFTER INSERT ON event_logs FOR EACH ROW"
                " WHEN (NEW.step_key = %s AND NEW.dagster_event_type = 'STEP_SUCCESS')"
                " EXECUTE FUNCTION parity_hold()",
                (step_key,),
            )
            yield release
        finally:
            release()
            cursor.execute("DROP TRIGGER IF EXISTS parity_hold ON event_logs")
            cursor.execute("DROP FUNCTION IF EXISTS parity_hold()")
            connection.close()


@contextmanager
def frozen_children(stack: Stack, *, but: int) -> Generator[None, None, None]:
    """Stops the worker's processes that wait for a step, and lets go on what is still there.

    The template first: it would fork others in the place of those that are given a step. `but` is
    not stopped.
    """
    stopped: list[int] = []

    def stop(pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)

    try:
        templates = children({stack.state["pids"]["worker-1"]})
        stop(templates)
        forked = children(set(templates))
        if but not in forked:
            raise RuntimeError(f"process {but} is no child of the worker's template")
        stop([pid for pid in forked if pid != but])
        yield
    finally:
        for pid in stopped:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
